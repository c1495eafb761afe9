"""The workers of the endpoint: processes that share one listening socket; started here, and looked after."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from select import select
from time import monotonic

from medimage_server.endpoint import metrics
from medimage_server.endpoint.acceptor import BACKLOG
from medimage_server.endpoint.fallback_server import FallbackServer
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.errors import LaunchError
from medimage_server.heartbeat import Silence
from medimage_server.processes import exit_of
from medimage_server.run_folder import RunFolder
from medimage_server.signals import Hangups
from medimage_server.supervisor import Service, running

START_TIMEOUT_S = 60.0
SILENT_S = 10.0  # of no sign of life, of which there are two a second; then it is started again
LATE_S = 2.5  # without one, callers are answered in its place
ABSENCE_S = 1.5  # of every worker, after which that begins; a new start mostly takes less
PIPE_BYTES = 2**16
END_MARGIN_S = 8.0  # beyond its drain: for calls that are left alone, and the last lines of the log


class Worker:
    """A worker from its start.

    Args:
        beats: a descriptor on which it gives signs of life, the first when it begins to answer.
    """

    left_out = ()

    def __init__(self, process: subprocess.Popen[bytes], beats: int) -> None:
        self.process = process
        self._beats = beats
        self._n_beats = 0
        self._heard_at = 0.0
        self._start_limit = monotonic() + START_TIMEOUT_S
        self._silence = Silence(SILENT_S)

    def is_ready(self) -> bool:
        """Whether it has begun to answer.

        Raises:
            LaunchError: it has ended, for a reason that is on standard error, or takes too long.
        """
        if self._listen() == 0 and self.process.poll() is not None:
            raise LaunchError("it ended at its start; see its message above")
        if monotonic() > self._start_limit:
            raise LaunchError(f"it was not ready after {START_TIMEOUT_S:g} s")
        return self._n_beats > 0

    def failure(self) -> str | None:
        """Why it does not serve any more, None while it does."""
        is_silent = self._silence.lasts(self._listen())
        return exit_of(self.process) or (f"gave no sign of life for {SILENT_S:g} s" if is_silent else None)

    def is_alive(self) -> bool:
        """Whether it has given a sign of life just now; less patient than `failure`."""
        self._listen()
        return exit_of(self.process) is None and monotonic() - self._heard_at < LATE_S

    def ask_to_end(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def _listen(self) -> int:
        """How many signs of life there have been."""
        while select([self._beats], [], [], 0)[0] and (beats := os.read(self._beats, PIPE_BYTES)):
            self._n_beats += len(beats)
            self._heard_at = monotonic()
        return self._n_beats


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket for all workers.

    Raises:
        LaunchError: the port is taken or not ours to open, or the host is no address of this machine.
    """
    with ExitStack() as held:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = held.enter_context(closing(socket.socket(family, socket.SOCK_STREAM)))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise LaunchError(f"cannot open score port {host}:{port}: {error.strerror}") from error
        yield listener


@contextmanager
def run_worker(
    settings: EndpointSettings, listener: socket.socket, metrics_folder: Path, number: int = 1
) -> Iterator[Worker]:
    """A worker for as long as the `with` block lasts; at its end requests under way are finished, within limits.

    Args:
        number: from 1 on; one that is started again has the number of the one before it.
    """
    beats, written_by_worker = os.pipe()
    with ExitStack() as held:
        held.callback(os.close, beats)
        try:
            descriptors = (listener.fileno(), written_by_worker)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "medimage_server.endpoint.worker_process", *map(str, descriptors)],
                stdin=subprocess.PIPE,
                pass_fds=descriptors,
                env=os.environ | {metrics.FOLDER_VARIABLE: str(metrics_folder), metrics.WORKER_VARIABLE: str(number)},
                start_new_session=True,  # Ctrl-C reaches us alone
            )
        finally:
            os.close(written_by_worker)
        held.callback(_stop, process, settings)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, which is seen later
            process.stdin.write(settings.to_json().encode() + b"\n")
            process.stdin.flush()
        yield Worker(process, beats)


def endpoint_services(settings: EndpointSettings, listener: socket.socket, folder: Path) -> list[Service[Worker]]:
    """The workers, for a supervisor; in the folder they share their numbers, see `metrics.py`.

    Raises:
        LaunchError: there is no room for the numbers.
    """
    metrics_folder = folder / "numbers"
    metrics_folder.mkdir()
    metrics.reserve(metrics_folder, settings.workers)
    return [
        Service(f"worker {n} of the endpoint", partial(run_worker, settings, listener, metrics_folder, n))
        for n in range(1, settings.workers + 1)
    ]


def _stop(process: subprocess.Popen[bytes], settings: EndpointSettings) -> None:
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(settings.drain_delay_s + settings.drain_limit_s + END_MARGIN_S)
    finally:  # also on a second Ctrl-C
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()


class WorkerPool:
    """Running workers; made by `worker_pool`."""

    def __init__(self, workers: list[Service[Worker]], fallback: FallbackServer, hangups: Hangups) -> None:
        self.workers = workers
        self._fallback = fallback
        self._hangups = hangups
        self._served_at = monotonic()

    def look(self) -> None:
        """Do what is due: see that callers are answered, and that a hangup reaches all workers."""
        ready = [worker.server for worker in self.workers if worker.server is not None and worker.is_ready]
        if any([worker.is_alive() for worker in ready]):
            self._served_at = monotonic()
            self._fallback.close()
        elif monotonic() - self._served_at > ABSENCE_S:
            self._fallback.open()
        if self._hangups.came():
            for worker in ready:
                worker.process.send_signal(signal.SIGHUP)


@contextmanager
def worker_pool(
    settings: EndpointSettings, fallback: FallbackServer, run: RunFolder, hangups: Hangups
) -> Iterator[WorkerPool]:
    """Workers that answer on the socket of the fallback server, all of them ready, for the block.

    Raises:
        LaunchError: one cannot be started.
    """
    workers = endpoint_services(settings, fallback.listener, run.path)

    def close_listener() -> None:
        fallback.close()
        fallback.listener.close()

    with running(workers, before_end=close_listener):
        fallback.close()  # before anyone is told that it is ready
        yield WorkerPool(workers, fallback, hangups)
