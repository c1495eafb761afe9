"""Calls timed side by side: in alternating rounds, so that a noisy machine disturbs them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Timing:
    """One call over all rounds, in milliseconds, and its vectors against those of the first call."""

    first_ms: float  # not one of the rounds: it also allocates and, for torch.compile, compiles
    times_ms: list[float]
    max_abs_difference: float  # of one number
    min_cosine: float  # of one vector

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)

    def as_json(self) -> dict[str, object]:
        return {
            "median_ms": self.median_ms,
            "min_ms": min(self.times_ms),
            "max_ms": max(self.times_ms),
            "first_ms": self.first_ms,
            "times_ms": self.times_ms,
            "max_abs_difference": self.max_abs_difference,
            "min_cosine": self.min_cosine,
        }


def alternate(calls: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    """Run every call once unmeasured, then all of them in turn, `rounds` times.

    Each call gives vectors (B, E); the first one's are what the others are compared with.
    """
    first = {name: timed(call) for name, call in calls.items()}
    reference = next(iter(first.values()))[0]
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            times_ms[name].append(timed(calls[name])[1])
        order.append(order.pop(0))  # so that nobody always starts
    return {
        name: Timing(first_ms, times_ms[name], *difference(reference, vectors))
        for name, (vectors, first_ms) in first.items()
    }


def timed(call: Call) -> tuple[np.ndarray, float]:
    """What the call gives, and its milliseconds."""
    started = time.perf_counter()
    vectors = call()
    return vectors, 1e3 * (time.perf_counter() - started)


def difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Largest difference of one number, and the least cosine of two vectors (B, E)."""
    want, got = want.astype(np.float64), got.astype(np.float64)
    cosine = (want * got).sum(-1) / (np.linalg.norm(want, axis=-1) * np.linalg.norm(got, axis=-1))
    return float(np.abs(want - got).max()), float(cosine.min())
