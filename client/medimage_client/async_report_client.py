"""The asyncio client of CXRReportGen. `report_client.py` offers the same without asyncio."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

from medimage_client.azure import Request
from medimage_client.azure_reports import COLUMNS, read_report_requests, render_reports
from medimage_client.connection import Connection, gather
from medimage_client.constants import DEFAULT_CONCURRENCY, DEFAULT_REPORT_TIMEOUT_S, DEFAULT_RETRIES
from medimage_client.errors import InvalidInput, MedImageError, ResponseError
from medimage_client.images import ImageInput
from medimage_client.report import Report, read_report
from medimage_client.report_request import Mode, ReportRequest
from medimage_client.transport import Outputs, Transport

WHOLE_MODEL, STREAM_MODEL = "cxrreportgen", "cxrreportgen_stream"
WHOLE_OUTPUTS, STREAM_OUTPUTS = ("output", "status"), ("text_output", "output", "status")
COLUMN = re.compile(rf"({'|'.join(COLUMNS)}): ")  # how an error names the input at fault


class AsyncCXRReportGen:
    """CXRReportGen on a Triton server, for asyncio.

    Args:
        url: `grpc://host:port`, `grpcs://…`, `http://…` or `https://…`.
        timeout: seconds for one report with its retries, or for one stream to its end.
        retries: attempts after the first, made after failed connections and when the server is overloaded; a stream is
            not tried again once a piece of it has come.
        concurrency: reports in flight, over all calls of this client; streams are not counted.
        transport: a connection to use instead of one to `url`.

    Raises:
        InvalidInput: the url or an option is not valid.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = DEFAULT_REPORT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        concurrency: int = DEFAULT_CONCURRENCY,
        transport: Transport | None = None,
    ) -> None:
        self._connection = Connection(
            url,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            shared_memory=False,  # a report takes seconds, its images milliseconds
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
            frontal: the current frontal image; a path, bytes, base64 text, a Pillow image, an array or a DICOM file,
                see `images.py`.
            lateral, prior: the current lateral image, and the frontal image of an earlier study.
            indication, technique, comparison: sections of the request form; empty ones are not sent.
            prior_report: the report of the earlier study; of no effect without `prior`.
            mode: `grounded` for findings with boxes, `findings` for plain text, `phrase` to locate one finding.
            phrase: the finding to locate, in mode `phrase` and only there.
            max_new_tokens: where to cut the answer; None for the server's default of the mode.
            constrained: keep the model to its grammar, so that no answer is malformed.
            timeout: seconds for this report, instead of the client's.

        Raises:
            InvalidInput: names the input at fault, as `lateral_image: …`.
            MedImageError: see `errors.py`.
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
        outputs = await self._infer(request, timeout)
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
        """The same as it is written: an iterator of pieces of text, to be read by `report_grammar.FindingParser`.

        Arguments and errors are those of `report`; those of images and of the server come with the first piece. The
        request is sent when the first piece is asked for, and ends on the server when the stream is closed.
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
        return AsyncReportStream(self._responses(request, timeout))

    async def score(self, request: Request, *, timeout: float | None = None) -> list[dict[str, str]]:
        """Answer a request of Azure's CXRReportGen endpoint in its own JSON; see `azure_reports.py`.

        Args:
            request: the decoded object, its JSON text, or the path (`os.PathLike`) of a JSON file.
            timeout: seconds for one report, instead of the client's.

        Returns:
            One object a row, in order, whose `output` is the JSON text of `[[text, null or boxes], …]`.

        Raises:
            InvalidInput: names row and column, as `row 2, column 'lateral_image': …`.
            MedImageError: see `errors.py`.
        """

        async def output_of(n: int, row: ReportRequest) -> str:
            try:
                return text_of(await self._infer(row, timeout), "output")
            except InvalidInput as error:
                column = COLUMN.match(str(error))
                where = f"row {n}, column {column[1]!r}" if column else f"row {n}"
                raise InvalidInput(f"{where}: {str(error)[column.end() if column else 0 :]}") from error

        rows = read_report_requests(request)
        return render_reports(await gather([output_of(n, row) for n, row in enumerate(rows)]))

    async def _infer(self, request: ReportRequest, timeout: float | None) -> Outputs:
        async with self._connection.slots:
            call = await asyncio.to_thread(request.call, WHOLE_MODEL, WHOLE_OUTPUTS)
            return await self._connection.infer(call, timeout=timeout)

    async def _responses(self, request: ReportRequest, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        call = await asyncio.to_thread(request.call, STREAM_MODEL, STREAM_OUTPUTS)
        async with aclosing(self._connection.stream(call, timeout=timeout)) as responses:
            async for outputs in responses:
                yield outputs


class AsyncReportStream:
    """A report as it is written: an asynchronous iterator of pieces of text, whose `report` is there after the last.

    To leave it early is to cancel the request on the server. That happens with `aclose()`, at the end of an
    `async with` block, or else when the stream is garbage: at once after `break` from a loop that alone holds it.
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


def text_of(outputs: Outputs, name: str) -> str:
    values = outputs[name].ravel().tolist()
    try:
        (value,) = values
        return str(value, "utf-8")
    except (TypeError, ValueError):  # not one, not bytes, or not UTF-8; a message of theirs may quote it
        raise ResponseError(f"{name} is not one UTF-8 text", status=200) from None
