"""The stopwatch of the benchmarks, on calls of known length."""

import pytest

from perf.timing import alternate, spread


class Clock:
    """Time that passes in calls alone."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rounds_alternate_and_take_turns_in_starting():
    clock, calls = Clock(), []

    def call(name, *seconds):
        lengths = iter(seconds)

        def run():
            calls.append(name)
            clock.now += next(lengths)
            return name.upper()

        return run

    found = alternate({"a": call("a", 9, 1, 2, 3), "b": call("b", 7, 4, 5, 6)}, rounds=3, clock=clock)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [(timing.result, timing.first_ms) for timing in found.values()] == [("A", 9000), ("B", 7000)]
    assert [timing.times_ms for timing in found.values()] == [[1000, 2000, 3000], [4000, 5000, 6000]]


def test_spread_is_the_median_and_the_range():
    assert spread([4.0, 1.0, 9.0]) == pytest.approx({"median_ms": 4.0, "min_ms": 1.0, "max_ms": 9.0})
