"""Signs of life of Triton's Python models, by which a supervisor tells a process that hangs from one that is at work.

A thread of each process writes the time, which it can as long as Python runs there: it does not while the process is
stopped, or while a library holds Python's lock for ever. Triton itself notices neither.
"""

import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic

FOLDER_VARIABLE = "MEDIMAGE_HEARTBEATS"  # of the environment of Triton and its models
EVERY_S = 1.0


def start() -> None:
    """Beat from now on, to the end of this process; nothing where nobody listens."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        threading.Thread(target=_beat, args=(Path(folder, str(os.getpid())),), daemon=True).start()


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
        while True:
            os.pwrite(descriptor, struct.pack("d", monotonic()), 0)
            threading.Event().wait(EVERY_S)
