"""Keep a server busy with a number of requests in flight, and time each of them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np


class Load(NamedTuple):
    """What so many requests at a time took."""

    concurrency: int
    latencies_s: list[float]  # of each request, from call to answer
    seconds: float  # from the first call to the last answer

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of the requests did not exceed, interpolated."""
        return float(np.percentile(self.latencies_s, percent)) * 1e3


def run_load(call: Callable[[int], object], *, concurrency: int, requests: int) -> Load:
    """Make `call(0)` to `call(requests - 1)`, `concurrency` of them at a time, each as soon as there is room.

    The start, into an empty queue, and the end, when fewer are left, are part of the time: several times `concurrency`
    requests make them small.
    """

    def timed(number: int) -> float:
        started = time.perf_counter()
        call(number)
        return time.perf_counter() - started

    with ThreadPoolExecutor(concurrency) as pool:
        started = time.perf_counter()
        latencies = list(pool.map(timed, range(requests)))
        return Load(concurrency, latencies, time.perf_counter() - started)


def requests_for(seconds: float, *, rate: float, concurrency: int, rounds: float = 2.0) -> int:
    """How many requests fill so many seconds at that rate, yet at least `rounds` for each in flight, and 4."""
    return max(round(seconds * rate), round(rounds * concurrency), 4)
