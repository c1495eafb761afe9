"""Send an answer to a caller who may read slowly, or have gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive, Send

from medimage_server.endpoint.body import time_limit_s
from medimage_server.endpoint.refusal import ClientGone

T = TypeVar("T")

PART_BYTES = 2**16  # of an answer, sent when the caller has read the one before


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
                await send(
                    {"type": "http.response.body", "body": content[n_sent : n_sent + PART_BYTES], "more_body": True}
                )
            # uvicorn takes this end when the caller has read what goes before: until then the request holds its place
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        raise ClientGone("the client reads the answer too slowly") from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the caller hangs up.

    Args:
        receive: of a request whose body has been read: it has nothing more to tell but the end of the connection.

    Raises:
        ClientGone: it has ended.
    """
    working = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(receive())
    try:
        await asyncio.wait([working, hanging_up], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for future in (working, hanging_up):
            future.cancel()
        await asyncio.wait([working, hanging_up])
