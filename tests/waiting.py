"""Waiting for what comes about by itself, such as a count that a server keeps."""

import asyncio
from time import monotonic, sleep

WAIT_S = 30.0  # far more than it takes, so that a hang fails the test and not the machine
POLL_S = 0.01


def wait_until(condition, *, within=WAIT_S, what="the condition"):
    """Wait until `condition()` is true, and fail the test where it is not within so many seconds."""
    deadline = monotonic() + within
    while not condition():
        assert monotonic() < deadline, f"{what} has not come about within {within:g} s"
        sleep(POLL_S)


async def until(condition, *, within=WAIT_S):
    """`wait_until` for a test that runs in the event loop."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(POLL_S / 4)


async def soon():
    """Let what can go on in this event loop go on."""
    for _ in range(100):
        await asyncio.sleep(0)
