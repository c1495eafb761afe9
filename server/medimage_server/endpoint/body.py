"""Read a request's body within limits of size, time and memory."""

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Receive

from medimage_server.endpoint.admission import Share
from medimage_server.endpoint.discarding import discard
from medimage_server.endpoint.head import SPACE, listed, only
from medimage_server.endpoint.refusal import ClientGone, Refusal

STALL_LIMIT_S = 5.0  # without a byte: who sends half a body is told so
GRACE_S = 8.0  # then a body must have come at this rate from its first byte on: who drips keeps no place for long
MIN_BYTES_S = 16 * 1024
TOTAL_LIMIT_S = 120.0  # for all of it: 64 MB at 4.5 Mbit/s
JSON = "application/json"


class Body:
    """The body of one request.

    Args:
        share: of the memory, where its bytes are counted.
    """

    def __init__(self, headers: Headers, receive: Receive, *, max_bytes: int, share: Share) -> None:
        self._headers = headers
        self._receive = receive
        self._max_bytes = max_bytes
        self._share = share
        self._is_complete = False
        self.n_bytes = 0  # that have arrived

    async def read(self) -> bytes:
        """All of it.

        Raises:
            Refusal: 400 two types; 415 not JSON, not UTF-8, or compressed; 413 larger than the limit; 408 too slow;
                429 others hold all memory.
            ClientGone: it ended before.
        """
        check_content_type(self._headers)
        self._share.take(self._stated_bytes())
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(GRACE_S) as limit:
                started = asyncio.get_running_loop().time()
                while not self._is_complete:
                    parts.append(await self._next_part())
                    limit.reschedule(started + time_limit_s(self.n_bytes))
        except TimeoutError:
            self._is_complete = True  # nothing to discard: it would be waited for once more
            raise Refusal(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body came too slowly: {self.n_bytes} bytes, then nothing in time",
                {"connection": "close"},  # what may still come of it would be read as the next request
            ) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def discard(self) -> None:
        """Read on without keeping anything, for a short time, if the client still sends."""
        if not self._is_complete:
            await discard(self._headers, self._receive)

    def _stated_bytes(self) -> int:
        stated = self._headers.get("content-length", "0")  # chunked bodies state none
        n_bytes = int(stated) if stated.isdecimal() and len(stated) < 20 else self._max_bytes + 1
        if n_bytes > self._max_bytes:
            raise self._too_large()
        return n_bytes

    async def _next_part(self) -> bytes:
        async with asyncio.timeout(STALL_LIMIT_S):
            part = await self._next_message()
        self.n_bytes += len(part)
        if self.n_bytes > self._max_bytes:
            raise self._too_large()
        if self.n_bytes > self._share.held_bytes:
            self._share.take(self.n_bytes - self._share.held_bytes)
        return part

    async def _next_message(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._is_complete = True
            raise ClientGone
        self._is_complete = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    def _too_large(self) -> Refusal:
        return Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is larger than {self._max_bytes} bytes, which is the limit; send fewer rows in a request",
        )


def time_limit_s(n_bytes: int) -> float:
    """Seconds after the first byte by which the next is due, when so many have come; for answers as for bodies."""
    return min(GRACE_S + n_bytes / MIN_BYTES_S, TOTAL_LIMIT_S)


def check_content_type(headers: Headers) -> None:
    content_type, *parameters = (only(headers, "content-type") or "").lower().split(";")
    if content_type.strip(SPACE) != JSON:  # the words of Azure's inference server
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Expects Content-Type to be {JSON}")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip(SPACE) == "charset" and value.strip(SPACE + "\"'") not in ("utf-8", "utf8"):
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the charset is not supported; JSON is sent in UTF-8")
    encoding = listed(headers, "content-encoding").strip(SPACE).lower()
    if "content-encoding" in headers and encoding != "identity":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Encoding is not supported; send the JSON as it is")
