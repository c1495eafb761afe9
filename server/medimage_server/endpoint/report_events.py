"""Reports as they are written, as server-sent events (WHATWG HTML, section 9.2).

    event: progress data: {"row": 0, "progress": "<JSON text>"}         how far a row's prompt is read, before its text
    event: text    data: {"row": 0, "text": "<obj>The heart"}           a piece of a row's answer
    event: row     data: {"row": 0, "output": "<JSON text>", "status": "complete", "model": "<JSON text>", ...}
                                                         the row is done; model and timing where Triton tells them
    event: end     data: {}                                              all rows are
    event: error   data: {"row": 0, "message": "...", "status": 424, ...}    there will be nothing more; row and column
                                                                         at fault, if it was one
Several rows are written at once, so their pieces come mixed.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import orjson

from medimage_client.errors import InvalidInput, MedImageError, ResponseError
from medimage_client.reports.requests import stream_report, text_of
from medimage_client.schema.reports import PROGRESS, ReportRequest, read_progress
from medimage_client.wire.connection import Connection

MEDIA_TYPE = "text/event-stream"
ENDING = ("output", "status", "model", "timing")
WAITING = b": waiting\n\n"  # a comment, which keeps proxies from closing a connection that is quiet for long
WAIT_S = 10.0  # until one is sent
MAX_WAITING_EVENTS = 64  # while the caller reads slowly; then the rows wait


def event(name: str, **data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


async def report_events(
    connection: Connection, requests: Sequence[ReportRequest], *, concurrency: int
) -> AsyncGenerator[bytes, None]:
    """The events of all rows, `concurrency` of them at once. Closing it cancels what is still being written.

    Raises:
        MedImageError: the failure of one row, which it has, and which ends the others.
    """
    events: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = asyncio.Semaphore(MAX_WAITING_EVENTS)  # not the queue's own: its end is told even when nobody reads
    turns = asyncio.Semaphore(concurrency)

    async def put(written: bytes) -> None:
        await room.acquire()
        events.put_nowait(written)

    async def write(row: int, request: ReportRequest) -> None:
        is_done = False
        written = stream_report(connection, request, timeout=None, progress=True)
        async with turns, aclosing(written) as responses:
            async for outputs in responses:
                # Not before its images are encoded: what is wrong with them is still told by a status.
                if PROGRESS in outputs and read_progress(told := text_of(outputs, PROGRESS)).state == "reading":
                    await put(event(PROGRESS, row=row, progress=told))
                if text := text_of(outputs, "text_output") if "text_output" in outputs else "":
                    await put(event("text", row=row, text=text))
                if "status" in outputs:
                    ending = {name: text_of(outputs, name) for name in ENDING if name in outputs}
                    await put(event("row", row=row, **ending))
                    is_done = True
        if not is_done:
            raise ResponseError("the stream ended before its report", status=200)

    async def write_or_fail(row: int, request: ReportRequest) -> None:
        try:
            await write(row, request)
        except InvalidInput as error:
            raise error.at(row=row) from error
        except MedImageError as error:
            error.row = row  # its text is not for callers, and has no place to name it
            raise

    async def write_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for row, request in enumerate(requests):
                    group.create_task(write_or_fail(row, request))
        finally:
            events.put_nowait(None)

    writing = asyncio.create_task(write_all())
    try:
        while (written := await events.get()) is not None:
            room.release()
            yield written
        await first_failure(writing)
        yield event("end")
    finally:
        writing.cancel()
        await asyncio.wait([writing])


async def first_failure(writing: asyncio.Task[None]) -> None:
    """Wait for the end, and raise one failure in place of the group of them."""
    try:
        await writing
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def with_comments(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The events, and comments where there is none for long."""
    following: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(events, None))
            while not (await asyncio.wait([following], timeout=WAIT_S))[0]:
                yield WAITING
            written = following.result()
            if written is None:
                return
            yield written
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await events.aclose()
