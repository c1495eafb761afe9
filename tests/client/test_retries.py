"""What is tried again, how often, and for how long."""

import asyncio

import pytest

from medimage_client import errors
from medimage_client.constants import DEFAULT_RETRIES
from medimage_client.wire.retries import delay_s, with_retries


def failing(error, times):
    """An attempt that fails so often, then answers with the number of attempts; each is noted in `attempts`."""
    attempts = []

    async def attempt(seconds_left):
        attempts.append(seconds_left)
        if len(attempts) <= times:
            raise error
        return len(attempts)

    return attempt, attempts


@pytest.mark.parametrize(
    "error",
    [
        errors.TransportError("reset"),
        errors.Unavailable("queue is full"),
        errors.Unavailable("slow down", status=429),
        errors.NotReady("loading"),
    ],
    ids=["transport", "503", "429", "not-ready"],
)
async def test_failed_connection_and_overload_are_tried_again(error, no_delay):
    attempt, _ = failing(error, times=DEFAULT_RETRIES)
    assert await with_retries(attempt, retries=DEFAULT_RETRIES, timeout=60) == DEFAULT_RETRIES + 1


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidInput("bad"),
        errors.NotFound("no model"),
        errors.ServerError("failed"),
        errors.ResponseError("forbidden", status=403),
        errors.RequestTimeout("late"),
    ],
    ids=["400", "404", "500", "403", "504"],
)
async def test_other_errors_are_final(error, no_delay):
    attempt, attempts = failing(error, times=1)
    with pytest.raises(type(error)):
        await with_retries(attempt, retries=3, timeout=60)
    assert len(attempts) == 1


async def test_last_failure_is_raised_when_no_retry_is_left(no_delay):
    attempt, attempts = failing(errors.Unavailable("queue is full"), times=10)
    with pytest.raises(errors.Unavailable, match="queue is full"):
        await with_retries(attempt, retries=2, timeout=60)
    assert len(attempts) == 3


async def test_last_failure_is_raised_at_once_when_the_wait_would_pass_the_time_limit():
    attempt, attempts = failing(errors.TransportError("refused"), times=10)
    with pytest.raises(errors.TransportError, match="refused"):
        await with_retries(attempt, retries=5, timeout=0.2)  # the first delay is at least 0.25 s
    assert len(attempts) == 1


async def test_attempt_under_way_at_the_time_limit_is_a_timeout():
    async def attempt(seconds_left):
        assert 0 < seconds_left <= 0.01
        await asyncio.Event().wait()

    with pytest.raises(errors.RequestTimeout, match=r"no answer within 0\.01 s") as late:
        await with_retries(attempt, retries=5, timeout=0.01)
    assert late.value.status == 504


@pytest.fixture
def waits(monkeypatch):
    """Seconds that are waited, in no time."""
    seconds = []

    async def sleep(delay):
        seconds.append(delay)

    monkeypatch.setattr("medimage_client.wire.retries.asyncio.sleep", sleep)
    return seconds


@pytest.mark.parametrize(
    ("retry_after_s", "shortest", "longest"), [(0, 0.25, 0.5), (7, 7.25, 7.5), (59.9, 60, 60), (3600, 60, 60)]
)
async def test_server_that_asks_for_a_longer_wait_gets_it_within_a_bound(waits, retry_after_s, shortest, longest):
    error = errors.Unavailable("full", status=429)
    error.retry_after_s = retry_after_s
    attempt, _ = failing(error, times=1)
    assert await with_retries(attempt, retries=1, timeout=100) == 2
    (wait,) = waits
    assert shortest <= wait <= longest


async def test_server_that_asks_for_a_wait_past_the_time_limit_is_not_waited_for(waits):
    error = errors.Unavailable("full", status=503)
    error.retry_after_s = 7
    attempt, attempts = failing(error, times=1)
    with pytest.raises(errors.Unavailable, match="full"):
        await with_retries(attempt, retries=5, timeout=5)
    assert (len(attempts), waits) == (1, [])


def test_delays_double_up_to_a_bound_and_are_shortened_at_random_by_up_to_half(monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0.0)
    assert [delay_s(n) for n in range(6)] == [0.5, 1, 2, 4, 8, 8]
    monkeypatch.setattr("random.random", lambda: 1.0)
    assert [delay_s(n) for n in range(6)] == [0.25, 0.5, 1, 2, 4, 4]
