"""Requests to a scoring URI, of this project's endpoint or of Azure's own: one POST of Azure's JSON for each call."""

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from medimage_client.errors import InvalidInput, MedImageError, ResponseError, Unavailable
from medimage_client.schema.reports import PROGRESS
from medimage_client.wire.error_reader import not_scoring, scoring_error, unified_error
from medimage_client.wire.scoring_messages import (
    asks_head,
    check_call,
    read_embeddings,
    read_event,
    read_events,
    read_head,
    read_report,
    read_row_event,
    read_rows,
    request_body,
)
from medimage_client.wire.transport import Call, Outputs, Transport, read_object, read_to_end

if TYPE_CHECKING:  # imported by the first connection, for its length
    from aiohttp import ClientResponse

PATH = re.compile(r"(/medimageinsight|/cxrreportgen)?/score$")
EVENT_STREAM = "text/event-stream"
EMBEDDING_HEADERS = {"Accept": "application/json", "medimage-layout": "rows"}  # whatever the endpoint's own layout is
REPORT_HEADERS = {"Accept": f"{EVENT_STREAM}, application/json"}
SCORE_HEADERS = EMBEDDING_HEADERS | REPORT_HEADERS

NO_STATUS = "this server answers in Azure's JSON, which has no status of a report; score() does without"
SECONDS = re.compile(r"[0-9]{1,9}")  # of Retry-After; it may be a date, too, then our own delays have to do


@dataclass(frozen=True, slots=True)
class ScoringEndpoint:
    """Where a scoring endpoint listens, and its key."""

    url: str
    key: str | None = field(repr=False)

    @classmethod
    def parse(cls, url: str, key: str | None) -> Self:
        """`https://…/score` or `http://…/score`; without a port, that of the scheme. None is no key.

        Raises:
            InvalidInput: a url with more in it, or a key that a header cannot carry.
        """
        try:
            parts = urlsplit(url)
            valid = bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or "@" in parts.netloc or parts.query or parts.fragment:
            raise InvalidInput("url is not https://host/score; a query has no place in it, and a key is for api_key")
        if key is not None and (not key or " " in key or not key.isascii() or not key.isprintable()):
            raise InvalidInput("api_key is empty, not ASCII or has white space in it; expected the key alone")
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", key)

    @property
    def root(self) -> str:
        """Where the endpoint tells its health."""
        parts = urlsplit(self.url)  # a host may have the name of a model
        return parts._replace(path=PATH.sub("/", parts.path)).geturl()

    def connect(self) -> Transport:
        """A connection of the running event loop.

        The server's certificate is checked against the system's trust store, or SSL_CERT_FILE.
        """
        return ScoringTransport(self)


