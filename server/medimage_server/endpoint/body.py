"""Bodies within limits: a request's is read in bounds of size, time and memory, an answer's sent in a bound of time."""

import asyncio
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Receive, Send

from medimage_server.endpoint.admission import Share
from medimage_server.endpoint.headers import check_content_type
from medimage_server.endpoint.responses import ClientGone, Refusal

STALL_LIMIT_S = 5.0  # without a byte: who sends half a body is told so
GRACE_S = 8.0  # then a body must have come at this rate from its first byte on: who drips keeps no place for long
MIN_BYTES_S = 16 * 1024
TOTAL_LIMIT_S = 120.0  # for all of it: 64 MB at 4.5 Mbit/s
DISCARD_LIMIT_S = 5.0  # to read what nobody wants, so that a client that only writes sees why
PART_BYTES = 2**16  # of an answer, sent when the caller has read the one before


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


async def discard(headers: Headers, receive: Receive) -> None:
    """Read on to the end of the body without keeping anything, for a short time."""
    if headers.get("expect", "").lower() == "100-continue":  # who waits to be asked for it sends none
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_LIMIT_S):
            while (await receive()).get("more_body", False):
                pass


async def send_parts(send: Send, content: bytes) -> None:
    """Send the body of an answer, which the caller must read as fast as a body has to come.

    Raises:
        ClientGone: it reads too slowly; the connection is closed.
    """
    clock = asyncio.get_running_loop().time
    started = clock()
    try:
        async with asyncio.timeout(time_limit_s(0)) as limit:
            for n_sent in range(0, len(content), PART_BYTES):
                limit.reschedule(started + time_limit_s(n_sent))
                part = content[n_sent : n_sent + PART_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
            # uvicorn takes this end when the caller has read what goes before: until then the request holds its place
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        raise ClientGone("the client reads the answer too slowly") from None
