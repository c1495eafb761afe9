"""The queue of a bulk run: what is to be embedded, and what is to be tried again."""

import asyncio
from collections import deque

from medimage_analysis.shard import Batch

AHEAD = 8  # batches that are read of the plan before their turn; base64 is in them


class Batches:
    """Those that wait to be embedded, of which few are read ahead, and a count of those that are not done."""

    def __init__(self) -> None:
        self._fresh: deque[Batch] = deque()
        self._again: list[Batch] = []
        self._n_open = 1  # the producer
        self._changed = asyncio.Condition()

    @property
    def is_over(self) -> bool:
        return self._n_open == 0

    async def put(self, batch: Batch) -> None:
        """Wait for room."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._fresh) < AHEAD)
            self._fresh.append(batch)
            self._n_open += 1
            self._changed.notify_all()

    async def put_back(self, batch: Batch, *, is_part: bool = False) -> None:
        async with self._changed:
            self._again.append(batch)
            self._n_open += is_part
            self._changed.notify_all()

    async def take(self) -> Batch | None:
        """None when all are done."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._again or self._fresh or self.is_over)
            batch = self._again.pop() if self._again else self._fresh.popleft() if self._fresh else None
            self._changed.notify_all()
            return batch

    async def done(self) -> None:
        """Of one batch, or of the producer."""
        async with self._changed:
            self._n_open -= 1
            self._changed.notify_all()
