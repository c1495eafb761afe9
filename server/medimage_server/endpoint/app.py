"""The ASGI application of the endpoint, which one worker runs."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from medimage_server.endpoint.access_log import AccessLog
from medimage_server.endpoint.balancing import BalancedTransport
from medimage_server.endpoint.docs_page import pages
from medimage_server.endpoint.keys import Keyring
from medimage_server.endpoint.middleware import FramingMiddleware, ObservabilityMiddleware, entry_of
from medimage_server.endpoint.monitoring import MonitoringRoutes
from medimage_server.endpoint.responses import CLIENT_GONE, ClientGone, Refusal, json_error
from medimage_server.endpoint.score_route import ScoreRoute
from medimage_server.endpoint.settings import EndpointSettings

# Calls to Triton at once, of each deployment and worker: two batches of the image encoder, and below the 64 that its
# models' queues hold.
CALLS = 32


def endpoint_app(settings: EndpointSettings, log: AccessLog) -> Starlette:
    """The application; its `state.monitoring` is told when the worker is about to end, and its `state.keys` when to
    look at the file of keys at once.

    Raises:
        InvalidInput: a URL of a Triton is not.
    """
    our_version = version("medimage-triton")
    keys = Keyring(settings.key_digests, Path(settings.keys_file) if settings.keys_file else None)
    transport = BalancedTransport(settings.tritons, settings.deployments, slots=CALLS)
    monitoring = MonitoringRoutes(settings, keys, transport, version=our_version)
    score = ScoreRoute(settings, keys, transport)

    routes = [
        PlainRoute("/", monitoring.health),
        PlainRoute("/live", monitoring.live),
        PlainRoute("/status", monitoring.status),
        PlainRoute("/metrics", monitoring.metrics),
        *(PlainRoute(path, page, methods=["GET"]) for path, page in pages(settings.deployments, keys=not keys.is_open)),
        PlainRoute("/score", score, methods=["POST"]),
        PlainRoute("/{deployment}/score", score, methods=["POST"]),
    ]
    paths = {route.path for route in routes} | {f"/{name}/score" for name in settings.deployments}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await transport.open()
        watching = asyncio.create_task(transport.watch())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await transport.close()

    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(
                ObservabilityMiddleware,
                log=log,
                server_version=f"medimage-triton/{our_version}",
                routes=frozenset(paths),
            ),
            Middleware(FramingMiddleware),
        ],
        exception_handlers={
            Refusal: refusal_response,
            HTTPException: http_error_response,
            ClientGone: client_gone_response,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirection would name the host that the caller says
    app.state.monitoring = monitoring
    app.state.keys = keys
    return app


class PlainRoute(Route):
    """A path has one spelling: what is percent-encoded in it is another path, and %2F no slash.

    Else a proxy that keeps callers from a path would have to know them all. Starlette decodes first, and would take a
    line break at the end for nothing.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["raw_path"] != scope["path"].encode():
            return Match.NONE, {}
        return super().matches(scope)


async def refusal_response(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return noted_error(
        request, refusal.status, refusal.message, refusal.headers, row=refusal.row, column=refusal.column
    )


async def http_error_response(request: Request, error: Exception) -> Response:
    """No such path, or no such method on it; Starlette's own."""
    assert isinstance(error, HTTPException)
    message = {
        HTTPStatus.NOT_FOUND: "there is nothing here; requests go to POST /score, and /docs says how",
        HTTPStatus.METHOD_NOT_ALLOWED: "this method is not for this path; requests go to POST /score",
    }.get(HTTPStatus(error.status_code), error.detail)
    return noted_error(request, error.status_code, message, error.headers)


async def client_gone_response(request: Request, error: Exception) -> Response:
    """The caller has gone: a status for the log."""
    return Response(status_code=CLIENT_GONE)


def noted_error(
    request: Request,
    status: int,
    message: str,
    headers: Mapping[str, str] | None,
    *,
    row: int | None = None,
    column: str | None = None,
) -> Response:
    entry = entry_of(request.scope)
    entry.reason = message
    return json_error(status, message, entry.request_id, headers, row=row, column=column)
