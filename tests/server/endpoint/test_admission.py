"""Bounds on requests and on memory, and when a caller who is refused is to come again."""

from contextlib import ExitStack

import pytest

from medimage_server.endpoint import admission
from medimage_server.endpoint.admission import MAX_RETRY_AFTER_S, Gate, Memory
from medimage_server.endpoint.responses import Refusal


@pytest.fixture
def clock(monkeypatch):
    clock = type("Clock", (), {"now": 100.0})()
    monkeypatch.setattr(admission, "monotonic", lambda: clock.now)
    return clock


def refused(gate):
    """What a caller is told who comes to a full gate."""
    with pytest.raises(Refusal) as error, gate.entered():
        pass
    return error.value


def retry_after_s(gate):
    return int(refused(gate).headers["retry-after"])


def answer(gate, clock, *, seconds):
    """One answer, after so long."""
    with gate.entered():
        clock.now += seconds


def test_gate_lets_so_many_in_and_then_one_for_each_that_leaves():
    gate = Gate(2, "requests for a model")
    with gate.entered():
        with gate.entered():
            assert gate.inside == 2
            error = refused(gate)
        assert error.status == 429
        assert "2 requests for a model are at work or waiting" in error.message
        with gate.entered():
            assert gate.inside == 2
    assert gate.inside == 0


def test_gate_gives_the_place_back_after_a_failure():
    gate = Gate(1, "requests")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate.entered():
            raise ZeroDivisionError
    assert gate.inside == 0
    with gate.entered():
        refused(gate)
        assert gate.inside == 1


def test_retry_after_is_a_second_at_least_and_half_a_minute_at_most(clock):
    fast, slow = Gate(1, "requests"), Gate(1, "requests")
    for _ in range(50):
        answer(fast, clock, seconds=0.001)
        answer(slow, clock, seconds=1000)
    with fast.entered(), slow.entered():
        assert retry_after_s(fast) == 1
        assert retry_after_s(slow) == MAX_RETRY_AFTER_S == 30


def test_retry_after_is_the_time_in_which_half_of_the_queue_is_answered(clock):
    told = []
    for limit in (2, 4, 8, 12):
        gate = Gate(limit, "requests")
        for _ in range(200):  # the mean is a moving one
            answer(gate, clock, seconds=4.0)
        with ExitStack() as held:
            for _ in range(limit):
                held.enter_context(gate.entered())
            told.append(retry_after_s(gate))
    assert told == [4, 8, 16, 24]


def test_time_without_work_does_not_count(clock):
    gate = Gate(4, "requests")
    for _ in range(200):
        answer(gate, clock, seconds=2.0)
        clock.now += 1000  # a quiet night
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(gate.entered())
        assert retry_after_s(gate) == 4


def test_memory_counts_what_is_held_and_refuses_more():
    memory = Memory(100)
    with memory.share() as one:
        one.take(60)
        with memory.share() as other:
            other.take(40)
            with pytest.raises(Refusal) as error:
                other.take(1)
            assert (error.value.status, error.value.headers) == (429, {"retry-after": "1"})
            assert (memory.held_bytes, other.held_bytes) == (100, 40)  # what is refused is not counted
        one.take(1)
        assert memory.held_bytes == 61
    assert memory.held_bytes == 0


def test_one_body_alone_is_let_in_whether_its_size_is_stated_or_not():
    memory = Memory(100)
    with memory.share() as one:
        one.take(150)
    with memory.share() as one, memory.share() as other:
        one.take(80)
        one.take(70)
        with pytest.raises(Refusal):
            other.take(1)
        assert memory.held_bytes == 150


def test_share_is_given_back_when_its_request_fails():
    memory = Memory(100)
    with pytest.raises(ZeroDivisionError), memory.share() as one:
        one.take(60)
        raise ZeroDivisionError
    assert memory.held_bytes == 0
