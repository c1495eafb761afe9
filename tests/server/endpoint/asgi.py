"""The application in this process, over Tritons in memory, asked as a server would ask it."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from medimage_server.endpoint.access_log import LogEntry
from medimage_server.endpoint.app import endpoint_app
from medimage_server.endpoint.openapi import openapi, referred
from medimage_server.endpoint.responses import CLIENT_GONE
from medimage_server.endpoint.settings import EndpointSettings
from tests.client.fake_reports import FakeReports
from tests.client.fake_triton import FakeTriton

SETTINGS = EndpointSettings(
    tritons=("grpc://a:1",),
    deployments=("medimageinsight", "cxrreportgen"),
    max_requests=8,
    max_body_mb=1,
    max_in_flight_mb=4,
    timeout_s=20.0,
    report_timeout_s=30.0,
    drain_delay_s=0.0,
    drain_limit_s=1.0,
)
JSON = {"content-type": "application/json"}
DOCUMENT = openapi(SETTINGS.deployments, keys=True)


@dataclass
class Tritons:
    """A Transport that gives each call to the fake of its model."""

    version = "2.51.0"
    embeddings: FakeTriton = field(default_factory=FakeTriton)
    reports: FakeReports = field(default_factory=FakeReports)

    def _of(self, model):
        return self.reports if model.startswith("cxr") else self.embeddings

    async def infer(self, call, *, timeout):
        return await self._of(call.model).infer(call, timeout=timeout)

    def stream(self, call, *, timeout):
        return self.reports.stream(call, timeout=timeout)

    async def server_version(self):
        return self.version

    async def is_ready(self, models):
        return await self._of(models[0]).is_ready(models)

    async def close(self):
        pass


class Log:
    """Keeps the entries."""

    def __init__(self):
        self.entries: list[LogEntry] = []

    def write(self, entry):
        self.entries.append(entry)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Asks an ASGI application; one method call is one connection."""

    def __init__(self, app, log):
        self.app = app
        self.log = log

    async def ask(
        self,
        method: str = "POST",
        path: str = "/score",
        body: Any = b"",
        *,
        headers: Mapping[str, str] = JSON,
        hang_up: asyncio.Event | None = None,
        parts: Sequence[bytes] | None = None,
        on_part=None,
        http_version: str = "1.1",
    ) -> Answer:
        """The answer. The body is bytes, what becomes JSON, or sent in `parts` without a length; `on_part` may wait."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**headers}
        if parts is None:
            parts = [content]
            sent["content-length"] = str(len(content))
        messages = [
            {"type": "http.request", "body": part, "more_body": n < len(parts)} for n, part in enumerate(parts, start=1)
        ]
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
            "http_version": http_version,
            "scheme": "http",
            "root_path": "",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        received = []

        async def receive():
            if messages:
                return messages.pop(0)
            await (hang_up or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message):
            received.append(message)
            if on_part and message.get("body"):
                await on_part(message["body"])

        await self.app(scope, receive, send)
        (start,) = [message for message in received if message["type"] == "http.response.start"]
        return Answer(
            start["status"],
            {name.decode(): value.decode() for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in received),
        )


class EndpointCaller(Caller):
    """Asks the endpoint, whose every answer has to be one that its OpenAPI document has."""

    async def ask(self, method: str = "POST", path: str = "/score", *args: Any, **options: Any) -> Answer:
        answer = await super().ask(method, path, *args, **options)
        check_documented(method, path, answer)
        return answer


def check_documented(method: str, path: str, answer: Answer) -> None:
    """That status, media type and headers of an answer are in the OpenAPI document, if the route is."""
    operation = DOCUMENT["paths"].get(path, {}).get(method.lower())
    if operation is None or answer.status == CLIENT_GONE:
        return
    assert str(answer.status) in operation["responses"], f"openapi.yaml has no {answer.status} of {method} {path}"
    response = operation["responses"][str(answer.status)]
    if "$ref" in response:
        response = referred(DOCUMENT, response["$ref"])
    assert answer.headers["content-type"].partition(";")[0] in response["content"]
    headers = {name.lower(): referred(DOCUMENT, header["$ref"]) for name, header in response["headers"].items()}
    assert {name for name, header in headers.items() if header.get("required")} <= answer.headers.keys()


@asynccontextmanager
async def running(monkeypatch, tritons=None, **settings):
    """A caller of the endpoint with these settings, over `tritons`, one of them or several by URL."""
    by_url = tritons if isinstance(tritons, dict) else {SETTINGS.tritons[0]: tritons or Tritons()}
    by_address = {url.partition("://")[2]: triton for url, triton in by_url.items()}
    monkeypatch.setattr(
        "medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: by_address[endpoint.address]
    )
    log = Log()
    app = endpoint_app(replace(SETTINGS, tritons=tuple(by_url), **settings), log)
    async with app.router.lifespan_context(app):
        yield EndpointCaller(app, log)
