"""Requests to a Triton server over gRPC or HTTP, with one set of errors."""

import base64
import json
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from types import ModuleType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

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
    "CANCELLED": 499,
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
STREAM_HEADERS = {"triton_grpc_error": "true"}  # Triton: end a stream that fails with a gRPC code, not a text alone
EVENT = b"data:"  # server-sent events
STATUS_MARKS = {  # Triton 2.51 and our models; for streams, which lose the status over HTTP and sometimes over gRPC
    # first, for these may go on with any words: of our models, and of Triton's Python backend
    re.compile(r"^(internal error|Failed to process the request|Stub process '[^']*' is not healthy)"): 500,
    re.compile(r"maximum queue size|waiting already|busy; try again|shutting down"): 503,
    re.compile(r"unknown model"): 404,
}
TOO_LONG = re.compile(r"took longer than the limit")  # our models, UNAVAILABLE as Triton has no code for it
NOT_READY = re.compile(r"not ready|not at ready state|no available versions")  # Triton, before and after a load


Outputs = dict[str, NDArray[Any]]  # by name


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request."""

    model: str
    inputs: Mapping[str, NDArray[Any]] = field(repr=False)  # by name; object arrays, of bytes or str, travel as BYTES
    output_names: Sequence[str]
    parameters: Mapping[str, int]  # a bool stays one


class Transport(Protocol):
    """What the client needs of a connection; every error is a MedImageError."""

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        """The call's outputs.

        The caller keeps the time; `timeout`, in seconds, tells the server when nobody waits any more.
        """

    def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        """The responses of a decoupled model, each with those of the call's outputs that it has.

        To close it before its end cancels the request on the server.
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

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        try:
            result = await self._client.infer(
                call.model,
                self._tensors(call),
                outputs=[self._triton.InferRequestedOutput(name) for name in call.output_names],
                parameters=dict(call.parameters),
                timeout=microseconds(timeout),
            )
            outputs = {name: result.as_numpy(name) for name in call.output_names}
        except self._failures as error:
            raise unified_error(error) from None
        except (AttributeError, LookupError, TypeError, ValueError):  # tritonclient checks no body
            raise ResponseError(not_triton(200), status=200) from None
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
            raise unified_error(error) from None

    async def close(self) -> None:
        await self._client.close()

    def _tensors(self, call: Call) -> list[Any]:
        tensors = []
        for name, array in call.inputs.items():
            tensor = self._triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensors.append(tensor.set_data_from_numpy(array))
        return tensors


class GrpcTransport(TritonTransport):
    """Streams over gRPC's own."""

    def __init__(self, address: str, *, secure: bool) -> None:
        # imported here, as in HttpTransport: each of the two takes a third of a second, and few programs need both
        import tritonclient.grpc.aio as triton
        from grpc.aio import AioRpcError, init_grpc_aio  # type: ignore[import-untyped]  # grpcio has no types

        # gRPC stops its asyncio engine with the last channel, and then may print "Bad file descriptor" from a loop that
        # still runs (seen in 6 of 24 runs, grpcio 1.85). Its counter, raised once more, keeps the engine to the end.
        init_grpc_aio()
        options = [
            ("grpc.max_send_message_length", -1),  # no limit: the server has its own
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", int(MAX_DELAY_S * 1000)),  # else up to 2 minutes, longer than our retries
        ]
        client = triton.InferenceServerClient(address, ssl=secure, channel_args=options)
        super().__init__(triton, client, (InferenceServerException,))
        self._rpc_error = AioRpcError

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        responses = self._client.stream_infer(self._requests(call, timeout), headers=STREAM_HEADERS)
        try:
            async for result, error in responses:
                if error is not None:
                    raise unified_error(error)
                arrays = {name: result.as_numpy(name) for name in call.output_names}
                yield {name: array for name, array in arrays.items() if array is not None}
        except self._rpc_error as error:  # which tritonclient lets through here
            raise unified_error(InferenceServerException(error.details(), status=str(error.code()))) from None
        finally:
            responses.cancel()  # of no effect after the end

    async def _requests(self, call: Call, timeout: float) -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": call.model,
            "inputs": self._tensors(call),
            "parameters": dict(call.parameters),
            "timeout": microseconds(timeout),
        }


