"""A report while it is written."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Self

from medimage_client.archive.choice import Choice
from medimage_client.errors import MedImageError, ResponseError
from medimage_client.reports.report import Report, report_of
from medimage_client.reports.requests import text_of
from medimage_client.schema.reports import PROGRESS, ReportProgress, read_progress
from medimage_client.wire.transport import Outputs


class AsyncReportStream:
    """A report as it is written: an asynchronous iterator of pieces of text. `report` is available after the last one.

    Leaving it early cancels the request on the server: with `aclose()`, at the end of an `async with` block, or when
    the stream is collected, such as after `break` from a loop that holds the only reference.
    """

    def __init__(
        self,
        responses: AsyncGenerator[Outputs | Choice, None],
        on_progress: Callable[[ReportProgress], object] | None = None,
    ) -> None:
        self._responses = responses
        self._on_progress = on_progress
        self._report: Report | None = None
        self._choice: Choice | None = None
        self._reading = asyncio.Lock()  # a generator that is cancelled while it waits cannot be closed before it ends

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        async with self._reading:
            async for outputs in self._responses:
                if isinstance(outputs, Choice):
                    self._choice = outputs
                    continue
                if PROGRESS in outputs and self._on_progress is not None:
                    self._on_progress(read_progress(text_of(outputs, PROGRESS)))
                if "status" in outputs:
                    self._report = report_of(outputs, self._choice)
                piece = text_of(outputs, "text_output") if "text_output" in outputs else ""
                if piece:
                    return piece
        if self._report is None:
            raise ResponseError("the stream ended before its report", status=200)
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream, and the request on the server if it is still under way."""
        async with self._reading:
            await self._responses.aclose()

    @property
    def report(self) -> Report:
        """The report, when the last piece has been read.

        Raises:
            MedImageError: it has not.
        """
        if self._report is None:
            raise MedImageError("there is no report before the stream is read to its end")
        return self._report
