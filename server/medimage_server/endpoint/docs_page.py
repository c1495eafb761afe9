"""What describes the endpoint: its OpenAPI document, and Swagger UI as the page that shows it.

Swagger UI comes with the package, because browsers in hospitals reach no CDN; `make swagger-ui` fetches it. It is
the smallest of the maintained renderers (Redoc: 2.3 MB, with addresses of a CDN and of telemetry; Scalar: 4.9 MB, with
fonts of its maker's server and a proxy), and the page needs neither 'unsafe-inline' nor 'unsafe-eval'.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files

import orjson
from starlette.requests import Request
from starlette.responses import Response

from medimage_server.endpoint import openapi

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FOLDER = files(__package__) / "swagger_ui"
STATIC = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}
CACHED = {
    "cache-control": "public, max-age=86400"
}  # the same for everybody; a day after an update all have the new ones


@dataclass(frozen=True, slots=True)
class Page:
    content: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)

    async def answer(self, request: Request) -> Response:
        return Response(self.content, media_type=self.media_type, headers=self.headers)


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
