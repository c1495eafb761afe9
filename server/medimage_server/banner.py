"""What is printed when the servers are ready."""

from contextlib import suppress
from socket import socket

import click

from medimage_server.endpoint.settings import EndpointSettings, max_rows
from medimage_server.launcher import TritonServer
from medimage_server.listening import Ports, Sockets
from medimage_server.model_repository import ServedModels


def tell(line: str) -> None:
    """A line for the operator, who may have closed the terminal or filled the disk: no reason to end."""
    with suppress(OSError):
        click.echo(line, err=True)


def triton_banner(server: TritonServer, served: ServedModels) -> list[str]:
    """Where Triton listens, what it serves, with what its export has noted, and what it leaves out."""
    return [
        f"ready: {where(server.listening)}  (Ctrl-C ends it)",
        *(f"not served: {line}" for line in server.left_out),
        f"models: {', '.join(server.models)}",
        *(f"{model}: {export.precision}" for model, export in served.exports().items() if model in server.models),
    ]


def where(listening: Ports | Sockets) -> str:
    if isinstance(listening, Sockets):
        return f"Triton, for this user alone, at {listening.url}"
    over_http = "" if listening.http is None else f"  http://{listening.host}:{listening.http}"
    return (
        f"grpc://{listening.host}:{listening.grpc}{over_http}  "
        f"metrics http://{listening.host}:{listening.metrics}/metrics"
    )


def endpoint_banner(settings: EndpointSettings, listener: socket) -> list[str]:
    """Where the endpoint listens, who may ask it, and its limits; nothing secret."""
    host, port = listener.getsockname()[:2]
    base = f"{'https' if settings.tls_certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    n_keys = len(settings.key_digests)
    keys = [f"{n_keys} from the environment"] if n_keys else []
    keys += [f"those of {settings.keys_file}"] if settings.keys_file else []
    return [
        f"score: {base}/score  docs {base}/docs  metrics {base}/metrics",
        f"deployments: {', '.join(settings.deployments)}  of {', '.join(settings.tritons)}",
        f"keys: {' and '.join(keys) or 'none, open to this machine'}",
        f"limits: {settings.worker_max_requests * settings.workers} requests at once, {settings.max_body_mb} MB each, "
        f"{settings.max_in_flight_mb} MB together; "
        + "; ".join(
            f"{name} {max_rows(name)} rows, {settings.time_limit_s(name):g} s" for name in settings.deployments
        ),
        f"options: layout {settings.layout}, workers {settings.workers}, drain {settings.drain_delay_s:g} + "
        f"{settings.drain_limit_s:g} s, access log {settings.access_log or 'none'}",
    ]
