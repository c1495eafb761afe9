"""Calls timed side by side: in alternating rounds, so that a noisy machine disturbs them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Result = TypeVar("Result")
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timed(Generic[Result]):
    """One call over all rounds, in milliseconds."""

    result: Result  # of the first call
    first_ms: float  # not one of the rounds: it also allocates and, for torch.compile, compiles
    times_ms: list[float]


def alternate(
    calls: Mapping[str, Callable[[], Result]], rounds: int, clock: Clock = time.perf_counter
) -> dict[str, Timed[Result]]:
    """Make every call once unmeasured, then all of them in turn, `rounds` times."""
    first = {name: timed(call, clock) for name, call in calls.items()}
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            times_ms[name].append(1e3 * timed(calls[name], clock)[1])
        order.append(order.pop(0))  # so that nobody always starts
    return {name: Timed(result, 1e3 * seconds, times_ms[name]) for name, (result, seconds) in first.items()}


def timed(call: Callable[[], Result], clock: Clock = time.perf_counter) -> tuple[Result, float]:
    """What a call gives, and its seconds."""
    started = clock()
    result = call()
    return result, clock() - started


def spread(times_ms: Sequence[float]) -> dict[str, float]:
    """As the results have it: the median, and the range."""
    return {"median_ms": statistics.median(times_ms), "min_ms": min(times_ms), "max_ms": max(times_ms)}
