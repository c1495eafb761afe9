"""Faults of Triton that a client meets, and what it does about them.

The version that the server tells decides: a Triton that has a fault no more is asked as if there had never been one.
A server that does not tell its version counts as faulty. When no Triton in use has a fault, its workaround can go.

| fault | seen in | fixed in | public issue | workaround |
|---|---|---|---|---|
| CANCELLED_CALL | 2.51 | 2.57 | server#7368, server#8034 | DeferredCancellation, DeferredTransport |
| CANCELLED_STREAM | 2.51 | 2.59 | CVE-2025-23322 | drain_stream |
| codes in streams | 2.51 | not known | none | the header triton_grpc_error is not sent |

CANCELLED_CALL: Triton crashes where a gRPC call is cancelled just as it ends. The first bad input of many cancels the
calls of the others, many of which end at that very moment: six clients that went on after such failures crashed it
within a minute. So a call whose caller goes is left alone for a while before it is cancelled. Mended by server#7840 and
server#8078, the latter in 2.57. Shown by tests/triton/endpoint/test_failing_rows.py: without this, about one of its
thousand requests crashes 2.51.

CANCELLED_STREAM: the same for a stream, which ends by itself after its error. So it is read to that end. 2.59 is by
NVIDIA's bulletin 5687, of streams that are cancelled early; it was not tried here. A stream that its reader leaves is
cancelled at once, for it holds a place.

Codes in streams: with triton_grpc_error, Triton takes the end of every stream that fails for a cancellation, and
crashes once in thousands. Without it an error of a stream is a text alone, which `error_reader.py` reads; so nothing is
switched here. It can be sent when tests/triton/test_soak_load.py passes with it on the oldest Triton in use.

The numbers are of https://github.com/triton-inference-server; what concerns the models inside Triton is in
`medimage_server/triton_workarounds.py`.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from medimage_client.errors import MedImageError
from medimage_client.wire.transport import Call, Outputs, Transport

T = TypeVar("T")

CANCEL_AFTER_S = 3.0  # a call whose caller has gone
STREAM_END_S = 1.0  # after its error; Triton ends it at once, but for a lost process of the model perhaps never
RELEASE = re.compile(r"(\d+)\.(\d+)\.\d+")  # not a build between two releases, which may lack what the next one has


@dataclass(frozen=True, slots=True)
class Fault:
    """What Triton does wrong before the release `fixed_in` (major, minor)."""

    fixed_in: tuple[int, int]

    def is_in(self, version: str | None) -> bool:
        """Whether a Triton of this version may have it; one that is not known may."""
        release = RELEASE.fullmatch(version or "")
        return release is None or (int(release[1]), int(release[2])) < self.fixed_in


CANCELLED_CALL = Fault(fixed_in=(2, 57))
CANCELLED_STREAM = Fault(fixed_in=(2, 59))


class DeferredCancellation:
    """Keeps the calls whose callers have gone, until they end by themselves or are cancelled."""

    def __init__(self) -> None:
        self._abandoned: set[asyncio.Future[Any]] = set()

    async def result_of(self, work: Coroutine[Any, Any, T]) -> T:
        """The result. A caller who is cancelled goes at once; the work is cancelled CANCEL_AFTER_S later."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait([working])
            return working.result()
        except asyncio.CancelledError:
            cancelling = asyncio.get_running_loop().call_later(CANCEL_AFTER_S, working.cancel)

            def end(ended: asyncio.Future[T]) -> None:
                cancelling.cancel()
                self._abandoned.discard(ended)
                if not ended.cancelled():
                    ended.exception()  # nobody else looks at it, which asyncio would tell

            self._abandoned.add(working)
            working.add_done_callback(end)
            raise
        finally:
            del working  # its error holds this frame, and so the images of the call until garbage is collected

    async def finish(self) -> None:
        """Wait for what is abandoned, CANCEL_AFTER_S at the longest: to close its connection would cancel it."""
        if self._abandoned:
            await asyncio.wait(self._abandoned)


class VersionedTransport(Transport, Protocol):
    """A transport to one Triton."""

    version: str | None  # of the server; "" if it does not tell, None if it is to be asked (again)

    async def server_version(self) -> str:
        """Ask for the version, and keep it."""


class DeferredTransport:
    """A transport over gRPC, whose calls are not cancelled with their callers where that could crash the Triton.

    The version is asked for once a connection, beside a call that does not wait for it. What is abandoned does not
    count among the client's requests in flight any more.
    """

    def __init__(self, transport: VersionedTransport) -> None:
        self._transport = transport
        self._cancellation = DeferredCancellation()
        self._asking: asyncio.Task[None] | None = None

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        self._begin_to_ask()
        outputs = self._transport.infer(call, timeout=timeout)
        if CANCELLED_CALL.is_in(self._transport.version):
            return await self._cancellation.result_of(outputs)
        return await outputs

    def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        self._begin_to_ask()
        return self._transport.stream(call, timeout=timeout)

    async def is_ready(self, models: Sequence[str]) -> bool:
        return await self._transport.is_ready(models)

    async def close(self) -> None:
        try:
            if self._asking is not None:
                self._asking.cancel()
                await asyncio.wait([self._asking])
            await self._cancellation.finish()
        finally:
            await self._transport.close()

    def _begin_to_ask(self) -> None:
        if self._transport.version is None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        with suppress(MedImageError):
            await self._transport.server_version()


async def drain_stream(responses: AsyncIterator[object], rpc_error: type[Exception]) -> None:
    """Read on after the error of a stream."""
    with suppress(TimeoutError, rpc_error):
        async with asyncio.timeout(STREAM_END_S):
            async for _ in responses:
                pass
