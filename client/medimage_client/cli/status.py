"""`medimage status`: whether an endpoint is ready, what is behind it, and how busy it is."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import click

from medimage_client.cli.options import key_option, timeout_option
from medimage_client.cli.table import table
from medimage_client.errors import InvalidInput, RequestTimeout, ResponseError
from medimage_client.wire.error_reader import not_scoring, one_line, unified_error
from medimage_client.wire.scoring import ScoringEndpoint, explanation
from medimage_client.wire.transport import read_object

MB = 2**20


@click.command()
@click.argument("url")
@key_option("Key of the endpoint")
@timeout_option(10.0, "the answer")
@click.pass_context
def status(ctx: click.Context, url: str, api_key: str | None, timeout: float) -> None:
    """Show the state of an endpoint started by `medimage serve --score-port` or `medimage endpoint`.

    URL is its address, http://host:5001, or its scoring URI. Azure's own endpoints do not offer this. Exit code 1 if
    the endpoint is not ready or does not answer.
    """
    state = asyncio.run(fetch_state(status_endpoint(url, api_key), timeout=timeout))
    try:
        reasons = obstacles(state)
        lines = render(state, reasons)
    except (AttributeError, KeyError, TypeError, ValueError):  # JSON of another kind
        raise ResponseError(not_scoring(200), status=200) from None
    click.echo("\n".join(lines))
    if reasons:
        ctx.exit(1)


def status_endpoint(url: str, key: str | None) -> ScoringEndpoint:
    """Where the state is told.

    Raises:
        InvalidInput: the url is not one of HTTP, or the key cannot be one.
    """
    endpoint = ScoringEndpoint.parse(url, key)
    if urlsplit(endpoint.url).scheme not in ("http", "https"):
        raise InvalidInput("url is not http://host:port or https://…/score; a Triton's own address has no status")
    return ScoringEndpoint(f"{endpoint.root.rstrip('/')}/status", key)


async def fetch_state(endpoint: ScoringEndpoint, *, timeout: float) -> dict[str, Any]:
    """The answer of GET /status.

    Raises:
        TransportError: no connection.
        RequestTimeout: no answer in time.
        ResponseError: another answer, such as that of a wrong key or of a server that has no /status.
    """
    import aiohttp  # as long to import as all the rest

    headers = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
    try:
        async with (
            asyncio.timeout(timeout),
            aiohttp.ClientSession(headers=headers) as session,
            session.get(endpoint.url, allow_redirects=False) as response,  # one would take the key elsewhere
        ):
            status, body = response.status, await response.read()
    except TimeoutError:
        raise RequestTimeout(f"no answer within {timeout:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise unified_error(error) from None
    state = read_object(body)
    if status == 200 and state is not None:
        return state
    if status == 404:
        reason = "HTTP 404, this server has no /status; Azure's own endpoints have none, nor has a Triton"
    else:
        told = (state or {}).get("message")
        reason = one_line(told) if isinstance(told, str) and told.strip() else explanation(status)
    raise ResponseError(reason if endpoint.key is None else reason.replace(endpoint.key, "[api_key]"), status=status)


def obstacles(state: Mapping[str, Any]) -> list[str]:
    """Why the endpoint is not ready; nothing if it is."""
    missing = [name for name, deployment in state["deployments"].items() if not deployment["ready"]]
    reasons = ["it is about to end"] if state["draining"] else []
    return [*reasons, f"no Triton is ready for {' and '.join(missing)}"] if missing else reasons


def render(state: Mapping[str, Any], reasons: Sequence[str]) -> list[str]:
    deployments, load = state["deployments"], state["load"]
    tritons = [
        (triton["url"], triton["version"] or "-", *(yes(triton["ready"][name]) for name in deployments))
        for triton in state["tritons"]
    ]
    counts = (f"{load[name]:d}" for name in ("answered", "failed", "refused"))
    return [
        f"medimage-triton {state['version']}: {'not ready, ' + '; '.join(reasons) if reasons else 'ready'}",
        "",
        *table(("deployment", "ready"), [(name, yes(one["ready"])) for name, one in deployments.items()]),
        "",
        *table(("Triton", "version", *deployments), tritons),
        "",
        *table(
            ("in flight", "MB", "answered", "failed", "refused"),
            [(f"{load['in_flight']:d}", f"{load['in_flight_bytes'] / MB:.1f}", *counts)],
        ),
    ]


def yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
