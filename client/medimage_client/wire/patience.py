"""Calls that nobody waits for any more are left alone for a while before they are cancelled.

Triton 2.51 crashes where a gRPC call is cancelled just as it ends (triton-inference-server/server, issue 8034). The
first bad input of many cancels the calls of the others, many of which end at that very moment: six clients that went on
after such failures crashed it within a minute.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar

from medimage_client.wire.transport import Call, Outputs, Transport

T = TypeVar("T")

LEFT_ALONE_S = 3.0


class Patience:
    """Keeps what has been left alone until it ends."""

    def __init__(self) -> None:
        self._left_alone: set[asyncio.Future[Any]] = set()

    async def result_of(self, work: Coroutine[Any, Any, T]) -> T:
        """The result. A caller who is cancelled goes at once; the work is cancelled LEFT_ALONE_S later."""
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait([working])
            return working.result()
        except asyncio.CancelledError:
            cancelling = asyncio.get_running_loop().call_later(LEFT_ALONE_S, working.cancel)

            def end(ended: asyncio.Future[T]) -> None:
                cancelling.cancel()
                self._left_alone.discard(ended)
                if not ended.cancelled():
                    ended.exception()  # nobody else looks at it, which asyncio would tell

            self._left_alone.add(working)
            working.add_done_callback(end)
            raise
        finally:
            del working  # its error holds this frame, and so the images of the call until garbage is collected

    async def end(self) -> None:
        """Wait for what is left alone, LEFT_ALONE_S at the longest: to close its connection would cancel it."""
        if self._left_alone:
            await asyncio.wait(self._left_alone)


class PatientTransport:
    """A transport over gRPC, whose calls are not cancelled with their callers; a stream is, for it holds a place.

    What is left alone does not count among the client's requests in flight any more.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._patience = Patience()

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        return await self._patience.result_of(self._transport.infer(call, timeout=timeout))

    def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        return self._transport.stream(call, timeout=timeout)

    async def is_ready(self, models: Sequence[str]) -> bool:
        return await self._transport.is_ready(models)

    async def close(self) -> None:
        try:
            await self._patience.end()
        finally:
            await self._transport.close()
