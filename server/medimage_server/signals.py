"""End a command in the foreground as asked: Ctrl-C, SIGTERM or a closed terminal leave its `with` blocks."""

import signal
import sys


def end_on_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
