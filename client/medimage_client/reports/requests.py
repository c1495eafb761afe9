"""Studies to reports over one connection: a stream of pieces, which is passed on or read to its end.

Timeouts are seconds for one report, None for the connection's.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput, ResponseError
from medimage_client.images.encoding import ImageInput, encode_image
from medimage_client.images.windowing import DicomWindow
from medimage_client.schema.reports import IMAGE_INPUTS, PARAMETERS, PROGRESS, TEXT_INPUTS, ReportRequest
from medimage_client.wire.connection import Connection, gather
from medimage_client.wire.transport import Call, Outputs

MODEL = "cxrreportgen_stream"
WHOLE_OUTPUTS = ("output", "status")
STREAM_OUTPUTS = ("text_output", *WHOLE_OUTPUTS)
OPTIONAL_OUTPUTS = ("model", "timing", PROGRESS)  # which older servers lack
SCORE_OUTPUTS = ("output",)  # the status is not Azure's


async def infer_report(
    connection: Connection,
    request: ReportRequest,
    outputs: tuple[str, ...],
    timeout: float | None,
    dicom_window: DicomWindow = "file",
) -> Outputs:
    """These outputs of the whole answer to a study. Nothing of it is seen before, so it may be asked for again."""
    async with connection.slots:
        call = await asyncio.to_thread(call_of, request, outputs, dicom_window)
        return await connection.infer(call, timeout=timeout)


async def stream_report(
    connection: Connection,
    request: ReportRequest,
    timeout: float | None,
    dicom_window: DicomWindow = "file",
    *,
    progress: bool = False,
) -> AsyncGenerator[Outputs, None]:
    """The responses of the streaming model: pieces of text, at last output and status.

    Closing it early cancels the request on the server.

    Args:
        progress: ask for responses before the first piece, which tell how far the server is.
    """
    call = await asyncio.to_thread(call_of, request, STREAM_OUTPUTS, dicom_window, progress=progress)
    async with aclosing(connection.stream(call, timeout=timeout)) as responses:
        async for outputs in responses:
            yield outputs


async def score_reports(connection: Connection, rows: Sequence[ReportRequest], timeout: float | None) -> list[str]:
    """The JSON text of each row's findings, in order.

    Raises:
        InvalidInput: has row and column, as `row 2, column 'lateral_image': …`.
        MedImageError: see `errors.py`.
    """

    async def output_of(n: int, row: ReportRequest) -> str:
        try:
            return text_of(await infer_report(connection, row, SCORE_OUTPUTS, timeout), "output")
        except InvalidInput as error:
            raise error.at(row=n) from error

    return await gather([output_of(n, row) for n, row in enumerate(rows)])


def request_of(
    frontal: ImageInput, *, lateral: ImageInput | None = None, prior: ImageInput | None = None, **options: Any
) -> ReportRequest:
    """A request from the arguments of `CXRReportGen.report`."""
    return ReportRequest(frontal_image=frontal, lateral_image=lateral, prior_image=prior, **options)


def call_of(
    request: ReportRequest,
    output_names: tuple[str, ...],
    dicom_window: DicomWindow = "file",
    *,
    progress: bool = False,
) -> Call:
    """The request of Triton; reads and encodes the images.

    Raises:
        InvalidInput: its column is that of the image at fault, `lateral_image: …`.
    """
    images = {name: image for name in IMAGE_INPUTS if (image := getattr(request, name)) is not None}
    inputs = {name: tensor(encoded(name, image, dicom_window)) for name, image in images.items()}
    inputs |= {name: tensor(text) for name in TEXT_INPUTS if (text := getattr(request, name))}
    if request.max_new_tokens is not None:
        inputs["max_new_tokens"] = np.array([request.max_new_tokens], dtype=np.int32)
    parameters = {name: value for name in PARAMETERS if (value := getattr(request, name))}
    if progress:
        parameters[PROGRESS] = True
    return Call(MODEL, inputs, output_names, parameters, decoupled=True, optional_names=OPTIONAL_OUTPUTS)


def encoded(column: str, image: ImageInput, dicom_window: DicomWindow) -> bytes:
    try:
        return encode_image(image, dicom_window=dicom_window, advise_window=False)
    except InvalidInput as error:
        raise error.at(column=column) from error


def tensor(value: bytes | str) -> NDArray[Any]:
    return np.array([value], dtype=np.object_)


def text_of(outputs: Outputs, name: str) -> str:
    """The one text of an output.

    Raises:
        ResponseError: it is not one, not bytes, or not UTF-8.
    """
    values = outputs[name].ravel().tolist()
    try:
        (value,) = values
        return str(value, "utf-8")
    except (TypeError, ValueError):  # a message of theirs may quote it
        raise ResponseError(f"{name} is not one UTF-8 text", status=200) from None
