"""What describes the endpoint: its OpenAPI document, and Swagger UI as the page that shows it.

Swagger UI comes with the package, because browsers in hospitals reach no CDN; `make swagger-ui` fetches it. It is
the smallest of the maintained renderers (Redoc: 2.3 MB, with addresses of a CDN and of telemetry; Scalar: 4.9 MB, with
fonts of its maker's server and a proxy), and the page needs neither 'unsafe-inline' nor 'unsafe-eval'.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medimage_server.endpoint import openapi
from medimage_server.endpoint.body import send_parts
from medimage_server.endpoint.middleware import entry_of
from medimage_server.endpoint.responses import ClientGone

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FOLDER = files(__package__) / "swagger_ui"
STATIC = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}
CACHED = {"cache-control": "public, max-age=86400"}  # a day after an update all browsers have the new files


@dataclass(frozen=True, slots=True)
class Page:
    """An ASGI application that answers with the same content always, in parts: strangers may ask, and read slowly."""

    content: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = Response(self.content, media_type=self.media_type, headers=self.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        try:
            await send_parts(send, self.content)
        except ClientGone as gone:  # a part has been sent, and no other answer can be given
            entry_of(scope).reason = str(gone)


def pages(deployments: Collection[str], *, keys: bool) -> Iterator[tuple[str, Page]]:
    """Each page of the description with its path; arguments as for `openapi`."""
    document = Page(orjson.dumps(openapi.openapi(deployments, keys=keys)), "application/json")
    yield "/openapi.yaml", Page(openapi.TEXT, "application/yaml")
    yield "/openapi.json", document
    yield "/swagger.json", document
    html = (FOLDER / "page.html").read_bytes()
    yield "/docs", Page(html, "text/html", {"content-security-policy": POLICY})
    for name, media_type in STATIC.items():
        yield f"/docs/{name}", Page((FOLDER / name).read_bytes(), media_type, CACHED)
