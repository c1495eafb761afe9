"""What operators ask: health, state and numbers."""

import asyncio
from http import HTTPStatus

import aiohttp
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from medimage_client.wire.triton import SOCKET
from medimage_server.endpoint import metrics
from medimage_server.endpoint.acceptor import mark_authenticated
from medimage_server.endpoint.balancing import BalancedTransport
from medimage_server.endpoint.keys import Keyring, authorize
from medimage_server.endpoint.responses import MODEL_FAILED, JSONResponse, ending, not_ready
from medimage_server.endpoint.settings import EndpointSettings, max_rows

TRITON_PAGE_LIMIT_S = 2.0
# How requests have ended, by status. Those that were wrong are not counted here, nor those whose caller has gone.
OUTCOMES = {
    "answered": (HTTPStatus.OK,),
    "failed": (MODEL_FAILED, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.GATEWAY_TIMEOUT),
    "refused": (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE),
}


class MonitoringRoutes:
    """The routes beside /score, and whether this worker is about to end."""

    def __init__(
        self, settings: EndpointSettings, keys: Keyring, transport: BalancedTransport, *, version: str
    ) -> None:
        self.is_draining = False
        self._settings = settings
        self._keys = keys
        self._transport = transport
        self._version = version

    async def health(self, request: Request) -> Response:
        """200 `Healthy`, as Azure's inference server says it, while every deployment can be asked."""
        if self.is_draining:
            raise ending()
        missing = [name for name in self._settings.deployments if not self._transport.is_serving(name)]
        if missing:
            raise not_ready(f"no Triton is ready for {' and '.join(missing)}")
        return PlainTextResponse("Healthy")

    async def live(self, request: Request) -> Response:
        """200 while the process answers; for a supervisor that would restart it."""
        return PlainTextResponse("Alive")

    async def status(self, request: Request) -> Response:
        authorize(request.headers, self._keys)
        mark_authenticated(request.scope)
        transport, settings = self._transport, self._settings
        told = metrics.counts_by_status()
        return JSONResponse(
            {
                "version": self._version,
                "draining": self.is_draining,
                "deployments": {
                    name: {"ready": transport.is_serving(name), "max_rows": max_rows(name)}
                    for name in settings.deployments
                },
                "exports": settings.exports,
                "tritons": [
                    {"url": backend.url, "version": backend.version, "ready": backend.ready}
                    for backend in transport.backends
                ],
                "load": {
                    "in_flight": int(metrics.value("medimage_endpoint_in_flight")),
                    "in_flight_bytes": int(metrics.value("medimage_endpoint_in_flight_bytes")),
                }
                | {name: sum(told.get(status, 0) for status in statuses) for name, statuses in OUTCOMES.items()},
            }
        )

    async def metrics(self, request: Request) -> Response:
        authorize(request.headers, self._keys)
        mark_authenticated(request.scope)
        return Response(metrics.page() + await self._tritons_page(), media_type=CONTENT_TYPE_LATEST)

    async def _tritons_page(self) -> bytes:
        url = self._settings.triton_metrics
        if url is None:
            return b""
        connector = None
        if url.startswith(SOCKET):
            connector, url = aiohttp.UnixConnector(url.removeprefix(SOCKET)), "http://localhost/metrics"
        try:
            async with (
                asyncio.timeout(TRITON_PAGE_LIMIT_S),
                aiohttp.ClientSession(connector=connector) as session,
                session.get(url) as response,
            ):
                return await response.read() if response.status == HTTPStatus.OK else b""
        except (TimeoutError, aiohttp.ClientError, OSError):
            return b""  # Triton is not there, which medimage_endpoint_triton_ready tells
