"""Start the workers of the endpoint: processes that share one listening socket."""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

from prometheus_client.multiprocess import mark_process_dead

from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.errors import LaunchError
from medimage_server.processes import exit_of
from medimage_server.supervisor import Service

END_MARGIN_S = 8.0  # beyond its drain: for calls that are left alone, and the last lines of the log


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker from its start."""

    process: subprocess.Popen[bytes]
    ready: int  # a descriptor on which it says so
    left_out = ()

    def is_ready(self) -> bool:
        """Whether it has begun to answer.

        Raises:
            LaunchError: it has ended; its reason is on standard error.
        """
        has_spoken = select([self.ready], [], [], 0)[0]
        if has_spoken and not os.read(self.ready, 1):  # nothing to read is its end
            raise LaunchError("a worker of the endpoint did not start; see its message above")
        return bool(has_spoken)

    def failure(self) -> str | None:
        """Why it does not serve any more, None while it does."""
        return exit_of(self.process)

    def ask_to_end(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket for all workers. It listens from the first of them on; then connections wait in it while one restarts.

    Raises:
        LaunchError: the port is taken or not ours to open, or the host is no address of this machine.
    """
    with ExitStack() as held:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = held.enter_context(closing(socket.socket(family, socket.SOCK_STREAM)))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise LaunchError(f"cannot open score port {host}:{port}: {error.strerror}") from error
        yield listener


@contextmanager
def metrics_folder(parent: Path, n_workers: int) -> Iterator[Path]:
    """Where workers share their numbers, see `metrics.py`."""
    folder = parent / "numbers"
    folder.mkdir()
    yield folder


@contextmanager
def run_worker(settings: EndpointSettings, listener: socket.socket, metrics: Path) -> Iterator[Worker]:
    """A worker for as long as the `with` block lasts; at its end requests under way are finished, within limits."""
    ready, written_by_worker = os.pipe()
    with ExitStack() as held:
        held.callback(os.close, ready)
        try:
            descriptors = (listener.fileno(), written_by_worker)
            process = subprocess.Popen(
                [sys.executable, "-m", "medimage_server.endpoint.worker", *map(str, descriptors)],
                stdin=subprocess.PIPE,
                pass_fds=descriptors,
                env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)},
                start_new_session=True,  # Ctrl-C reaches us alone
            )
        finally:
            os.close(written_by_worker)
        held.callback(_stop, process, settings, metrics)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, which is seen below
            process.stdin.write(settings.to_json().encode() + b"\n")
            process.stdin.flush()
        yield Worker(process, ready)


def endpoint_services(
    settings: EndpointSettings, workers: int, listener: socket.socket, metrics: Path
) -> list[Service[Worker]]:
    """The workers, for a supervisor."""
    return [
        Service(f"worker {n} of the endpoint", lambda: run_worker(settings, listener, metrics))
        for n in range(1, workers + 1)
    ]


def _stop(process: subprocess.Popen[bytes], settings: EndpointSettings, metrics: Path) -> None:
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
        mark_process_dead(process.pid, str(metrics))  # type: ignore[no-untyped-call]


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise LaunchError unless both are given and fit each other, or neither is."""
    if (certificate is None) != (key is None):
        raise LaunchError("TLS needs both --tls-certificate and --tls-key")
    if certificate and key:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                certificate, key, password=lambda: ""
            )  # asks nobody
        except (OSError, ssl.SSLError) as error:
            reason = (
                error.strerror
                if isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
                else "they do not fit"
            )
            raise LaunchError(f"cannot use --tls-certificate {certificate} with --tls-key {key}: {reason}") from error
