"""One process that turns encoded images into pixels, and that can be ended: what it does to an image has limits.

Decoders are large, and no list of bad files is complete. So they run in a child, one image at a time, whose computing
time and memory the kernel bounds. A child that is ended takes its image with it and nothing else: the next image gets a
new one, which is started at once. The bytes travel in memory that only the two hold, and go when the image is done.
"""

import logging
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

import numpy as np

from medimage_server.errors import Cancelled, InferenceFailed, InvalidInput, Unavailable
from medimage_server.image_requests import IsCancelled, Pixels, never

log = logging.getLogger(__name__)

POLL_MS = 250  # how often a waiting parent looks whether the request was cancelled
JOB = struct.Struct("=QI")  # bytes of the image, bytes of the pickled arguments that follow
MAX_REPLY_BYTES = 4096  # PIPE_BUF: what a pipe takes and gives in one piece
READY, DONE, INVALID, OUT_OF_MEMORY, FAILED = b"R", b"D", b"I", b"M", b"F"  # a reply's first byte; a text may follow
ADVICE = "save it as baseline JPEG or as PNG"
# From outside: an operator, or the kernel for want of memory. All other signals come of what the child does.
FOREIGN_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Blocks of 4 MB and more go back to the system when they are free, or the child would grow with what it has seen.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG")  # no keys of callers, nothing of Triton


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may take; 50 megapixels of any format take less, except much compressed data of JPEG 2000."""

    cpu_s: int = 5  # of computing time, so that a busy machine refuses nothing; the kernel counts up to a second more
    memory_bytes: int = 2**30  # of address space, on top of what the child has at rest
    wall_s: float = 60.0  # for a child that is stopped, or gets no processor


class ImageProcess:
    """A child process that calls `preprocess(data, *arguments)` for one image at a time. Not for several threads.

    Args:
        preprocess: is sent to the child, and so must be picklable.
        shape: of the pixels that it returns.

    Raises:
        OSError: no process can be started.
        InferenceFailed: it ends before it is ready; its standard error says why.
    """

    def __init__(
        self, preprocess: Callable[..., Pixels], shape: Sequence[int], limits: ImageLimits | None = None
    ) -> None:
        self._preprocess, self._shape, self._limits = preprocess, tuple(shape), limits or ImageLimits()
        self._child: Child | None = Child(self._preprocess, self._limits)
        try:
            self._wait_until_ready(self._child, never)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """Of the child; None while there is none."""
        return self._child.process.pid if self._child else None

    def run(self, data: bytes, arguments: tuple[object, ...] = (), is_cancelled: IsCancelled = never) -> Pixels:
        """The pixels of one image.

        Raises:
            InvalidInput: the image cannot be used, or takes more than the limits, or brings its decoder to a crash.
            Cancelled: `is_cancelled` says so, at the start or while the child works.
            Unavailable: the child was ended from outside, or has no processor.
            InferenceFailed: `preprocess` raised something else.
        """
        child = self._child or self._start()
        if child.is_ready and child.has_ended():  # since the last image: not the doing of this one
            log.error("the process for images %s while it had none", how_ended(self._replace(child)))
            assert self._child is not None
            child = self._child
        if not child.is_ready:
            self._wait_until_ready(child, is_cancelled)
        try:
            child.send(data, arguments)
            reply = self._reply(child, is_cancelled)
            kind, text = reply[:1], reply[1:].decode(errors="replace")
            if kind == DONE:
                return child.pixels(self._shape)
        finally:
            child.forget_image()
        if kind == INVALID:
            raise InvalidInput(text)
        if kind == OUT_OF_MEMORY:
            self._replace(child)  # it may be left with little
            raise InvalidInput(f"image takes more than {self._limits.memory_bytes / 2**30:g} GB of memory; {ADVICE}")
        log.error("preprocessing of an image failed: %s", text)
        raise InferenceFailed("internal error")

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._child.end()
            self._child = None

    def __enter__(self) -> "ImageProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> "Child":
        self._child = Child(self._preprocess, self._limits)
        return self._child

    def _replace(self, child: "Child") -> int:
        """End a child and start another one; returns how the old one ended, as subprocess.Popen has it."""
        self._child = None  # should the start fail, the next image tries again
        code = child.end()
        self._start()
        return code

    def _wait_until_ready(self, child: "Child", is_cancelled: IsCancelled) -> None:
        deadline = monotonic() + self._limits.wall_s
        while not child.has_reply(POLL_MS):
            if is_cancelled():
                raise Cancelled("the request was cancelled")  # the child is as good for the next one
            if monotonic() > deadline:
                self._replace(child)
                raise Unavailable(self._no_processor())
        if child.read_reply() != READY:
            self._child = None
            log.error("the process for images %s before it was ready", how_ended(child.end()))
            raise InferenceFailed("internal error")
        child.is_ready = True

    def _reply(self, child: "Child", is_cancelled: IsCancelled) -> bytes:
        deadline = monotonic() + self._limits.wall_s
        while not child.has_reply(POLL_MS):
            if is_cancelled():
                self._replace(child)
                raise Cancelled("the request was cancelled")
            if monotonic() > deadline:
                self._replace(child)
                raise Unavailable(self._no_processor())
        if reply := child.read_reply():
            return reply
        raise self._error_of_death(self._replace(child))

    def _error_of_death(self, code: int) -> Exception:
        if code == -signal.SIGXCPU:
            return InvalidInput(f"image takes more than {self._limits.cpu_s} s of computing time to decode; {ADVICE}")
        log.error("the process for images %s", how_ended(code))
        if -code in FOREIGN_SIGNALS:
            return Unavailable("the process that decodes images was ended from outside; try again")
        return InvalidInput(f"image brings its decoder to a crash; {ADVICE}")

    def _no_processor(self) -> str:
        return f"an image was not decoded within {self._limits.wall_s:g} s on this busy machine; try again later"


class Child:
    """The process, the pipes to it, and the memory for an image and its pixels."""

    def __init__(self, preprocess: Callable[..., Pixels], limits: ImageLimits) -> None:
        self.is_ready = False
        self._memory = os.memfd_create("medimage-image")  # no file: nobody else can open it, and it ends with the two
        try:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "medimage_server.image_process_child"),
                    *map(str, (os.getpid(), self._memory, limits.cpu_s, limits.memory_bytes)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(self._memory,),
                env=child_environment(os.environ),
            )
        except BaseException:
            os.close(self._memory)
            raise
        assert self.process.stdin and self.process.stdout
        self._requests, self._replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        self._send(pickle.dumps(preprocess))

    def send(self, data: bytes, arguments: tuple[object, ...]) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._memory, memoryview(data)[written:], written)
        pickled = pickle.dumps(arguments)
        self._send(JOB.pack(len(data), len(pickled)) + pickled)

    def _send(self, message: bytes) -> None:
        """A message is much smaller than a pipe, so that this never waits for the child."""
        with suppress(BrokenPipeError):  # the end of its replies says that it is no more
            os.write(self._requests, message)

    def has_reply(self, timeout_ms: int) -> bool:
        """Whether there is a reply or the end of the process."""
        return bool(self._poll.poll(timeout_ms))

    def read_reply(self) -> bytes:
        """Nothing if the process has ended."""
        return os.read(self._replies, MAX_REPLY_BYTES)

    def pixels(self, shape: tuple[int, ...]) -> Pixels:
        pixels = np.empty(shape, dtype=np.uint8)
        if os.preadv(self._memory, [pixels.data], 0) != pixels.nbytes:
            raise InferenceFailed("internal error")
        return pixels

    def forget_image(self) -> None:
        """Nothing of the image stays in the memory."""
        if self.process.returncode is None:
            os.ftruncate(self._memory, 0)

    def end(self) -> int:
        """Kill the process, if it has not ended, and return how it ended, as subprocess.Popen has it."""
        assert self.process.stdin and self.process.stdout
        if not self.has_ended():
            self.process.kill()
        code = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        os.close(self._memory)
        return code

    def has_ended(self) -> bool:
        """Also in the moment between the end of its replies and its own."""
        if not self.has_reply(0):
            return False
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return False
        return True


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the child needs of our environment, and the same modules to import."""
    kept = {name: environment[name] for name in KEPT_VARIABLES if name in environment}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **ONE_THREAD, **MALLOC}


def how_ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
