"""One event loop in a thread of its own, shared by all synchronous clients of the process.

One, because several asyncio gRPC engines in a process disturb each other, and clients are cheap that way.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any, Protocol, TypeVar

from medimage_client.wire.triton_workarounds import CANCEL_AFTER_S

T = TypeVar("T")


STARTING = threading.RLock()  # reentrant: the garbage collector may close a client in the middle
CLOSING_TIME_S = CANCEL_AFTER_S + 1.0  # for open connections to close at the end; what takes longer is cancelled


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop, started by the first call; it ends with the interpreter."""
    with STARTING:
        return start()


@cache
def start() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="medimage_client", daemon=True)
    thread.start()
    # Finalizers run at exit from the youngest to the oldest: the clients' own, made later, come before this one.
    weakref.finalize(thread, stop, loop, thread)
    return loop


def leave_to_parent() -> None:
    """In a forked child: the loop's thread is not there, the lock may be held for ever, so the child starts its own."""
    global STARTING
    STARTING = threading.RLock()
    start.cache_clear()


os.register_at_fork(after_in_child=leave_to_parent)


def submit(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine's result; Ctrl-C cancels it."""
    future = submit(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class Closeable(Protocol):
    async def close(self) -> None: ...


def close_forgotten(client: Closeable, pid: int) -> None:
    """The finalizer of a synchronous client, made in process `pid`."""
    if os.getpid() == pid:  # else the connection belongs to the parent of this forked child
        # Not waited for: the garbage collector may call this on the background loop itself.
        submit(client.close())


def stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if not thread.is_alive():  # it stayed in the parent of a forked child
        return

    async def finish() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=CLOSING_TIME_S)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        with suppress(
            TimeoutError
        ):  # what holds connections, see wire/connection.py; in a forked child nothing else does
            await asyncio.wait_for(loop.shutdown_asyncgens(), CLOSING_TIME_S)
        loop.stop()

    asyncio.run_coroutine_threadsafe(finish(), loop)
    thread.join()
    loop.close()
