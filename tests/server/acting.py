"""Functions for a child of ImageProcess that do what no preprocessing should; the "image" says what."""

import ctypes
import os
import signal
import threading
import time

import numpy as np

SHAPE = (4,)


def act(data, *arguments):
    """Four bytes, by the word in the data."""
    return np.array(ACTS[data](*arguments), dtype=np.uint8)


def loop_for_ever():
    while True:
        pass


def allocate_for_ever():
    kept = []
    while True:
        kept.append(bytes(10**6))


def fail():
    raise RuntimeError(f"cannot work on {' '.join(('Jane', 'Doe'))}")


def burn():
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass
    return 1, 2, 3, 4


def count_threads():
    return threading.active_count(), len(os.listdir("/proc/self/task")), 0, 0


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
    return 1, 2, 3, 4


ACTS = {
    b"good": lambda *numbers: numbers or (1, 2, 3, 4),
    b"loop": loop_for_ever,
    b"allocate": allocate_for_ever,
    b"fail": fail,
    b"burn": burn,
    b"crash": lambda: ctypes.string_at(0),
    b"abort": os.abort,
    b"exit": lambda: os._exit(0),
    b"stop": stop,
    b"threads": count_threads,
}
