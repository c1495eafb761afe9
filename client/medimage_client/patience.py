"""Calls that nobody waits for any more are left alone for a while before they are cancelled.

Triton 2.51 crashes where a gRPC call is cancelled just as it ends (triton-inference-server/server, issue 8034). The
first bad input of many cancels the calls of the others, many of which end at that very moment: six clients that went on
after such failures crashed it within a minute.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

from medimage_client.transport import Call, Outputs, Transport

T = TypeVar("T")

LEFT_ALONE_S = 3.0


class PatientTransport:
    """Another transport, whose calls are not cancelled with their callers. A stream is, for it holds a place."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._calls: set[asyncio.Future[Outputs]] = set()

    async def infer(self, call: Call, *, timeout: float) -> Outputs:
        asking = asyncio.ensure_future(self._transport.infer(call, timeout=timeout))
        self._calls.add(asking)
        asking.add_done_callback(self._calls.discard)
        return await patiently(asking)

    def stream(self, call: Call, *, timeout: float) -> AsyncGenerator[Outputs, None]:
        return self._transport.stream(call, timeout=timeout)

    async def is_ready(self, models: Sequence[str]) -> bool:
        return await self._transport.is_ready(models)

    async def close(self) -> None:
        """Closing cancels what is under way; it waits for those that end within LEFT_ALONE_S."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=LEFT_ALONE_S)
        await self._transport.close()


async def patiently(asking: asyncio.Future[T]) -> T:
    """The result. A caller who is cancelled goes at once; what was asked is cancelled LEFT_ALONE_S later."""
    try:
        await asyncio.wait([asking])
    except asyncio.CancelledError:
        asyncio.get_running_loop().call_later(LEFT_ALONE_S, asking.cancel)  # which also keeps a task alive
        asking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else looks at it
        raise
    return asking.result()
