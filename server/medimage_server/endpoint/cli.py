"""`medimage endpoint`: the endpoint by itself, in front of Tritons that run elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from time import monotonic, sleep

import click

from medimage_client import CXRReportGen, MedImageError, MedImageInsight
from medimage_server.banner import endpoint_banner, tell
from medimage_server.clean import clean_run
from medimage_server.endpoint.discovery import tritons_now
from medimage_server.endpoint.fallback_server import FallbackServer
from medimage_server.endpoint.options import checked_settings, endpoint_options
from medimage_server.endpoint.settings import EMBEDDINGS, MODELS, REPORTS, EndpointOptions
from medimage_server.endpoint.worker_pool import bound, worker_pool
from medimage_server.errors import LaunchError
from medimage_server.options import PORT, option
from medimage_server.signals import end_on_signals
from medimage_server.supervisor import watch

CLIENTS: dict[str, type[MedImageInsight] | type[CXRReportGen]] = {
    EMBEDDINGS: MedImageInsight,
    REPORTS: CXRReportGen,
}
SEARCH_S = 30.0  # for a Triton that is only just starting
ANSWER_S = 3.0


@click.command()
@option(
    "--triton",
    "tritons",
    required=True,
    multiple=True,
    metavar="URL",
    help="A Triton: grpc://host:port, http://… or unix:/path; or dns+grpc://name:port for one at each address of the "
    "name, looked up again every five seconds. May be repeated. Calls go to the least busy one.",
)
@option(
    "--deployment",
    "deployments",
    type=click.Choice(list(MODELS)),
    multiple=True,
    help="Deployment to serve; may be repeated. Default: what the Tritons are ready for.",
)
@option("--head", "heads", multiple=True, metavar="NAME", help="Head to serve, too; may be repeated.")
@option("--score-port", type=PORT, default=5001, help="Port of the endpoint; 0 picks a free one.")
@option(
    "--triton-metrics",
    metavar="URL",
    help="Triton's metrics, to add to the endpoint's: http://host:8002/metrics or unix:/path.",
)
@endpoint_options
def endpoint(
    tritons: tuple[str, ...],
    deployments: tuple[str, ...],
    heads: tuple[str, ...],
    score_port: int,
    triton_metrics: str | None,
    endpoint: EndpointOptions,
) -> None:
    """Speak Azure's scoring protocol in front of one Triton or several, until Ctrl-C or SIGTERM.

    A worker that dies is restarted. Exit code 1 if the endpoint cannot start.
    """
    hangups = end_on_signals()
    try:
        settings = checked_settings(endpoint, tritons=tritons, triton_metrics=triton_metrics)
        settings = replace(settings, deployments=(deployments or find_deployments(tritons)) + heads)
        with (
            clean_run() as run,
            bound(endpoint.score_host, score_port) as listener,
            FallbackServer(listener, settings) as fallback,
            worker_pool(settings, fallback, run, hangups) as pool,
        ):
            click.echo("\n".join(endpoint_banner(settings, listener)))
            watch(pool.workers, restart=True, tell=tell, meanwhile=pool.look)
    except (LaunchError, MedImageError) as error:
        raise click.ClickException(str(error)) from error


def find_deployments(tritons: Sequence[str]) -> tuple[str, ...]:
    """What at least one of the Tritons is ready for.

    Raises:
        LaunchError: there is nothing for half a minute.
        InvalidInput: a URL is not valid.
    """
    deadline = monotonic() + SEARCH_S
    while True:
        found = tuple(name for name in MODELS if any(is_ready(name, url) for url in tritons_now(tritons)))
        if found:
            return found
        if monotonic() > deadline:
            raise LaunchError(
                f"no Triton at {', '.join(tritons)} is ready for {' or '.join(MODELS)}; start it first, or say what it "
                "will serve with --deployment"
            )
        sleep(1.0)


def is_ready(deployment: str, url: str) -> bool:
    with CLIENTS[deployment](url, timeout=ANSWER_S) as client:
        return client.is_ready()
