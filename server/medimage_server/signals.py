"""What signals mean to a command in the foreground."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Hangups:
    """Notes SIGHUP; made by `end_on_signals`."""

    def __init__(self) -> None:
        self._came = False
        self._had_terminal = has_terminal()

    def note(self, *_: object) -> None:
        if self._had_terminal and not has_terminal():
            sys.exit(0)
        self._came = True

    def came(self) -> bool:
        """Whether there was one since this was last asked."""
        came, self._came = self._came, False
        return came


def end_on_signals() -> Hangups:
    """Ctrl-C and SIGTERM leave the command's `with` blocks, as does SIGHUP when its terminal was closed.

    Any other SIGHUP is noted, for files that are to be read again; where it is ignored, as under nohup, it stays so.
    SIGUSR1 and SIGUSR2, which would kill the command, mean nothing.
    """
    hangups = Hangups()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGINT is of a script's command in the background
            signal.signal(number, lambda *_: sys.exit(0))
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hangups.note)
    return hangups


@contextmanager
def deferred() -> Iterator[None]:
    """For what must not be left halfway: signals that would end the command are acted on at the end of the block.

    Such is a call of gRPC's: a handler that raises within it leaves a channel that waits for ever when it is closed,
    see https://github.com/grpc/grpc/issues/19973.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in that one alone
        yield
        return
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for replaced, handler in before.items():
            signal.signal(replaced, handler)
        for late in came:
            signal.raise_signal(late)


def has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError as error:
        return error.errno != errno.ENXIO  # any other says nothing of the terminal
    return True
