"""Encoders timed in alternating rounds, and their vectors compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from perf.timing import alternate, spread

Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Timing:
    """One call over all rounds, in milliseconds, and its vectors against those of the first call."""

    first_ms: float  # not one of the rounds
    times_ms: list[float]
    max_abs_difference: float  # of one number
    min_cosine: float  # of one vector

    def as_json(self) -> dict[str, object]:
        return {
            **spread(self.times_ms),
            "first_ms": self.first_ms,
            "times_ms": self.times_ms,
            "max_abs_difference": self.max_abs_difference,
            "min_cosine": self.min_cosine,
        }


def compare(calls: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    """Time the calls side by side. Each gives vectors (B, E), which are compared with those of the first call."""
    timed = alternate(calls, rounds)
    reference = next(iter(timed.values())).result
    return {
        name: Timing(found.first_ms, found.times_ms, *difference(reference, found.result))
        for name, found in timed.items()
    }


def difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Largest difference of one number, and the least cosine of two vectors (B, E)."""
    want, got = want.astype(np.float64), got.astype(np.float64)
    cosine = (want * got).sum(-1) / (np.linalg.norm(want, axis=-1) * np.linalg.norm(got, axis=-1))
    return float(np.abs(want - got).max()), float(cosine.min())
