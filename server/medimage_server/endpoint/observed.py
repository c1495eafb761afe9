"""Around every request: its id, the headers of Azure's inference server, one line of log, and the numbers."""

import logging
import re
import traceback
import uuid
from http import HTTPStatus
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medimage_server.endpoint import metrics
from medimage_server.endpoint.access_log import AccessLog, Entry
from medimage_server.endpoint.json_response import error_response

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")  # Azure's server takes 100 characters; these are safe in any log
SAFETY_HEADERS = {
    "cache-control": "no-store",  # answers are made of patients' images
    "x-content-type-options": "nosniff",
}
SERVER_ERROR = "internal error; the log has the place by the request id"

logger = logging.getLogger(__name__)


class Observed:
    """ASGI middleware; what the application finds out of a request it writes into `entry_of(scope)`.

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
        entry = Entry(
            request_id=sent_headers["x-request-id"],
            method=scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other",
            route=path if path in self._routes else "other",
            status=0,
        )
        scope["state"]["entry"] = entry

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in sent_headers.items():
                    headers.setdefault(name, value)
            await send(message)
            entry.sent_bytes += len(message.get("body", b""))

        try:
            await self._app(scope, receive, send_observed)
        except Exception as error:
            # Type and place, but not the text, which may quote the request.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("request %s: %s\n%s", entry.request_id, type(error).__name__, where)
            if entry.status:  # too late for another answer; the connection is closed
                raise BrokenAnswer from None
            entry.reason = SERVER_ERROR
            response = error_response(HTTPStatus.INTERNAL_SERVER_ERROR, SERVER_ERROR, entry.request_id)
            await response(scope, receive, send_observed)
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

    def _note(self, entry: Entry, seconds: float) -> None:
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


def entry_of(scope: Scope) -> Entry:
    entry: Entry = scope["state"]["entry"]
    return entry
