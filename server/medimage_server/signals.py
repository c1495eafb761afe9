"""What signals mean to a command in the foreground."""

import os
import signal
import sys
from collections.abc import Callable


def end_on_signals() -> None:
    """Ctrl-C and SIGTERM leave the command's `with` blocks. SIGUSR1 and SIGUSR2, which would kill it, mean nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def on_hangup(read_again: Callable[[], object]) -> None:
    """SIGHUP reads files again, as for other daemons; when the terminal was closed it ends the command.

    Where it is ignored, as under nohup, it stays ignored.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    had_terminal = has_terminal()
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(0) if had_terminal and not has_terminal() else read_again())


def has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
