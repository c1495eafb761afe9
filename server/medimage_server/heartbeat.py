"""Signs of life, by which a supervisor tells a process that hangs from one that is at work.

In each process of Triton's Python models a thread writes the time, which it can as long as Python runs there: it does
not while the process is stopped, or while a library holds Python's lock for ever. Triton itself notices neither.
"""

import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic

FOLDER_VARIABLE = "MEDIMAGE_HEARTBEATS"  # of the environment of Triton and its models
EVERY_S = 1.0
LOOK_S = 1.0  # that one look counts for at most: in a longer pause we were stopped ourselves, and heard nobody

_stopped = threading.Event()


def start() -> None:
    """Beat from now on, to the end of this process or to `stop`; nothing where nobody listens."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        _stopped.clear()
        threading.Thread(target=_beat, args=(Path(folder, str(os.getpid())),), daemon=True).start()


def stop() -> None:
    """Give no more signs of life, by which a process that cannot do its work has its supervisor end it."""
    _stopped.set()


def last(folder: Path, pid: int) -> float | None:
    """When a process has last beaten, as `monotonic` of any process of this machine; None if it never has."""
    try:
        (beaten,) = struct.unpack("d", (folder / str(pid)).read_bytes())
    except (OSError, struct.error):
        return None
    return float(beaten)


def _beat(file: Path) -> None:
    with suppress(OSError):  # /dev/shm is full, or the supervisor has gone with the folder: nobody judges us
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, mode=0o600)
        while not _stopped.is_set():
            os.pwrite(descriptor, struct.pack("d", monotonic()), 0)
            _stopped.wait(EVERY_S)


class Silence:
    """Measures the time without a change in what a process says, as far as we listened.

    Args:
        limit_s: after which it lasts too long.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._heard: object = None
        self._seconds = 0.0
        self._looked_at = monotonic()

    def lasts(self, said: object) -> bool:
        """Whether it has lasted too long.

        Args:
            said: what it says now, such as a time or a count; None if it never says anything, which is no silence.
        """
        now = monotonic()
        self._seconds += min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        if said is None or said != self._heard:
            self._heard, self._seconds = said, 0.0
        return self._seconds > self._limit_s
