"""What a run tells of itself, and how it goes by a server's answers."""

import asyncio

import pytest

from medimage_analysis import progress
from medimage_analysis.progress import Progress, duration
from medimage_analysis.throttle import FIRST, MOST, Throttle


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (300, "5 min"), (7500, "2 h 5 min"), (47 * 3600, "47 h 0 min"), (76 * 3600, "3 d 4 h")],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_log_gets_a_line_a_minute_with_the_rate_of_this_start(monkeypatch, capsys):
    clock = iter([0.0, 30.0, 60.0, 60.0, 61.0, 120.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    shown = Progress(10_000, 4000)
    shown.add(100, 0)
    shown.add(1000, 4)
    assert capsys.readouterr().err == "5,104 of 10,000 images, 18.4/s, 4 min left, 4 failed\n"
    shown.add(4896, 0)
    shown.end()
    assert capsys.readouterr().err == "10,000 of 10,000 images, 50.0/s, 4 failed\n"


async def test_a_throttle_lets_more_through_while_answers_come_soon_and_half_after_a_refusal():
    throttle = Throttle()
    assert int(throttle.allowed) == FIRST
    throttle.answered(60.0)
    assert int(throttle.allowed) == FIRST
    for _ in range(1000):
        throttle.answered(0.1)
    assert throttle.allowed == MOST
    throttle.refused()
    assert throttle.allowed == MOST / 2
    for _ in range(10):
        throttle.refused()
    under_way = most = 0

    async def request():
        nonlocal under_way, most
        async with throttle:
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(request() for _ in range(5)))
    assert most == 1
