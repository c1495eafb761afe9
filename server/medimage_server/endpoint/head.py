"""The head of a request: what two readers may understand differently is refused, for a proxy may stand before us."""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from medimage_server.endpoint.discarding import discard
from medimage_server.endpoint.json_response import error_response
from medimage_server.endpoint.observed import entry_of
from medimage_server.endpoint.refusal import Refusal

SPACE = " \t"  # around what a header says; str.strip() also takes a no-break space, which is part of it


def only(headers: Headers, name: str) -> str | None:
    """What a header says, None where it is not there.

    Raises:
        Refusal: 400 where it is there twice. We would read the first, another the last.
    """
    values = headers.getlist(name)
    if len(values) > 1:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"the header {name} is given {len(values)} times; expected once")
    return values[0] if values else None


def listed(headers: Headers, name: str) -> str:
    """What a header says that may be spread over several lines (RFC 9110, section 5.3)."""
    return ", ".join(headers.getlist(name))


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


class WellFramed:
    """ASGI middleware: a request whose end is not sure is refused, whatever it asks for, and its connection closed."""

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
        response = error_response(HTTPStatus.BAD_REQUEST, fault, entry.request_id, {"connection": "close"})
        await response(scope, receive, send)
