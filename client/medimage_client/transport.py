"""Requests to a Triton server over gRPC or HTTP, with one set of errors."""

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from types import ModuleType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from medimage_client.constants import DEFAULT_PORTS, MAX_DELAY_S
from medimage_client.errors import (
    InvalidInput,
    MedImageError,
    NotFound,
    NotReady,
    RequestTimeout,
    ResponseError,
    ServerError,
    TransportError,
    Unavailable,
)

SCHEMES = ", ".join(f"{scheme}://" for scheme in DEFAULT_PORTS)

# gRPC codes as HTTP numbers, after Triton's own pairs (server, http_server.cc) and, for the rest, grpc-gateway's
GRPC_STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
STATUS_ERRORS: dict[int, type[MedImageError]] = {
    400: InvalidInput,
    404: NotFound,
    408: RequestTimeout,
    429: Unavailable,
    503: Unavailable,
    504: RequestTimeout,
}
MAX_MESSAGE_LENGTH = 400  # characters

# Words of the libraries below, each the only mark of what it tells
ENSEMBLE_PREFIX = re.compile(r"^in ensemble '[^']*', ")  # Triton, before the message of an ensemble's step
NO_CONNECTION = re.compile(  # gRPC, whose code is UNAVAILABLE like that of a server with a full queue
    r"failed to connect|errors? resolving|dns resolution|socket closed|connection (reset|closed|aborted)|broken pipe",
    re.IGNORECASE,
)
UNREADABLE_BODY = "an exception occurred in the client while decoding"  # tritonclient, over HTTP
NOT_READY = re.compile(r"not ready|not at ready state|no available versions")  # Triton, before and after a load


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request: n values as a BYTES tensor (n, 1)."""

    model: str
    input_name: str
    output_names: Sequence[str]
    values: Sequence[bytes] = field(repr=False)
    parameters: Mapping[str, int]


class Transport(Protocol):
    """What the client needs of a connection; every error is a MedImageError."""

    async def infer(self, call: Call, *, timeout: float) -> dict[str, NDArray[Any]]:
        """The call's outputs by name, each (n, …).

        The caller keeps the time; `timeout`, in seconds, tells the server when nobody waits any more.
        """

    async def is_ready(self, models: Sequence[str]) -> bool:
        """Whether the server and these models can answer."""

    async def close(self) -> None: ...


class TritonTransport:
    """One of tritonclient's asyncio clients, which are alike for gRPC and HTTP; belongs to one event loop."""

    def __init__(self, triton: ModuleType, client: Any, failures: tuple[type[Exception], ...]) -> None:
        self._triton = triton  # tritonclient.grpc.aio or tritonclient.http.aio
        self._client = client
        self._failures = failures  # what the client raises

    async def infer(self, call: Call, *, timeout: float) -> dict[str, NDArray[Any]]:
        tensor = self._triton.InferInput(call.input_name, [len(call.values), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(call.values, dtype=np.object_).reshape(-1, 1))
        try:
            result = await self._client.infer(
                call.model,
                [tensor],
                outputs=[self._triton.InferRequestedOutput(name) for name in call.output_names],
                parameters=dict(call.parameters),
                timeout=int(timeout * 1e6),  # microseconds
            )
            outputs = {name: result.as_numpy(name) for name in call.output_names}
        except self._failures as error:
            raise unified_error(error) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # tritonclient checks no body
            raise ResponseError(not_triton(200), status=200) from error
        if any(array is None for array in outputs.values()):
            raise ResponseError(not_triton(200), status=200)
        return outputs

    async def is_ready(self, models: Sequence[str]) -> bool:
        try:
            # one after the other: an unloaded model needs no further question
            return await self._client.is_server_ready() and all(
                [await self._client.is_model_ready(model) for model in models]
            )
        except self._failures as error:
            raise unified_error(error) from error

    async def close(self) -> None:
        await self._client.close()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Triton server listens."""

    scheme: str
    address: str  # host:port, and over HTTP perhaps a path

    @classmethod
    def parse(cls, url: str) -> Self:
        """`grpc://host:port`, `grpcs://…`, `http://…` or `https://…`; without a port, Triton's default (https: 443).

        Raises:
            InvalidInput: anything else.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or DEFAULT_PORTS[parts.scheme]
        except (KeyError, ValueError):
            raise InvalidInput(f"url has no valid scheme and port; expected one of {SCHEMES} and host:port") from None
        if not parts.hostname or parts.username or parts.query or parts.fragment:
            raise InvalidInput(f"url is not {parts.scheme}://host:port; credentials and queries have no place in it")
        path = parts.path.rstrip("/")
        if path and parts.scheme.startswith("grpc"):
            raise InvalidInput(f"url has the path {path!r}; gRPC has none, expected {parts.scheme}://host:port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # IPv6
        return cls(parts.scheme, f"{host}:{port}{path}")

    def connect(self) -> Transport:
        """A connection of the running event loop. The server's certificate is checked against the system's trust store
        (https: or SSL_CERT_FILE), for grpcs gRPC's own (or GRPC_DEFAULT_SSL_ROOTS_FILE_PATH)."""
        secure = self.scheme.endswith("s")
        return (
            connect_grpc(self.address, secure) if self.scheme.startswith("grpc") else connect_http(self.address, secure)
        )


def connect_grpc(address: str, secure: bool) -> Transport:
    # imported here, as in connect_http: each of the two takes a third of a second, and few programs need both
    import tritonclient.grpc.aio as triton
    from grpc.aio import init_grpc_aio  # type: ignore[import-untyped]  # grpcio has no types

    # gRPC stops its asyncio engine with the last channel, and then may print "Bad file descriptor" from a loop that
    # still runs (seen in 6 of 24 runs, grpcio 1.85). Its counter, raised once more, keeps the engine to the end.
    init_grpc_aio()
    options = [
        ("grpc.max_send_message_length", -1),  # no limit: the server has its own
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_reconnect_backoff_ms", int(MAX_DELAY_S * 1000)),  # else up to 2 minutes, longer than our retries
    ]
    client = triton.InferenceServerClient(address, ssl=secure, channel_args=options)
    return TritonTransport(triton, client, (InferenceServerException,))


def connect_http(address: str, secure: bool) -> Transport:
    import aiohttp
    import tritonclient.http.aio as triton

    context = ssl.create_default_context() if secure else None
    # conn_timeout covers the whole request, and the caller keeps the time
    client = triton.InferenceServerClient(address, ssl=secure, ssl_context=context, conn_timeout=None)
    return TritonTransport(triton, client, (InferenceServerException, aiohttp.ClientError, OSError))


def unified_error(error: Exception) -> MedImageError:
    """tritonclient's exceptions, and those of the libraries below it, as ours.

    tritonclient spells a status as "StatusCode.UNAVAILABLE" over gRPC and "503" over HTTP.
    """
    if not isinstance(error, InferenceServerException):
        return TransportError(f"cannot reach the server: {one_line(str(error) or type(error).__name__)}")
    message = one_line(ENSEMBLE_PREFIX.sub("", error.message() or ""))
    spelling = error.status() or ""
    code = spelling.removeprefix("StatusCode.")
    if code == "UNAVAILABLE" and NO_CONNECTION.search(message):
        return TransportError(f"cannot reach the server: {message}")
    status = int(code) if code.isdecimal() else GRPC_STATUS.get(code, 500)
    if message.startswith(UNREADABLE_BODY):
        message = not_triton(status)

    if NOT_READY.search(message):
        return NotReady(message)
    error_type = STATUS_ERRORS.get(status, ServerError if status >= 500 else ResponseError)
    return error_type(message, status=status)


def not_triton(status: int) -> str:
    return f"HTTP {status} and a body that is not Triton's; is this the address of a Triton server?"


def one_line(message: str) -> str:
    return shorten(message, MAX_MESSAGE_LENGTH, placeholder=" …")
