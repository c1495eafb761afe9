"""Requests to a Triton server over gRPC or HTTP, with one set of errors."""

import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from medimage_client.constants import DEFAULT_PORTS, MIN_SHARED_MEMORY_BYTES
from medimage_client.errors import InvalidInput, MedImageError, ResponseError, TransportError
from medimage_client.images.base64_text import encode_base64
from medimage_client.schema.reports import PROGRESS
from medimage_client.wire.error_reader import not_triton, shared_memory_error, stream_error, triton_error, unified_error
from medimage_client.wire.shared_memory import SharedMemory, tensor_size
from medimage_client.wire.transport import Call, Outputs, read_object, read_to_end
from medimage_client.wire.triton_workarounds import CANCELLED_STREAM, drain_stream

SCHEMES = ", ".join(f"{scheme}://" for scheme in DEFAULT_PORTS)
SOCKET = "unix:"

EVENT = b"data:"  # server-sent events
MAX_RECONNECT_S = 2.0  # between gRPC's attempts; its own 2 minutes are longer than our retries and than a restart


class TritonTransport(ABC):
    """One of tritonclient's asyncio clients, which are alike for gRPC and HTTP; belongs to one event loop.

    Args:
        triton: tritonclient.grpc.aio or tritonclient.http.aio.
        failures: what the client raises.
        shared_memory: send large inputs of `infer` through it.
    """

    def __init__(
        self, triton: ModuleType, client: Any, failures: tuple[type[Exception], ...], *, shared_memory: bool
    ) -> None:
        self._triton = triton
        self._client = client
        self._failures = failures
        self.version: str | None = None  # of the server; "" if it does not tell, None if it is to be asked (again)
        self._shared_memory = SharedMemory(self._register, self._unregister) if shared_memory else None

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        if call.decoupled:
            return await read_to_end(self.stream(call, timeout=timeout), call.output_names)
        async with AsyncExitStack() as held:
            return await self._infer(call, await self._inputs(call, held), timeout)

    @abstractmethod
    def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]: ...

    async def is_ready(self, models: Sequence[str]) -> bool:
        try:
            # one after the other: an unloaded model needs no further question
            return await self._client.is_server_ready() and all(
                [await self._client.is_model_ready(model) for model in models]
            )
        except self._failures as error:
            raise self._failure(error) from None

    async def server_version(self) -> str:
        """Ask for the version, and keep it."""
        self.version = None
        try:
            metadata = await self._client.get_server_metadata()
        except self._failures as error:
            self.version = ""
            raise self._failure(error) from None
        self.version = str(metadata["version"] if isinstance(metadata, dict) else metadata.version)
        return self.version

    async def parameters(self, model: str) -> dict[str, str]:
        """Those in a model's config.

        Raises:
            MedImageError: no connection, no such model, or the server tells no configs.
        """
        try:
            answer = await self._client.get_model_config(model)
            if isinstance(answer, dict):
                return {name: str(value["string_value"]) for name, value in answer.get("parameters", {}).items()}
            return {name: value.string_value for name, value in answer.config.parameters.items()}
        except self._failures as error:
            raise self._failure(error) from None
        except (AttributeError, LookupError, TypeError, ValueError):  # tritonclient checks no body
            raise ResponseError(not_triton(200), status=200) from None

    async def close(self) -> None:
        try:
            if self._shared_memory is not None:
                await self._shared_memory.close()
        finally:
            await self._client.close()

    def _failure(self, error: Exception) -> MedImageError:
        failure = unified_error(error)
        if isinstance(failure, TransportError):
            self.version = None  # the next connection may be to another
        return failure

    async def _infer(self, call: Call, inputs: Sequence[Any], timeout: float) -> Outputs:
        try:
            result = await self._client.infer(
                call.model,
                inputs,
                outputs=[self._triton.InferRequestedOutput(name) for name in call.output_names],
                parameters=dict(call.parameters),
                timeout=microseconds(timeout),
            )
            outputs = {name: result.as_numpy(name) for name in call.output_names}
        except self._failures as error:
            raise self._failure(error) from None
        except (AttributeError, LookupError, TypeError, ValueError):  # tritonclient checks no body
            raise ResponseError(not_triton(200), status=200) from None
        if any(array is None for array in outputs.values()):
            raise ResponseError(not_triton(200), status=200)
        return outputs

    async def _inputs(self, call: Call, held: AsyncExitStack) -> list[Any]:
        """The call's tensors; what they take of the shared memory is theirs while `held` is open."""
        tensors = []
        for name, array in call.inputs.items():
            values = bytes_values(array) if self._shared_memory is not None else []
            if self._shared_memory is None or tensor_size(values) < MIN_SHARED_MEMORY_BYTES:
                tensors.append(self._tensor(name, array))
                continue
            region = await held.enter_async_context(self._shared_memory.holding(values))
            tensor = self._triton.InferInput(name, list(array.shape), "BYTES")
            tensors.append(tensor.set_shared_memory(region.name, tensor_size(values)))
        return tensors

    def _tensor(self, name: str, array: NDArray[Any]) -> Any:
        tensor = self._triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        return tensor.set_data_from_numpy(array)

    async def _register(self, region: str, size: int) -> None:
        try:
            await self._client.register_system_shared_memory(region, f"/{region}", size)
        except self._failures as error:
            raise shared_memory_error(self._failure(error)) from None

    async def _unregister(self, region: str) -> None:
        try:
            await self._client.unregister_system_shared_memory(region)
        except self._failures as error:
            raise self._failure(error) from None