def is_scoring_uri(url: str) -> bool:
    """Whether a url is a scoring endpoint's; if not, it may be a Triton's."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and PATH.search(parts.path.rstrip("/")) is not None


class ScoringTransport:
    """Belongs to one event loop."""

    def __init__(self, endpoint: ScoringEndpoint) -> None:
        import aiohttp
        from aiohttp.http_exceptions import LineTooLong

        secure = endpoint.url.startswith("https:")
        self._endpoint = endpoint
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context() if secure else True),
            headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key is not None else None,
            timeout=aiohttp.ClientTimeout(total=None),  # the caller keeps the time
        )
        self._failures = (aiohttp.ClientError, OSError)
        self._endless_line = (LineTooLong, ValueError)  # the latter of older versions of aiohttp

    async def score(self, body: bytes, n_rows: int) -> Sequence[dict[str, Any]]:
        """The rows of the answer to a request in Azure's JSON, which goes as it is.

        Reports come as events, if the endpoint has them, since a proxy may close a connection that is quiet for long.
        """
        async with self._answer(body, SCORE_HEADERS) as response:
            if response.content_type != EVENT_STREAM:
                return read_rows(await response.read(), n_rows)
            reports = {}
            async for name, data in self._events(response):
                if name == b"row":
                    row, report = read_row_event(data, n_rows)
                    reports[row] = report
        if len(reports) < n_rows:
            raise ResponseError("the stream ended before its report", status=200)
        return [reports[row] for row in range(n_rows)]

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        if call.decoupled:
            return await read_to_end(self.stream(call, timeout=timeout), call.output_names)
        check_call(call)
        if asks_head(call):
            headers = {"Accept": "application/json", "azureml-model-deployment": call.model}
            async with self._answer(request_body(call), headers) as response:
                return read_head(await response.read(), call)
        async with self._answer(request_body(call), EMBEDDING_HEADERS) as response:
            return read_embeddings(await response.read(), call)

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        check_call(call)
        try:
            async with self._answer(request_body(call), REPORT_HEADERS) as response:
                if response.content_type != EVENT_STREAM:
                    outputs = read_report(await response.read())
                    if "status" in call.output_names:
                        raise ResponseError(NO_STATUS, status=200)
                    yield outputs
                    return
                async for name, data in self._events(response):
                    outputs = read_event(name, data)
                    if outputs and (PROGRESS not in outputs or PROGRESS in call.parameters):
                        yield outputs
        except MedImageError as error:
            raise without_row(error) from None

    async def is_ready(self, models: Sequence[str]) -> bool:
        """Whether the endpoint says so, which it does of all its models at once."""
        try:
            # a redirect would take the key elsewhere, here and below
            async with self._session.get(self._endpoint.root, allow_redirects=False) as response:
                return response.status == 200
        except self._failures as error:
            raise unified_error(error) from None

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _answer(self, body: bytes, headers: Mapping[str, str]) -> AsyncIterator["ClientResponse"]:
        """The response to a request, of status 200. To leave it before its end closes the connection."""
        headers = {"Content-Type": "application/json", **headers}
        try:
            async with self._session.post(
                self._endpoint.url,
                data=BytesIO(body),  # sent in parts, which bytes are not
                headers=headers,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                yield response
        except self._failures as error:
            raise unified_error(error) from None
        except self._endless_line:
            raise ResponseError(not_scoring(200), status=200) from None

    async def _refusal(self, response: "ClientResponse") -> MedImageError:
        values = read_object(await response.read()) or {}
        error = self._error(response.status, {"request_id": response.headers.get("x-request-id"), **values})
        seconds = SECONDS.fullmatch(response.headers.get("Retry-After", ""))
        if seconds and isinstance(error, Unavailable):
            error.retry_after_s = float(seconds[0])
        return error

    async def _events(self, response: "ClientResponse") -> AsyncGenerator[tuple[bytes, bytes], None]:
        """Name and data of the events of a report. One that tells a failure is raised."""
        async for name, data in read_events(response.content):
            if name == b"error":
                values = read_object(data) or {}
                status = values.get("status")
                raise self._error(status if isinstance(status, int) and status >= 400 else 500, values)
            yield name, data

    def _error(self, status: int, values: Mapping[str, Any]) -> MedImageError:
        """An error that the endpoint tells; if not in a text, by its status."""
        message = values.get("message")
        text = message if isinstance(message, str) and message.strip() else explanation(status)
        if status == 401 and self._endpoint.key is None:
            text = f"{text}; expected api_key, which was not given"
        request_id = values.get("request_id")
        return scoring_error(
            status,
            self._without_key(text),
            row=values.get("row"),
            column=values.get("column"),
            request_id=self._without_key(request_id) if isinstance(request_id, str) else None,
        )

    def _without_key(self, text: str) -> str:
        return text if self._endpoint.key is None else text.replace(self._endpoint.key, "[api_key]")


def without_row(error: MedImageError) -> MedImageError:
    """Of the one study in a request; its caller has given no rows."""
    if isinstance(error, InvalidInput):
        return InvalidInput(error.reason, column=error.column, status=error.status, request_id=error.request_id)
    error.row = None
    return error


def explanation(status: int) -> str:
    """What an answer without a message means; a body of a proxy stays out of it."""
    if 300 <= status < 400:
        return f"HTTP {status}, a redirect, which is not followed; expected the url that it leads to"
    if status in (401, 403):
        return f"HTTP {status}, the server refuses the key or needs one"
    return not_scoring(status)
