"""The asyncio client of CXRReportGen. `report_client.py` offers the same without asyncio."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from medimage_client.constants import DEFAULT_CONCURRENCY, DEFAULT_REPORT_TIMEOUT_S, DEFAULT_RETRIES
from medimage_client.errors import MedImageError, ResponseError
from medimage_client.images.encoding import ImageInput
from medimage_client.reports.report import Report, read_report
from medimage_client.reports.requests import (
    STREAM_MODEL,
    WHOLE_MODEL,
    WHOLE_OUTPUTS,
    infer_report,
    score_reports,
    stream_report,
    text_of,
)
from medimage_client.schema.reports import Mode, ReportRequest, read_report_requests, render_reports
from medimage_client.schema.table import Request, read_json
from medimage_client.wire.connection import Connection, connector
from medimage_client.wire.posted_requests import post_reports
from medimage_client.wire.transport import Outputs, Transport


class AsyncCXRReportGen:
    """CXRReportGen on a Triton server or behind a scoring URI, for asyncio.

    A scoring URI takes Azure's JSON, which has no `mode`, `phrase`, `max_new_tokens` and `constrained`. Azure's own
    endpoint returns no status either, so only `score` works with it.

    Args:
        url: of a Triton, `grpc://host:port`, `grpcs://…`, `http://…` or `https://…`, or a scoring URI, `https://…/score`.
        api_key: of the scoring URI, if it has one.
        timeout: seconds for one report with its retries, or for one stream to its end.
        retries: attempts after the first, made after failed connections and when the server is overloaded; a stream is
            not retried once a piece of it has arrived.
        concurrency: reports in flight, over all calls of this client; streams are not counted.
        transport: a connection to use instead of one to `url`.

    Raises:
        InvalidInput: the url or an option is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_REPORT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
        transport: Transport | None = None,
    ) -> None:
        self._connection = Connection(
            connector(url, api_key=api_key, shared_memory=False),  # a report takes seconds, its images milliseconds
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. A later call opens another."""
        await self._connection.close()

    async def is_ready(self) -> bool:
        """Whether the server answers now and has the models loaded; not retried."""
        return await self._connection.is_ready([WHOLE_MODEL, STREAM_MODEL])

    async def report(
        self,
        frontal: ImageInput,
        *,
        lateral: ImageInput | None = None,
        prior: ImageInput | None = None,
        indication: str | None = "",
        technique: str | None = "",
        comparison: str | None = "",
        prior_report: str | None = "",
        mode: Mode = "grounded",
        phrase: str | None = None,
        max_new_tokens: int | None = None,
        constrained: bool = False,
        timeout: float | None = None,
    ) -> Report:
        """The findings of a chest X-ray study.

        Args:
            frontal: the current frontal image; a path, bytes, base64 text, a Pillow image, an array or a DICOM file.
            lateral, prior: the current lateral image, and the frontal image of an earlier study.
            indication, technique, comparison: sections of the request form; empty ones are not sent.
            prior_report: the report of the earlier study; has no effect without `prior`.
            mode: `grounded` for findings with boxes, `findings` for plain text, `phrase` to locate one finding.
            phrase: the finding to locate, in mode `phrase` and only there.
            max_new_tokens: length at which the answer is cut; None for the server's default of the mode.
            constrained: keep the model to its grammar, so that no answer is malformed.
            timeout: seconds for this report, instead of the client's.

        Raises:
            InvalidInput: names the input at fault, as `lateral_image: …`.
            MedImageError: any other failure.
        """
        request = ReportRequest(
            frontal_image=frontal,
            lateral_image=lateral,
            prior_image=prior,
            indication=indication,
            technique=technique,
            comparison=comparison,
            prior_report=prior_report,
            mode=mode,
            phrase=phrase,
            max_new_tokens=max_new_tokens,
            constrained=constrained,
        )
        outputs = await infer_report(self._connection, request, WHOLE_OUTPUTS, timeout)
        return read_report(text_of(outputs, "output"), text_of(outputs, "status"))

    def stream(
        self,
        frontal: ImageInput,
        *,
        lateral: ImageInput | None = None,
        prior: ImageInput | None = None,
        indication: str | None = "",
        technique: str | None = "",
        comparison: str | None = "",
        prior_report: str | None = "",
        mode: Mode = "grounded",
        phrase: str | None = None,
        max_new_tokens: int | None = None,
        constrained: bool = False,
        timeout: float | None = None,
    ) -> "AsyncReportStream":
        """The report as it is written: an iterator of pieces of text, which `reports.grammar.FindingParser` can parse.

        Arguments and errors are those of `report`. The request is sent when the first piece is read; errors of
        images and of the server are raised there. Closing the stream cancels the request on the server.
        """
        request = ReportRequest(
            frontal_image=frontal,
            lateral_image=lateral,
            prior_image=prior,
            indication=indication,
            technique=technique,
            comparison=comparison,
            prior_report=prior_report,
            mode=mode,
            phrase=phrase,
            max_new_tokens=max_new_tokens,
            constrained=constrained,
        )
        return AsyncReportStream(stream_report(self._connection, request, timeout))

    async def score(self, request: Request, *, timeout: float | None = None) -> list[dict[str, str]]:
        """Answer a request of Azure's CXRReportGen endpoint in its own JSON.

        A scoring URI gets the request as it was given, in one call; in several, on borders of rows, if it has more than
        10 rows or 60 MiB.

        Args:
            request: the decoded object, its JSON text, or the path (`os.PathLike`) of a JSON file.
            timeout: seconds for one report, or one call to a scoring URI, instead of the client's.

        Returns:
            One object per row, in order, whose `output` is the JSON text of `[[text, null or boxes], …]`.

        Raises:
            InvalidInput: names row and column, as `row 2, column 'lateral_image': …`.
            MedImageError: any other failure.
        """
        if self._connection.is_to_scoring_uri:
            return await post_reports(self._connection, request, timeout=timeout)
        studies = read_report_requests(read_json(request))
        return render_reports(await score_reports(self._connection, studies, timeout))


class AsyncReportStream:
    """A report as it is written: an asynchronous iterator of pieces of text. `report` is available after the last one.

    Leaving it early cancels the request on the server: with `aclose()`, at the end of an `async with` block, or when
    the stream is collected, such as after `break` from a loop that holds the only reference.
    """

    def __init__(self, responses: AsyncGenerator[Outputs, None]) -> None:
        self._responses = responses
        self._report: Report | None = None
        self._reading = asyncio.Lock()  # a generator that is cancelled while it waits cannot be closed before it ends

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        async with self._reading:
            async for outputs in self._responses:
                if "status" in outputs:
                    self._report = read_report(text_of(outputs, "output"), text_of(outputs, "status"))
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
