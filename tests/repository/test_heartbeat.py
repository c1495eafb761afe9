"""When a process counts as hung: after silence that we have listened to."""

import pytest

from medimage_server import heartbeat
from medimage_server.heartbeat import Silence


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(heartbeat, "monotonic", lambda: now[0])
    return now


def look(silence, clock, said, seconds):
    """Whether it lasts too long, looked at ten times a second."""
    lasted = False
    for _ in range(round(seconds * 10)):
        clock[0] += 0.1
        lasted = silence.lasts(said)
    return lasted


def test_silence_lasts_from_the_last_sign_of_life(clock):
    heard = Silence(10.0)
    assert not look(heard, clock, 1, 9.0)
    assert not look(heard, clock, 2, 9.5)
    assert look(heard, clock, 2, 1.0)


def test_time_in_which_nobody_listened_does_not_count(clock):
    """As when the supervisor was stopped with all others, or the machine slept."""
    heard = Silence(10.0)
    heard.lasts(1)
    clock[0] += 3600.0
    assert not heard.lasts(1)
    assert look(heard, clock, 1, 11.0)


def test_process_that_never_beats_is_not_judged(clock):
    assert not look(Silence(10.0), clock, None, 60.0)
