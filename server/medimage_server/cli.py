"""`medimage serve`: Triton over the model repository, in the foreground, until Ctrl-C or SIGTERM."""

import signal
import sys
from pathlib import Path

import click

from medimage_server.launcher import LaunchError, run_triton

PORT = click.IntRange(0, 65535)


@click.command()
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="Folder of models, after `medimage export`.",
)
@click.option(
    "--models",
    multiple=True,
    metavar="NAME",
    help="Serve only this model and the models it is made of; may be repeated. Default: all that were exported.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is the network.")
@click.option("--http-port", type=PORT, default=8000, show_default=True, help="0 picks a free port.")
@click.option("--grpc-port", type=PORT, default=8001, show_default=True, help="0 picks a free port.")
@click.option("--metrics-port", type=PORT, default=8002, show_default=True, help="0 picks a free port.")
@click.option(
    "--text-cache-mb",
    type=click.IntRange(0, 2**20),
    default=64,
    show_default=True,
    help="Memory for the vectors of texts asked before; 0 computes them anew each time.",
)
def serve(
    repository: Path,
    models: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    text_cache_mb: int,
) -> None:
    """Start Triton Inference Server and serve the exported models until Ctrl-C or SIGTERM.

    Triton's own log goes to stderr. Exit code 1 if it cannot start or ends by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        with run_triton(
            repository,
            models=models,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            text_cache_mb=text_cache_mb,
        ) as server:
            click.echo(
                f"ready: grpc://{host}:{server.grpc_port}  http://{host}:{server.http_port}  "
                f"metrics http://{host}:{server.metrics_port}/metrics  (Ctrl-C ends it)"
            )
            click.echo(f"models: {', '.join(server.models)}")
            code = server.process.wait()
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    raise click.ClickException(f"Triton ended by itself with exit code {code}; see its log above")


def _exit(*_: object) -> None:
    sys.exit(0)  # leaves run_triton's block, which ends Triton
