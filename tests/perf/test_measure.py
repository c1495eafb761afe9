"""The stopwatch of the cases, on calls of known length, and their report."""

import json

import pytest

from perf import measure
from perf.measure import Report, Timed, alternate, side_by_side


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

    found = side_by_side({"a": call("a", 9, 1, 2, 3), "b": call("b", 7, 4, 5, 6)}, rounds=3, clock=clock)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [(timing.result, timing.first_ms) for timing in found.values()] == [("A", 9000), ("B", 7000)]
    assert [timing.times_ms for timing in found.values()] == [[1000, 2000, 3000], [4000, 5000, 6000]]


def test_what_calls_give_is_kept_by_round():
    numbers = iter(range(6))
    assert alternate({"a": lambda: next(numbers), "b": lambda: next(numbers)}, 3) == {"a": [0, 3, 4], "b": [1, 2, 5]}


def test_spread_is_the_median_and_the_range():
    timing = Timed(result=None, first_ms=99.0, times_ms=[4.0, 1.0, 9.0])
    assert timing.spread() == {"median_ms": 4.0, "min_ms": 1.0, "max_ms": 9.0}


@pytest.mark.parametrize("quick", [True, False])
def test_a_report_is_on_disk_after_each_part_with_machine_and_commit(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "QUICK_RESULTS", tmp_path / "quick")
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "full")
    report = Report("case", quick=quick)
    path = tmp_path / ("quick" if quick else "full") / "case.json"
    assert report.path == path
    report.put(floor={"fp32": 1})
    on_disk = json.loads(path.read_text())
    assert on_disk.pop("machine")["commit"] == report.content["machine"]["commit"]
    assert on_disk == {"floor": {"fp32": 1}}
    report.put(floor={"int8": 3}, machine={"device": "cpu"}, rows=[1])
    report.put(rows=[2])
    on_disk = json.loads(path.read_text())
    assert on_disk["machine"]["device"] == "cpu" and on_disk["machine"]["cpu"]
    assert (on_disk["floor"], on_disk["rows"]) == ({"fp32": 1, "int8": 3}, [2])
    assert [file.name for file in path.parent.iterdir()] == ["case.json"]
