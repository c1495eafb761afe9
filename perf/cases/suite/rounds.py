"""Encoders timed in alternating rounds, and their vectors compared."""

from collections.abc import Callable, Mapping

import numpy as np

from perf.measure import side_by_side

Call = Callable[[], np.ndarray]


def compare(calls: Mapping[str, Call], rounds: int) -> dict[str, dict]:
    """Time the calls side by side. Each gives vectors (B, E), which are compared with those of the first call.

    Of each: milliseconds of all rounds and before them, and the largest difference and the least cosine of a vector.
    """
    timed = side_by_side(calls, rounds)
    reference = next(iter(timed.values())).result
    found = {}
    for name, timing in timed.items():
        largest, cosine = difference(reference, timing.result)
        found[name] = {
            **timing.spread(),
            "first_ms": timing.first_ms,
            "times_ms": timing.times_ms,
            "max_abs_difference": largest,
            "min_cosine": cosine,
        }
    return found


def difference(want: np.ndarray, got: np.ndarray) -> tuple[float, float]:
    """Largest difference of one number, and the least cosine of two vectors (B, E)."""
    want, got = want.astype(np.float64), got.astype(np.float64)
    cosine = (want * got).sum(-1) / (np.linalg.norm(want, axis=-1) * np.linalg.norm(got, axis=-1))
    return float(np.abs(want - got).max()), float(cosine.min())