class GrpcTransport(TritonTransport):
    """Streams over gRPC's own."""

    def __init__(self, address: str, *, secure: bool, shared_memory: bool) -> None:
        # imported here, as in HttpTransport: each of the two takes a third of a second, and few programs need both
        import tritonclient.grpc.aio as triton
        from grpc.aio import AioRpcError, init_grpc_aio  # type: ignore[import-untyped]  # grpcio has no types

        # gRPC stops its asyncio engine with the last channel, and then may print "Bad file descriptor" from a loop that
        # still runs (seen in 6 of 24 runs, grpcio 1.85). Its counter, raised once more, keeps the engine to the end.
        init_grpc_aio()
        options = [
            ("grpc.max_send_message_length", -1),  # no limit: the server has its own
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", int(MAX_RECONNECT_S * 1000)),
        ]
        client = triton.InferenceServerClient(address, ssl=secure, channel_args=options)
        super().__init__(triton, client, (InferenceServerException,), shared_memory=shared_memory)
        self._rpc_error = AioRpcError

    async def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        # An error is a response without a code, see triton_workarounds.py
        responses = self._client.stream_infer(self._requests(call, timeout))
        has_begun = False
        try:
            async for result, error in responses:
                if error is not None:
                    if CANCELLED_STREAM.is_in(self.version):
                        await drain_stream(responses, self._rpc_error)
                    raise stream_error(error.message(), has_begun=has_begun)
                arrays = {name: result.as_numpy(name) for name in (*call.output_names, *call.optional_names)}
                outputs = {name: array for name, array in arrays.items() if array is not None}
                has_begun |= PROGRESS not in outputs  # which comes before the request has been looked at as a whole
                yield outputs
        except self._rpc_error as error:  # which tritonclient lets through here
            raise self._failure(InferenceServerException(error.details(), status=str(error.code()))) from None
        finally:
            responses.cancel()  # of no effect after the end

    async def _requests(self, call: Call, timeout: float) -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": call.model,
            "inputs": [self._tensor(name, array) for name, array in call.inputs.items()],
            "parameters": dict(call.parameters),
            "timeout": microseconds(timeout),
        }


