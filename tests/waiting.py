"""Waiting for what comes about by itself, such as a count that a server keeps."""

from time import monotonic, sleep

WAIT_S = 30.0  # far more than it takes, so that a hang fails the test and not the machine
POLL_S = 0.01


def wait_until(condition, *, within=WAIT_S, what="the condition"):
    """Wait until `condition()` is true, and fail the test where it is not within so many seconds."""
    deadline = monotonic() + within
    while not condition():
        assert monotonic() < deadline, f"{what} has not come about within {within:g} s"
        sleep(POLL_S)
