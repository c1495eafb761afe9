"""Images and texts to embeddings over one connection: sent in several requests at once, answered in order."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import EMBEDDING_SIZE, IMAGES_PER_REQUEST, MAX_REQUEST_BYTES, TEXTS_PER_REQUEST
from medimage_client.errors import InvalidInput, ServerError
from medimage_client.images.encoding import encode_file
from medimage_client.images.resize import RESIZED_BY_CLIENT, Resize, square_size
from medimage_client.schema.embeddings import (
    Answer,
    EmbeddingRequest,
    EmbeddingRow,
    Layout,
    RequestParams,
    render_answer,
)
from medimage_client.schema.table import check_text
from medimage_client.wire.connection import Connection, gather
from medimage_client.wire.transport import Call

Embeddings = NDArray[np.float32]
Place = Callable[[int], str]  # a row of the caller's to how an error's text names it
T = TypeVar("T")
R = TypeVar("R")

SCALING_FACTOR = "scaling_factor"


@dataclass(frozen=True, slots=True)
class Encoder:
    """One half of the model, as Triton serves it."""

    model: str
    input_name: str
    output_name: str
    inputs_per_request: int


IMAGE_ENCODER = Encoder("medimageinsight_image", "image", "image_features", IMAGES_PER_REQUEST)
TEXT_ENCODER = Encoder("medimageinsight_text", "text", "text_features", TEXTS_PER_REQUEST)


@dataclass(frozen=True, slots=True)
class Embedded:
    """What an encoder answers."""

    features: Embeddings  # (n, 1024), L2-normalised
    scaling_factor: float | None  # log of the logit scale, a constant of the model; None if there was no input


async def score(
    connection: Connection,
    request: EmbeddingRequest,
    *,
    layout: Layout,
    resize: Resize = "server",
    timeout: float | None = None,
) -> Answer:
    """The answer to an Azure request, which goes to both encoders at once.

    Raises:
        InvalidInput: has row and column of the cell at fault.
        MedImageError: see `errors.py`.
    """
    images = {n: row.image for n, row in enumerate(request.rows) if row.image is not None}
    texts = {n: row.text for n, row in enumerate(request.rows) if row.text is not None}
    of_images, of_texts = await gather(
        [
            embed_images(
                connection,
                [*images.values()],
                encode=encode_file,
                params=request.params,
                resize=resize,
                rows=[*images],
                timeout=timeout,
            ),
            embed_texts(connection, [*texts.values()], rows=[*texts], timeout=timeout),
        ]
    )
    image_features = dict(zip(images, of_images.features, strict=True))
    text_features = dict(zip(texts, of_texts.features, strict=True))
    rows = [
        EmbeddingRow(image_features=image_features.get(n), text_features=text_features.get(n))
        for n in range(len(request.rows))
    ]
    scaling_factor = of_images.scaling_factor if images else of_texts.scaling_factor
    return render_answer(
        rows, scaling_factor=scaling_factor if request.params.get_scaling_factor else None, layout=layout
    )


async def embed_images(
    connection: Connection,
    images: Sequence[T],
    *,
    encode: Callable[..., bytes],
    params: RequestParams,
    resize: Resize,
    rows: Sequence[int],
    place: Place | None = None,
    timeout: float | None,
) -> Embedded:
    """See `embed`; `encode` takes `square_px` as well."""
    square_px, parameters = way_of_images(params, resize)
    return await embed(
        connection,
        IMAGE_ENCODER,
        images,
        encode=partial(encode, square_px=square_px),
        parameters=parameters,
        rows=rows,
        place=place,
        timeout=timeout,
    )


def way_of_images(params: RequestParams, resize: Resize) -> tuple[int | None, dict[str, int]]:
    """The side of the square that the client resizes images to, None for none, and the parameters of their requests."""
    square_px = square_size(resize, params.image_standardization_image_size)
    parameters = params.for_images()
    if square_px is not None:
        parameters[RESIZED_BY_CLIENT] = True
    return square_px, parameters


async def embed_texts(
    connection: Connection,
    texts: Sequence[str],
    *,
    rows: Sequence[int],
    place: Place | None = None,
    timeout: float | None,
) -> Embedded:
    """See `embed`. Equal texts are sent once."""
    check_texts(texts, rows, place)
    first_index: dict[str, int] = {}
    for i, text in enumerate(texts):
        first_index.setdefault(text, i)
    position = {text: i for i, text in enumerate(first_index)}
    embedded = await embed(
        connection,
        TEXT_ENCODER,
        [*first_index],
        encode=str.encode,
        parameters={},
        rows=[rows[i] for i in first_index.values()],
        place=place,
        timeout=timeout,
    )
    return Embedded(embedded.features[[position[text] for text in texts]], embedded.scaling_factor)


def check_texts(texts: Sequence[object], rows: Sequence[int], place: Place | None = None) -> None:
    for row, text in zip(rows, texts, strict=True):
        check_text(text, row=row, column=TEXT_ENCODER.input_name, place=place(row) if place else None)


async def embed(
    connection: Connection,
    encoder: Encoder,
    inputs: Sequence[T],
    *,
    encode: Callable[[T], bytes],
    parameters: Mapping[str, int],
    rows: Sequence[int],
    place: Place | None,
    timeout: float | None,
) -> Embedded:
    """Embed inputs; see `in_requests`.

    Args:
        parameters: of the Triton requests.
        timeout: seconds for one request, None for the client's.
    """
    parts = await in_requests(
        connection,
        inputs,
        column=encoder.input_name,
        inputs_per_request=encoder.inputs_per_request,
        encode=encode,
        send=lambda values: infer(connection, encoder, values, parameters, timeout),
        rows=rows,
        place=place,
    )
    if not parts:
        return Embedded(np.empty((0, EMBEDDING_SIZE), dtype=np.float32), scaling_factor=None)
    return Embedded(np.concatenate([part.features for part in parts]), parts[0].scaling_factor)


async def in_requests(
    connection: Connection,
    inputs: Sequence[T],
    *,
    column: str,
    inputs_per_request: int,
    encode: Callable[[T], bytes],
    send: Callable[[Sequence[bytes]], Awaitable[R]],
    rows: Sequence[int],
    place: Place | None,
) -> list[R]:
    """The answers to requests with some inputs each, read and encoded only when their turn comes.

    Args:
        column: what the inputs are, for errors.
        encode: an input to what the model takes; runs in a thread and may raise InvalidInput.
        send: a request to its answer.
        rows: of each input, its row in what the caller gave, for errors.
        place: how the text of an error names it; None for row and column.

    Raises:
        InvalidInput: has row and column of the input at fault.
        MedImageError: see `errors.py`.
    """

    def named(error: InvalidInput, index: int) -> InvalidInput:
        row = rows[index]
        return error.at(row=row, column=column, place=place(row) if place else None)

    def encode_named(index: int) -> bytes:
        try:
            return encode(inputs[index])
        except InvalidInput as error:
            raise named(error, index) from error

    async def answer(values: Sequence[bytes], start: int) -> R:
        try:
            return await send(values)
        except InvalidInput as error:
            if error.row is None:  # the request as a whole, not one input
                raise
            raise named(error, start + error.row) from error

    async def answer_some(indices: range) -> list[R]:
        async with connection.slots:
            values = await asyncio.to_thread(lambda: [encode_named(i) for i in indices])
            return [await answer(part, indices[start]) for start, part in split_by_size(values)]

    n = inputs_per_request
    answers = await gather([answer_some(range(len(inputs))[start : start + n]) for start in range(0, len(inputs), n)])
    return [part for answer in answers for part in answer]


async def infer(
    connection: Connection,
    encoder: Encoder,
    values: Sequence[bytes],
    parameters: Mapping[str, int],
    timeout: float | None,
) -> Embedded:
    tensor = np.array(values, dtype=np.object_).reshape(-1, 1)
    call = Call(encoder.model, {encoder.input_name: tensor}, (encoder.output_name, SCALING_FACTOR), parameters)
    outputs = await connection.infer(call, timeout=timeout)
    features, scaling_factor = (outputs[name] for name in call.output_names)
    if features.shape != (len(values), EMBEDDING_SIZE):
        raise ServerError(
            f"{call.model} answered {encoder.output_name} of shape {features.shape}; "
            f"expected {(len(values), EMBEDDING_SIZE)}"
        )
    return Embedded(features.astype(np.float32, copy=False), float(scaling_factor.flat[0]))


def split_by_size(values: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Runs of values of at most MAX_REQUEST_BYTES, or of one value, each with the index of its first."""
    start = size = 0
    for end, value in enumerate(values):
        if end > start and size + len(value) > MAX_REQUEST_BYTES:
            yield start, values[start:end]
            start, size = end, 0
        size += len(value)
    yield start, values[start:]


def probabilities(
    images: NDArray[Any], labels: NDArray[Any], scaling_factor: float, *, multilabel: bool
) -> NDArray[np.float32]:
    """Of labels for images, from embeddings (n, 1024) and (labels, 1024), L2-normalised, to (n, labels).

    The logits are exp(scaling_factor) times the cosines. Their softmax sums to 1 over the labels; with `multilabel`,
    their sigmoid rates each label by itself.
    """
    logits: NDArray[np.float64] = np.exp(scaling_factor) * (images.astype(np.float64) @ labels.astype(np.float64).T)
    if multilabel:
        scores: NDArray[np.float64] = (1 + np.tanh(logits / 2)) / 2  # the sigmoid, in the form that does not overflow
    else:
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = weights / weights.sum(axis=1, keepdims=True)
    return scores.astype(np.float32)
