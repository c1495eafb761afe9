"""`medimage serve`: Triton over the model repository, and beside it the endpoint, in the foreground until Ctrl-C."""

from contextlib import ExitStack
from pathlib import Path

import click
from click.core import ParameterSource

from medimage_install.places import repository_option
from medimage_server import triton_environment
from medimage_server.banner import endpoint_banner, tell, triton_banner
from medimage_server.clean import clean_run
from medimage_server.endpoint.fallback_server import FallbackServer
from medimage_server.endpoint.options import LOOPBACK, checked_settings, endpoint_options
from medimage_server.endpoint.settings import EndpointOptions
from medimage_server.endpoint.worker_pool import bound, worker_pool
from medimage_server.errors import LaunchError
from medimage_server.launcher import spawn_triton
from medimage_server.listening import Ports, Sockets, choose_ports
from medimage_server.model_repository import ServedModels, other_version
from medimage_server.options import PORT, option
from medimage_server.reports.memory_plan import plan_memory
from medimage_server.signals import end_on_signals
from medimage_server.supervisor import Service, running, watch

# APIs of Triton that nobody needs who asks its models, and those that only a caller on Triton's own ports needs.
OPERATORS_APIS = ("model-repository", "trace", "logging")
CALLERS_APIS = ("model-config", "shared-memory")
PORT_OPTIONS = ("host", "http_port", "grpc_port", "metrics_port", "http")


@click.command()
@repository_option("The model repository that `medimage export` wrote into.")
@option(
    "--models",
    multiple=True,
    metavar="NAME",
    help="Serve only this model and the models that it needs; may be repeated. Default: everything exported.",
)
@option("--host", default="127.0.0.1", help="Address of Triton; 0.0.0.0 is every interface.")
@option("--http-port", type=PORT, default=8000, help="Triton's HTTP port; 0 picks a free one.")
@option("--grpc-port", type=PORT, default=8001, help="Triton's gRPC port; 0 picks a free one.")
@option("--metrics-port", type=PORT, default=8002, help="Triton's metrics port; 0 picks a free one.")
@option("--http/--no-http", default=True, help="Whether to open Triton's HTTP port.")
@option(
    "--text-cache-mb",
    type=click.IntRange(0, 2**20),
    default=64,
    help="Cache for the vectors of texts; 0 turns it off.",
)
@option(
    "--score-port",
    type=PORT,
    help="Also start the endpoint for Azure's clients, on this port. Triton then opens no port.",
)
@option(
    "--restart/--no-restart",
    default=True,
    help="Restart processes that die, with growing delays; otherwise stop everything with exit code 1.",
)
@endpoint_options
@click.pass_context
def serve(
    ctx: click.Context,
    repository: Path,
    models: tuple[str, ...],
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    http: bool,
    text_cache_mb: int,
    score_port: int | None,
    restart: bool,
    endpoint: EndpointOptions,
) -> None:
    """Start Triton Inference Server and serve the exported models until Ctrl-C or SIGTERM.

    With --score-port, also start the endpoint, which answers clients of Azure unchanged; the options after it in this
    list are the endpoint's. Triton then listens on a socket that only this user can reach. Triton's own log goes to
    stderr. Exit code 1 if something cannot start or, with --no-restart, dies.
    """
    given = [name for name in PORT_OPTIONS if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if score_port is not None and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"with --score-port Triton opens no port; leave out {names}")
    if score_port is None and host not in LOOPBACK:
        tell(
            f"warning: Triton on {host} takes requests from anyone who reaches its ports, without keys or TLS; "
            "docs/security.md says why nobody but `medimage endpoint` should"
        )
    hangups = end_on_signals()
    try:
        served = ServedModels(repository, models)
        if line := other_version(repository):
            tell(line)
        triton_environment.prepare(tell)
        with ExitStack() as held:
            run = held.enter_context(clean_run())
            if score_port is None:
                wanted = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
                # chosen once, so that a Triton that is started again is found where it was
                ports = choose_ports(host, {name: port for name, port in wanted.items() if http or name != "http"})
                listening: Ports | Sockets = Ports(host, ports["grpc"], ports["metrics"], ports.get("http"))
            else:  # before Triton, which takes long and would inherit the keys
                listening = Sockets(run.path)
                settings = checked_settings(endpoint, tritons=(listening.url,), triton_metrics=listening.metrics_url)
                listener = held.enter_context(bound(endpoint.score_host, score_port))
                fallback = held.enter_context(FallbackServer(listener, settings))
            configs = {}
            if plan := plan_memory(served):
                tell(plan.line)
                configs = plan.configs(served)
            locked_apis = OPERATORS_APIS if score_port is None else OPERATORS_APIS + CALLERS_APIS
            triton = Service(
                "Triton",
                lambda: spawn_triton(
                    served, listening, run, text_cache_mb=text_cache_mb, locked_apis=locked_apis, configs=configs
                ),
            )
            (server,) = held.enter_context(running([triton], tell=tell))
            banner, pool = triton_banner(server, served), None
            if score_port is not None:
                settings = settings.serving(server.models, served.exports(), served.heads())
                pool = held.enter_context(worker_pool(settings, fallback, run, hangups))
                banner += endpoint_banner(settings, listener)
            click.echo("\n".join(banner))
            watch(
                [triton, *(pool.workers if pool else [])],
                restart=restart,
                tell=tell,
                meanwhile=pool.look if pool else lambda: None,
            )
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