class HttpTransport(TritonTransport):
    """Streams by Triton's generate extension, whose requests are JSON and whose responses are server-sent events."""

    def __init__(self, address: str, *, secure: bool, shared_memory: bool) -> None:
        import aiohttp
        import tritonclient.http.aio as triton
        from aiohttp.http_exceptions import LineTooLong

        context = ssl.create_default_context() if secure else None
        # conn_timeout covers the whole request, and the caller keeps the time
        client = triton.InferenceServerClient(address, ssl=secure, ssl_context=context, conn_timeout=None)
        failures = (InferenceServerException, aiohttp.ClientError, OSError)
        super().__init__(triton, client, failures, shared_memory=shared_memory)
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
                    has_begun = True  # where the first event is a failure, there is a status, which tells it
                    async for line in response.content:
                        if line.startswith(EVENT):
                            names = (*call.output_names, *call.optional_names)
                            outputs = read_event(line.removeprefix(EVENT), names, has_begun=has_begun)
                            has_begun = PROGRESS not in outputs
                            yield outputs
                finally:
                    response.close()  # and the connection, unless the response has come to its end
        except self._failures as error:
            raise self._failure(error) from None
        except self._endless_line:
            raise ResponseError(not_triton(200), status=200) from None

    async def close(self) -> None:
        await self._session.close()
        await super().close()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Triton server listens."""

    scheme: str
    address: str  # host:port, over HTTP perhaps with a path; or unix:/path of a socket

    @classmethod
    def parse(cls, url: str) -> Self:
        """`grpc://host:port`, `grpcs://…`, `http://…` or `https://…`; without a port, Triton's default (https: 443).

        Or `unix:/path`, a socket of this machine over which gRPC is spoken.

        Raises:
            InvalidInput: anything else.
        """
        if url.startswith(SOCKET):
            if not url.startswith(f"{SOCKET}/"):
                raise InvalidInput("url is not unix:/path; the path of a socket begins with /")
            return cls("grpc", url)
        try:
            parts = urlsplit(url)
            default = DEFAULT_PORTS[parts.scheme]
            port = parts.port or default
        except (KeyError, ValueError):
            raise InvalidInput(
                f"url has no valid scheme and port; expected one of {SCHEMES} and host:port, or unix:/path"
            ) from None
        if not parts.hostname or parts.username or parts.query or parts.fragment:
            raise InvalidInput(f"url is not {parts.scheme}://host:port; credentials and queries have no place in it")
        path = parts.path.rstrip("/")
        if path and parts.scheme.startswith("grpc"):
            raise InvalidInput(f"url has the path {path!r}; gRPC has none, expected {parts.scheme}://host:port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # IPv6
        return cls(parts.scheme, f"{host}:{port}{path}")

    def connect(self, *, shared_memory: bool) -> GrpcTransport | HttpTransport:
        """A connection of the running event loop; through shared memory only to a server on this machine.

        The server's certificate is checked against the system's trust store (https: or SSL_CERT_FILE), for grpcs gRPC's
        own (or GRPC_DEFAULT_SSL_ROOTS_FILE_PATH).
        """
        secure = self.scheme.endswith("s")
        transport = GrpcTransport if self.scheme.startswith("grpc") else HttpTransport
        return transport(self.address, secure=secure, shared_memory=shared_memory)


def microseconds(timeout: float) -> int:
    return int(timeout * 1e6)


def bytes_values(array: NDArray[Any]) -> list[bytes]:
    """The values of a tensor that travels as BYTES, none of another."""
    values = array.ravel().tolist() if array.dtype == np.object_ else []
    return [value if isinstance(value, bytes) else value.encode() for value in values]


def json_value(array: NDArray[Any]) -> Any:
    """A tensor as the generate extension takes it: text as it is, bytes as base64, one value without a list."""
    values = [encode_base64(v).decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
    return values[0] if len(values) == 1 else values


def read_event(data: bytes, output_names: Sequence[str], *, has_begun: bool) -> Outputs:
    """One response of the generate extension, whose outputs are texts."""
    event = read_object(data)
    if event is None:
        raise ResponseError(not_triton(200), status=200)
    if "error" in event:
        raise stream_error(str(event["error"]), has_begun=has_begun)
    return {name: np.array([str(event[name]).encode()], dtype=np.object_) for name in output_names if name in event}


def refusal(status: int, body: bytes) -> MedImageError:
    """The error of a stream that ended before its first response."""
    event = read_object(body.removeprefix(EVENT))
    if event is None or "error" not in event:
        return triton_error(status, not_triton(status))
    message = str(event["error"])
    return stream_error(message, has_begun=False) if body.startswith(EVENT) else triton_error(status, message)
