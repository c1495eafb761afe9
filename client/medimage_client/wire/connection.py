"""A connection to a server, and the bounds that hold over all calls of a client."""

import asyncio
import ctypes
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from medimage_client.errors import InvalidInput, RequestTimeout, TransportError, Unavailable
from medimage_client.wire.retries import with_retries
from medimage_client.wire.scoring import ScoringEndpoint, ScoringTransport, is_scoring_uri
from medimage_client.wire.transport import Call, Outputs, Transport
from medimage_client.wire.triton import Endpoint
from medimage_client.wire.triton_workarounds import DeferredTransport

T = TypeVar("T")


class LoopConnection:
    """What belongs to one event loop: the transport and the slots.

    A transport made here is closed with the loop: `asyncio.run` and its kin close the asynchronous generators that are
    open (PEP 525), and one of those holds it.
    """

    def __init__(self, transport: Transport, concurrency: int, *, is_given: bool) -> None:
        self.transport = transport
        self.slots = asyncio.Semaphore(concurrency)
        self._holder = None if is_given else hold(transport)
        if self._holder is not None:
            with suppress(StopIteration):  # runs to its `yield`, with nothing to wait for
                self._holder.__anext__().send(None)

    async def close(self) -> None:
        if self._holder is not None:
            await self._holder.aclose()


async def hold(transport: Transport) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await transport.close()


class Connection:
    """Made by the first call in an event loop, and by the next one after `close`.

    A forked child makes its own.

    Args:
        connect: makes the transport, see `connector`.
        timeout: seconds for one request with its retries.
        retries: attempts after the first.
        concurrency: requests in flight, of those that hold one of `slots`.
        transport: one to begin with, of whatever event loop.

    Raises:
        InvalidInput: an option is not valid.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        *,
        timeout: float,
        retries: int,
        concurrency: int,
        transport: Transport | None = None,
    ) -> None:
        if timeout <= 0 or retries < 0 or concurrency < 1:
            raise InvalidInput(
                f"timeout={timeout}, retries={retries}, concurrency={concurrency}; expected timeout > 0, retries >= 0 "
                "and concurrency >= 1"
            )
        self._connect = connect
        self._timeout = timeout
        self._retries = retries
        self._concurrency = concurrency
        self._given = transport
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopConnection] = WeakKeyDictionary()
        CONNECTIONS.add(self)

    async def close(self) -> None:
        given, self._given = self._given, None
        connection = self._by_loop.pop(asyncio.get_running_loop(), None)
        if given is not None:
            await given.close()
        if connection is not None:
            await connection.close()

    @property
    def slots(self) -> asyncio.Semaphore:
        """One for each call under way, of the running event loop."""
        return self._of_loop().slots

    async def is_ready(self, models: Sequence[str]) -> bool:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._connected().is_ready(models)
        except (TimeoutError, TransportError, Unavailable):
            return False

    async def infer(self, call: Call, *, timeout: float | None) -> Outputs:
        """The call's outputs, within `timeout` seconds or, if None, the client's."""
        return await self._retried(
            lambda seconds_left: self._connected().infer(call, timeout=seconds_left), timeout=timeout
        )

    @property
    def is_to_scoring_uri(self) -> bool:
        return isinstance(self._connected(), ScoringTransport)

    async def score(self, body: bytes, n_rows: int, *, timeout: float | None) -> Sequence[dict[str, Any]]:
        """The rows of a scoring URI's answer to a request in Azure's JSON, as `infer`."""
        transport = self._connected()
        assert isinstance(transport, ScoringTransport)
        return await self._retried(lambda seconds_left: transport.score(body, n_rows), timeout=timeout)

    async def stream(self, call: Call, *, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        """The responses of a decoupled model, the last within `timeout` seconds or, if None, the client's.

        There is no retry after the first response: what the caller has seen cannot be taken back.
        """
        timeout = self._timeout if timeout is None else timeout
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout

        async def start(seconds_left: float) -> tuple[AsyncGenerator[Outputs, None], Outputs | None]:
            responses = self._connected().stream(call, timeout=seconds_left)
            return responses, await anext(responses, None)

        responses, response = await with_retries(start, retries=self._retries, timeout=timeout)
        try:
            while response is not None:
                yield response
                try:
                    async with asyncio.timeout_at(deadline):
                        response = await anext(responses, None)
                except TimeoutError:
                    raise RequestTimeout(f"no end within {timeout:g} s") from None
        finally:
            await responses.aclose()

    async def _retried(self, attempt: Callable[[float], Awaitable[T]], *, timeout: float | None) -> T:
        return await with_retries(attempt, retries=self._retries, timeout=self._timeout if timeout is None else timeout)

    def _connected(self) -> Transport:
        return self._of_loop().transport

    def _of_loop(self) -> LoopConnection:
        loop = asyncio.get_running_loop()
        connection = self._by_loop.get(loop)
        if connection is None:
            transport = self._connect() if self._given is None else self._given
            is_given = transport is self._given
            connection = self._by_loop[loop] = LoopConnection(transport, self._concurrency, is_given=is_given)
        return connection

    def leave_to_parent(self) -> None:
        """In a forked child, forget the connections without closing them.

        The child has the parent's sockets and, on Linux, its very epoll: to close them here would take them out of
        that, and the parent's next call would wait for ever. So they are never freed, not even at the end.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dict(self._by_loop)))
        self._by_loop = WeakKeyDictionary()


CONNECTIONS: WeakSet[Connection] = WeakSet()


def leave_connections_to_parent() -> None:
    for connection in list(CONNECTIONS):
        connection.leave_to_parent()


os.register_at_fork(after_in_child=leave_connections_to_parent)


def connector(url: str, *, api_key: str | None, shared_memory: bool) -> Callable[[], Transport]:
    """What connects to a Triton or a scoring endpoint.

    Args:
        url: a Triton's, `grpc://host:port`, `grpcs://…`, `http://…` or `https://…`, or a scoring URI, `https://…/score`.
        api_key: of the scoring URI, if it has one.
        shared_memory: send large inputs through it; for a server on this machine.

    Raises:
        InvalidInput: the url is not valid, or another option is not for it.
    """
    if is_scoring_uri(url):
        if shared_memory:
            raise InvalidInput("shared_memory is for the url of a Triton server; a scoring URI takes JSON alone")
        return ScoringEndpoint.parse(url, api_key).connect
    if api_key is not None:
        raise InvalidInput("api_key is for a scoring URI, https://host/score; a Triton server has no keys")
    endpoint = Endpoint.parse(url)
    connect = partial(endpoint.connect, shared_memory=shared_memory)
    return (lambda: DeferredTransport(connect())) if endpoint.scheme.startswith("grpc") else connect


async def gather(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order. The first failure ends the others, which `asyncio.gather` would leave running."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
