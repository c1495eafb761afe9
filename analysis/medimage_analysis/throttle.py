"""How many requests are under way at one server: more while its answers come soon, fewer when it refuses."""

import asyncio
from typing import Self

FIRST = 4  # requests in flight, as of a client
# 64 images: four of the largest batches of the encoder, so that the next one waits while one is computed. The server's
# queue takes 64 requests, of other callers too.
MOST = 16
SLOW_S = 10.0  # an answer after which no more are sent at once: the server is busy for longer than any queue helps


class Throttle:
    """Holds requests back: `async with throttle` is one of them. Additive increase, multiplicative decrease."""

    def __init__(self) -> None:
        self.allowed = float(FIRST)
        self._in_flight = 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.allowed))
            self._in_flight += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def answered(self, seconds: float) -> None:
        if seconds < SLOW_S:
            self.allowed = min(MOST, self.allowed + 1 / self.allowed)

    def refused(self) -> None:
        self.allowed = max(1.0, self.allowed / 2)
