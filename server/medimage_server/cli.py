"""`medimage serve`: Triton over the model repository, and beside it the endpoint, in the foreground until Ctrl-C."""

from contextlib import ExitStack
from pathlib import Path

import click

from medimage_server.banner import endpoint_banner, triton_banner
from medimage_server.endpoint.options import EndpointOptions, endpoint_options
from medimage_server.endpoint.workers import bound, endpoint_services, metrics_folder
from medimage_server.launcher import LaunchError, TritonServer, choose_ports, loopback, run_triton
from medimage_server.options import PORT, option
from medimage_server.signals import end_on_signals
from medimage_server.supervisor import Service, running, watch

# APIs of Triton that nobody needs who asks its models, and those that only a caller on Triton's own ports needs.
OPERATORS_APIS = ("model-repository", "trace", "logging")
CALLERS_APIS = ("model-config", "shared-memory")


@click.command()
@option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    help="Folder of models, after `medimage export`.",
)
@option(
    "--models",
    multiple=True,
    metavar="NAME",
    help="Serve only this model and the models it is made of; may be repeated. Default: all that were exported.",
)
@option("--host", default="127.0.0.1", help="Address that Triton listens on; 0.0.0.0 is the network.")
@option("--http-port", type=PORT, default=8000, help="0 picks a free port.")
@option("--grpc-port", type=PORT, default=8001, help="0 picks a free port.")
@option("--metrics-port", type=PORT, default=8002, help="0 picks a free port.")
@option(
    "--text-cache-mb",
    type=click.IntRange(0, 2**20),
    default=64,
    help="Memory for the vectors of texts asked before; 0 computes them anew each time.",
)
@option("--score-port", type=PORT, help="Port of the endpoint for clients of Azure's; without it there is none.")
@option(
    "--restart/--no-restart",
    default=True,
    help="Start what ends by itself again, with growing delays; else everything ends, with exit code 1.",
)
@endpoint_options
def serve(
    repository: Path,
    models: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    text_cache_mb: int,
    score_port: int | None,
    restart: bool,
    endpoint: EndpointOptions,
) -> None:
    """Start Triton Inference Server and serve the exported models until Ctrl-C or SIGTERM.

    With --score-port, also start the endpoint that answers clients of Azure's unchanged; the options after it in this
    list are the endpoint's. Triton's own log goes to stderr. Exit code 1 if something cannot start, or ends by itself
    with --no-restart.
    """
    end_on_signals()
    try:
        with ExitStack() as held:
            # chosen once, so that a Triton that is started again is found where it was
            ports = choose_ports(host, {"http": http_port, "grpc": grpc_port, "metrics": metrics_port})
            triton = Service(
                "Triton",
                lambda: run_triton(
                    repository,
                    models=models,
                    host=host,
                    http_port=ports["http"],
                    grpc_port=ports["grpc"],
                    metrics_port=ports["metrics"],
                    text_cache_mb=text_cache_mb,
                    locked_apis=OPERATORS_APIS if score_port is None else OPERATORS_APIS + CALLERS_APIS,
                ),
            )
            if score_port is not None:  # before Triton, which takes long and would inherit the keys
                address = loopback(host)
                settings = endpoint.settings(
                    tritons=(f"grpc://{address}:{ports['grpc']}",),
                    triton_metrics=f"http://{address}:{ports['metrics']}/metrics",
                )
                listener = held.enter_context(bound(endpoint.score_host, score_port))
            server = held.enter_context(running([triton]))[0]
            assert isinstance(server, TritonServer)
            banner, services = triton_banner(server, repository), [triton]
            if score_port is not None:
                settings = settings.serving(server.models)
                workers = endpoint_services(settings, endpoint.workers, listener, held.enter_context(metrics_folder()))
                held.enter_context(running(workers, before_end=listener.close))
                banner += endpoint_banner(settings, listener, endpoint.workers)
                services += workers
            click.echo("\n".join(banner))
            watch(services, restart=restart, tell=lambda line: click.echo(line, err=True))
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
