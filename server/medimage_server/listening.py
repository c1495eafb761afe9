"""Where Triton listens: on ports, or on sockets that only this user reaches."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from medimage_server.errors import LaunchError

CONNECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Of an address of this machine; on a loopback address every local user reaches them."""

    host: str
    grpc: int
    metrics: int
    http: int | None  # None: closed

    @property
    def url(self) -> str:
        return f"grpc://{loopback(self.host)}:{self.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{loopback(self.host)}:{self.metrics}/metrics"

    def options(self) -> list[str]:
        """Triton's."""
        ports = {"grpc": self.grpc, "metrics": self.metrics} | ({} if self.http is None else {"http": self.http})
        options = [f"--{name}-address={self.host}" for name in ports]
        options += [f"--{name}-port={port}" for name, port in ports.items()]
        return options if self.http is not None else [*options, "--allow-http=false"]

    def is_open(self) -> bool:
        """Whether connections are taken on each port; Triton opens that of gRPC first."""
        ports = (self.grpc, self.metrics) if self.http is None else (self.grpc, self.http, self.metrics)
        try:
            for port in ports:
                socket.create_connection((loopback(self.host), port), timeout=CONNECT_S).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Sockets:
    """In a folder that nobody else can enter, so who answers there is ours, and so is who asks."""

    folder: Path

    @property
    def url(self) -> str:
        return f"unix:{self.folder}/grpc:1"

    @property
    def metrics_url(self) -> str:
        return f"unix:{self.folder}/metrics"

    def options(self) -> list[str]:
        """Triton's. It hands the addresses on to gRPC and libevhtp, which both know sockets by that prefix.

        It wants ports as well; that of gRPC becomes a part of the socket's name, that of the metrics is not used.
        """
        addresses = {"grpc": self.url.removesuffix(":1"), "metrics": self.metrics_url}
        options = [f"--{name}-address={address}" for name, address in addresses.items()]
        return [*options, *(f"--{name}-port=1" for name in addresses), "--allow-http=false"]

    def is_open(self) -> bool:
        """Whether connections are taken on each socket; Triton opens that of gRPC first."""
        for url in (self.url, self.metrics_url):
            with closing(socket.socket(socket.AF_UNIX)) as connection:
                connection.settimeout(CONNECT_S)
                if connection.connect_ex(url.removeprefix("unix:")) != 0:
                    return False
        return True

    def close(self) -> None:
        """After Triton's end, so that nobody takes it for ready; it leaves its sockets behind."""
        for url in (self.url, self.metrics_url):
            Path(url.removeprefix("unix:")).unlink(missing_ok=True)


def loopback(host: str) -> str:
    """Where this machine reaches a server that listens on a host."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def choose_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """Replace each 0 by a free port.

    Raises:
        LaunchError: two wanted ports are the same, one is taken or not ours to open, or the host is not an address of
            this machine.
    """
    fixed = [port for port in wanted.values() if port]
    if len(set(fixed)) < len(fixed):
        raise LaunchError(f"ports {', '.join(f'{name} {port}' for name, port in wanted.items())} are not all different")
    ports = {}
    with ExitStack() as held:  # held together, so that no port is given out twice
        for name, port in wanted.items():
            probe = held.enter_context(closing(socket.socket()))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise LaunchError(f"cannot open {name} port {host}:{port}: {error.strerror}") from error
            ports[name] = probe.getsockname()[1]
    return ports
