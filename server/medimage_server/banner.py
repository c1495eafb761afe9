"""What is printed when the servers are ready."""

import json
from collections.abc import Sequence
from pathlib import Path
from socket import socket

from medimage_server.endpoint.settings import MAX_ROWS, MB, EndpointSettings
from medimage_server.launcher import TritonServer


def triton_banner(server: TritonServer, repository: Path) -> list[str]:
    """Where Triton listens, and what it serves, with the precision that the export has noted."""
    host = server.host
    return [
        f"ready: grpc://{host}:{server.grpc_port}  http://{host}:{server.http_port}  "
        f"metrics http://{host}:{server.metrics_port}/metrics  (Ctrl-C ends it)",
        f"models: {', '.join(server.models)}",
        *precisions(server.models, repository),
    ]


def precisions(models: Sequence[str], repository: Path) -> list[str]:
    """One line for each model whose export has left a manifest."""
    manifests = [(model, path) for model in models for path in (repository / model).glob("*/manifest.json")]
    return [f"{model}: {json.loads(path.read_text(encoding='utf-8'))['precision']}" for model, path in manifests]


def endpoint_banner(settings: EndpointSettings, listener: socket, workers: int) -> list[str]:
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
        f"limits: {settings.max_requests * workers} requests at once, {settings.max_body_bytes // MB} MB each, "
        f"{settings.max_in_flight_bytes * workers // MB} MB together; "
        + "; ".join(
            f"{name} {MAX_ROWS[name]} rows, {settings.time_limit_s(name):g} s" for name in settings.deployments
        ),
        f"options: layout {settings.layout}, workers {workers}, drain {settings.drain_delay_s:g} + "
        f"{settings.drain_limit_s:g} s, access log {settings.access_log or 'none'}",
    ]
