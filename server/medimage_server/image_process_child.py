"""`python -m medimage_server.image_process_child`: the child of `image_process`, which has its limits.

It reads a pickled function and then jobs from standard input, and ends with that. An image comes, and its pixels go,
through memory that it shares with its parent.
"""

import ctypes
import gc
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable

import numpy as np

from medimage_server.errors import InvalidInput
from medimage_server.image_process import DONE, FAILED, INVALID, JOB, MAX_REPLY_BYTES, OUT_OF_MEMORY, READY
from medimage_server.image_requests import Pixels

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # linux/prctl.h


def main() -> None:
    parent, memory, cpu_s, memory_bytes = map(int, sys.argv[1:])
    end_with_parent(parent)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    preprocess = pickle.load(requests)
    take_away()
    limit_memory(memory_bytes)
    os.write(replies, READY)
    while job := requests.read(JOB.size):
        size, arguments_size = JOB.unpack(job)
        arguments = pickle.loads(requests.read(arguments_size))
        limit_cpu(cpu_s)
        os.write(replies, answer(preprocess, memory, size, arguments)[:MAX_REPLY_BYTES])
        gc.collect()  # of this image alone: Pillow has cycles that hold pixels


def answer(preprocess: Callable[..., Pixels], memory: int, size: int, arguments: tuple[object, ...]) -> bytes:
    """Preprocess the image that lies in the memory, put the pixels in its place, and return the reply."""
    try:
        write_pixels(memory, preprocess(os.pread(memory, size, 0), *arguments))
    except InvalidInput as error:
        return INVALID + str(error).encode()
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:  # its type and place, and not its text, which may quote the image
        return FAILED + f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}".encode()
    return DONE


def write_pixels(memory: int, pixels: Pixels) -> None:
    os.ftruncate(memory, 0)
    os.pwrite(memory, np.ascontiguousarray(pixels).data, 0)


def end_with_parent(parent: int) -> None:
    """Also in the middle of an image, and when stopped. The kernel goes by the thread that started this process."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or prctl(PR_SET_DUMPABLE, 0) != 0:  # no core file with an image
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(1)


def take_away() -> None:
    """What a decoder might write to, and what a parent may have set for signals that the limits need."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    gc.freeze()


def limit_memory(memory_bytes: int) -> None:
    with open("/proc/self/statm") as file:
        at_rest = int(file.read().split()[0]) * resource.getpagesize()
    set_limit(resource.RLIMIT_AS, at_rest + memory_bytes)


def limit_cpu(cpu_s: int) -> None:
    """From now on. The kernel counts whole seconds, so that an image has up to one more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    set_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s)


def set_limit(kind: int, soft: int) -> None:
    """Or what an operator allows, if that is less."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
