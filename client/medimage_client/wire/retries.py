"""Retries with jittered exponential back-off, within a time limit."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

from medimage_client.constants import FIRST_DELAY_S, JITTER, MAX_DELAY_S, MAX_RETRY_AFTER_S
from medimage_client.errors import RequestTimeout, TransportError, Unavailable

T = TypeVar("T")


async def with_retries(attempt: Callable[[float], Awaitable[T]], *, retries: int, timeout: float) -> T:
    """Await `attempt(seconds left)`, again after a failed connection or an overloaded server.

    Every request to the models may be repeated: none changes anything on the server. Other errors are final.

    Raises:
        RequestTimeout: an attempt was still under way after `timeout` seconds.
        TransportError, Unavailable: of the last attempt, when no retry or no time for one is left.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    failures = 0
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                return await attempt(deadline - clock())
        except TimeoutError:
            raise RequestTimeout(f"no answer within {timeout:g} s") from None
        except (TransportError, Unavailable) as error:
            delay = delay_after(error, failures)
            if failures == retries or clock() + delay >= deadline:
                raise
        await asyncio.sleep(delay)
        failures += 1


def with_blocking_retries(attempt: Callable[[float], T], *, retries: int, timeout: float) -> T:
    """As `with_retries`, for an attempt that blocks its thread and keeps to the seconds left by itself."""
    deadline = time.monotonic() + timeout
    for failures in count():
        try:
            return attempt(deadline - time.monotonic())
        except (TransportError, Unavailable) as error:
            delay = delay_after(error, failures)
            if failures == retries or time.monotonic() + delay >= deadline:
                raise
        time.sleep(delay)
    raise AssertionError("count() ends")


def delay_after(error: TransportError | Unavailable, failures: int) -> float:
    """Seconds to wait after an error, before which there were so many failures."""
    delay = delay_s(failures)
    if not isinstance(error, Unavailable):
        return delay
    return min(MAX_RETRY_AFTER_S, error.retry_after_s + delay)  # added, so that clients do not return together


def delay_s(failures: int) -> float:
    """Seconds to wait after so many failures before the one just seen."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**failures) * (1 - JITTER * random.random())
