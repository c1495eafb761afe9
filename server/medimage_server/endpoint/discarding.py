"""Read what nobody wants of a request, so that a client that only writes sees why."""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import Receive

DISCARD_LIMIT_S = 5.0


async def discard(headers: Headers, receive: Receive) -> None:
    """Read on to the end of the body without keeping anything, for a short time."""
    if headers.get("expect", "").lower() == "100-continue":  # who waits to be asked for it sends none
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_LIMIT_S):
            while (await receive()).get("more_body", False):
                pass