class HttpTransport(TritonTransport):
    """Streams by Triton's generate extension, whose requests are JSON and whose responses are server-sent events."""

    def __init__(self, address: str, *, secure: bool) -> None:
        import aiohttp
        import tritonclient.http.aio as triton
        from aiohttp.http_exceptions import LineTooLong

        context = ssl.create_default_context() if secure else None
        # conn_timeout covers the whole request, and the caller keeps the time
        client = triton.InferenceServerClient(address, ssl=secure, ssl_context=context, conn_timeout=None)
        super().__init__(triton, client, (InferenceServerException, aiohttp.ClientError, OSError))
        self._endless_line = (LineTooLong, ValueError)  # the latter of older versions of aiohttp
        # tritonclient has no streams over HTTP
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context or True), timeout=aiohttp.ClientTimeout(total=None)
        )
        self._url = f"{'https' if secure else 'http'}://{address}"

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        # `timeout` has no place in a generate request; the end of the connection tells the server
        body = {name: json_value(array) for name, array in call.inputs.items()} | dict(call.parameters)
        try:
            async with self._session.post(f"{self._url}/v2/models/{call.model}/generate_stream", json=body) as response:
                try:
                    if response.status != 200:
                        raise refusal(response.status, await response.read())
                    async for line in response.content:
                        if line.startswith(EVENT):
                            yield read_event(line.removeprefix(EVENT), call.output_names)
                finally:
                    response.close()  # and the connection, unless the response has come to its end
        except self._failures as error:
            raise unified_error(error) from None
        except self._endless_line:
            raise ResponseError(not_triton(200), status=200) from None

    async def close(self) -> None:
        await self._session.close()
        await super().close()


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
        transport = GrpcTransport if self.scheme.startswith("grpc") else HttpTransport
        return transport(self.address, secure=secure)


def microseconds(timeout: float) -> int:
    return int(timeout * 1e6)


def unified_error(error: Exception) -> MedImageError:
    """tritonclient's exceptions, and those of the libraries below it, as ours.

    tritonclient spells a status as "StatusCode.UNAVAILABLE" over gRPC and "503" over HTTP. Ours are raised `from None`:
    a message of aiohttp may quote the answer, which is clinical text.
    """
    if not isinstance(error, InferenceServerException):
        reason = str(error) if isinstance(error, OSError) else ""  # the operating system quotes nothing
        return TransportError(f"cannot reach the server: {one_line(reason or type(error).__name__)}")
    code = (error.status() or "").removeprefix("StatusCode.")
    message = error.message() or ""
    if code == "UNAVAILABLE" and NO_CONNECTION.search(message):
        return TransportError(f"cannot reach the server: {one_line(message)}")
    if not code:
        status = status_of(message, default=500)
    else:
        status = int(code) if code.isdecimal() else GRPC_STATUS.get(code, 500)
    return response_error(status, not_triton(status) if message.startswith(UNREADABLE_BODY) else message)


def response_error(status: int, message: str) -> MedImageError:
    """A failure that the server tells, by its HTTP number."""
    message = one_line(ENSEMBLE_PREFIX.sub("", message))
    if NOT_READY.search(message):
        return NotReady(message)
    if TOO_LONG.search(message):
        return RequestTimeout(message)
    error_type = STATUS_ERRORS.get(status, ServerError if status >= 500 else ResponseError)
    return error_type(message, status=status)


def status_of(message: str, *, default: int) -> int:
    return next((status for mark, status in STATUS_MARKS.items() if mark.search(message)), default)


def json_value(array: NDArray[Any]) -> Any:
    """A tensor as the generate extension takes it: text as it is, bytes as base64, one value without a list."""
    values = [base64.b64encode(v).decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
    return values[0] if len(values) == 1 else values


def read_event(data: bytes, output_names: Sequence[str]) -> Outputs:
    """One response of the generate extension, whose outputs are texts."""
    event = read_object(data)
    if event is None:
        raise ResponseError(not_triton(200), status=200)
    if "error" in event:
        message = str(event["error"])
        raise response_error(status_of(message, default=500), message)
    return {name: np.array([str(event[name]).encode()], dtype=np.object_) for name in output_names if name in event}


def refusal(status: int, body: bytes) -> MedImageError:
    """The error of a stream that ended before its first response."""
    event = read_object(body.removeprefix(EVENT))
    if event is None or "error" not in event:
        return response_error(status, not_triton(status))
    message = str(event["error"])
    # an error of the model, which comes as an event, has status 400 whatever its code
    return response_error(status_of(message, default=status) if body.startswith(EVENT) else status, message)


def read_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def not_triton(status: int) -> str:
    return f"HTTP {status} and a body that is not Triton's; is this the address of a Triton server?"


def one_line(message: str) -> str:
    return shorten(message, MAX_MESSAGE_LENGTH, placeholder=" …")
