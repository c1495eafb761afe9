"""Around every request: its id, the headers of Azure's inference server, one log line, the metrics; and the refusal of
requests whose end is not clear."""

import logging
import re
import traceback
import uuid
from http import HTTPStatus
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medimage_server.endpoint import metrics
from medimage_server.endpoint.access_log import AccessLog, LogEntry
from medimage_server.endpoint.body import discard
from medimage_server.endpoint.responses import json_error

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")  # Azure's server takes 100 characters; these are safe in any log
SAFETY_HEADERS = {
    "cache-control": "no-store",  # answers are made of patients' images
    "x-content-type-options": "nosniff",
}
SERVER_ERROR = "internal error; the log has the place by the request id"

logger = logging.getLogger(__name__)


class ObservabilityMiddleware:
    """What the application finds out of a request it writes into `entry_of(scope)`.

    Args:
        server_version: for the header x-ms-server-version.
        routes: paths that the log may name.
    """

    def __init__(self, app: ASGIApp, *, log: AccessLog, server_version: str, routes: frozenset[str]) -> None:
        self._app = app
        self._log = log
        self._server_version = server_version
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        sent_headers = self._headers(Headers(scope=scope))
        path = scope["raw_path"].decode("latin-1")  # as it was sent, which is how routes are told apart
        entry = LogEntry(
            request_id=sent_headers["x-request-id"],
            method=scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other",
            route=path if path in self._routes else "other",
            status=0,
        )
        scope["state"]["entry"] = entry

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in sent_headers.items():
                    headers.setdefault(name, value)
            await send(message)
            entry.sent_bytes += len(message.get("body", b""))

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            # Type and place, but not the text, which may quote the request.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("request %s: %s\n%s", entry.request_id, type(error).__name__, where)
            if entry.status:  # too late for another answer; the connection is closed
                raise BrokenAnswer from None
            entry.reason = SERVER_ERROR
            response = json_error(HTTPStatus.INTERNAL_SERVER_ERROR, SERVER_ERROR, entry.request_id)
            await response(scope, receive, send_noted)
        finally:
            self._note(entry, perf_counter() - start)

    def _headers(self, received: Headers) -> dict[str, str]:
        """Those of Azure's inference server (azureml-inference-server-http, routes.py), and safety's."""
        sent = {
            name: received[name]
            for name in ("x-request-id", "x-ms-client-request-id", "x-ms-request-id")
            if REQUEST_ID.fullmatch(received.get(name, ""))
        }
        request_id = sent.setdefault("x-request-id", str(uuid.uuid4()))
        if "x-ms-request-id" in sent:
            sent.setdefault("x-ms-client-request-id", sent["x-ms-request-id"])
        else:
            sent["x-ms-request-id"] = sent.get("x-ms-client-request-id", request_id)
        return sent | {"x-ms-server-version": self._server_version} | SAFETY_HEADERS

    def _note(self, entry: LogEntry, seconds: float) -> None:
        entry.ms = round(seconds * 1000, 2)
        metrics.REQUESTS.labels(entry.deployment or metrics.NO_DEPLOYMENT, str(entry.status)).inc()
        metrics.RECEIVED_BYTES.inc(entry.received_bytes)
        metrics.SENT_BYTES.inc(entry.sent_bytes)
        if entry.deployment:
            metrics.REQUEST_SECONDS.labels(entry.deployment).observe(seconds)
            for stage, ms in entry.stages_ms.items():
                metrics.STAGE_SECONDS.labels(entry.deployment, stage).observe(ms / 1000)
        if entry.rows and entry.deployment and entry.status == HTTPStatus.OK:
            metrics.ROWS.labels(entry.deployment).inc(entry.rows)
        self._log.write(entry)


class BrokenAnswer(Exception):
    """An answer that had begun could not be ended; the log has the reason."""


def entry_of(scope: Scope) -> LogEntry:
    entry: LogEntry = scope["state"]["entry"]
    return entry


def framing_fault(scope: Scope) -> str | None:
    """Why it is not sure where the request ends, and the next begins; see RFC 9112, section 6.1."""
    version: str = scope["http_version"]
    names = {name for name, _ in scope["headers"]}
    if not version.startswith("1."):  # h11 takes any, and answers in 1.1
        return "this version of HTTP is not spoken here; expected HTTP/1.1"
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return "both Content-Length and Transfer-Encoding are given; expected one of them"
    if version == "1.0":
        return "Transfer-Encoding is not part of HTTP/1.0; expected Content-Length"
    return None


class FramingMiddleware:
    """A request whose end is not sure is refused, whatever it asks for, and its connection closed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = framing_fault(scope) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        await discard(Headers(scope=scope), receive)
        entry = entry_of(scope)
        entry.reason = fault
        # what still comes would be read as the next request
        response = json_error(HTTPStatus.BAD_REQUEST, fault, entry.request_id, {"connection": "close"})
        await response(scope, receive, send)
