"""Bounds on what a worker takes in, so that its memory has one and nobody waits behind an endless queue."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from medimage_server.endpoint.metrics import IN_FLIGHT_BYTES
from medimage_server.endpoint.responses import too_many

MAX_RETRY_AFTER_S = 30
SMOOTHING = 0.2  # weight of the latest answer in the mean time between two answers


class Gate:
    """Lets so many in at once.

    Args:
        limit: of those inside.
        what: that they are, in the plural.
    """

    def __init__(self, limit: int, what: str) -> None:
        self.inside = 0
        self._limit = limit
        self._what = what
        self._pace = Pace()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A place for the block.

        Raises:
            Refusal: 429, all are taken.
        """
        if self.inside >= self._limit:
            raise too_many(
                f"{self.inside} {self._what} are at work or waiting, which is the limit; try again",
                seconds=self._pace.seconds_to_next(self.inside),
            )
        self.inside += 1
        self._pace.entered(self.inside)
        try:
            yield
        finally:
            self.inside -= 1
            self._pace.left()


class Pace:
    """How fast places get free: a moving mean of the time between two answers while there was work."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._since = monotonic()

    def entered(self, inside: int) -> None:
        if inside == 1:  # before, nobody was at work
            self._since = monotonic()

    def left(self) -> None:
        now = monotonic()
        self._mean_s += SMOOTHING * (now - self._since - self._mean_s)
        self._since = now

    def seconds_to_next(self, inside: int) -> int:
        """Whole seconds after which a caller who is refused now should come again: half of those inside are done."""
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(self._mean_s * inside / 2)))


class Memory:
    """Bytes of bodies and answers that are held.

    Args:
        limit_bytes: of all requests together. One alone is always let in: bodies have a limit of their own.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request holds, until the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.count(-share.held_bytes)

    def count(self, n_bytes: int) -> None:
        self.held_bytes += n_bytes
        IN_FLIGHT_BYTES.inc(n_bytes)

    def has_room(self, n_bytes: int, *, own_bytes: int) -> bool:
        """Whether a request that holds `own_bytes` of them gets so many more."""
        return self.held_bytes <= own_bytes or self.held_bytes + n_bytes <= self._limit_bytes


class Share:
    """Of one request; made by `Memory.share`."""

    def __init__(self, memory: Memory) -> None:
        self.held_bytes = 0
        self._memory = memory

    def take(self, n_bytes: int) -> None:
        """Count bytes more, before they are read or sent.

        Raises:
            Refusal: 429, others hold too many.
        """
        if not self._memory.has_room(n_bytes, own_bytes=self.held_bytes):
            raise too_many("the requests at work hold all memory for bodies and answers; try again", seconds=1)
        self.held_bytes += n_bytes
        self._memory.count(n_bytes)
