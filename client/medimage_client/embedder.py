"""Many inputs through one tower of the model: split into requests, sent at once within a bound, answered in order."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medimage_client.connection import Connection, gather
from medimage_client.constants import EMBEDDING_SIZE, IMAGES_PER_REQUEST, MAX_REQUEST_BYTES, TEXTS_PER_REQUEST
from medimage_client.errors import InvalidInput, ServerError
from medimage_client.transport import Call

Embeddings = NDArray[np.float32]
T = TypeVar("T")

SCALING_FACTOR = "scaling_factor"


@dataclass(frozen=True, slots=True)
class Tower:
    """One half of the model, as Triton serves it."""

    model: str
    input_name: str
    output_name: str
    inputs_per_request: int


IMAGES = Tower("medimageinsight_image", "image", "image_features", IMAGES_PER_REQUEST)
TEXTS = Tower("medimageinsight_text", "text", "text_features", TEXTS_PER_REQUEST)


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a tower answers."""

    features: Embeddings  # (n, 1024), L2-normalised
    scaling_factor: float | None  # log of the logit scale, a constant of the model; None if there was no input


class Embedder:
    """Both towers over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def embed(
        self,
        tower: Tower,
        inputs: Sequence[T],
        *,
        encode: Callable[[T], bytes],
        rows: Sequence[int],
        place: Callable[[int], str] | None,
        parameters: Mapping[str, int],
        timeout: float | None,
    ) -> Embedded:
        """Embed inputs, read and encoded only when their turn comes.

        Args:
            encode: an input to what the model takes; runs in a thread and may raise InvalidInput.
            rows: of each input, its row in what the caller gave, for errors.
            place: a row to how an error's text names the input; None for row and column.
            parameters: of the Triton requests.
            timeout: seconds for one request, None for the client's.

        Raises:
            InvalidInput: has row and column of the input at fault.
            MedImageError: see `errors.py`.
        """

        async def send(values: Sequence[bytes], start: int) -> Embedded:
            try:
                return await self._send(tower, values, parameters, timeout)
            except InvalidInput as error:
                if error.row is None:  # the request as a whole, not one input
                    raise
                raise named(error, start + error.row) from error

        def named(error: InvalidInput, index: int) -> InvalidInput:
            row = rows[index]
            return error.at(row=row, column=tower.input_name, place=place(row) if place else None)

        def encode_named(index: int) -> bytes:
            try:
                return encode(inputs[index])
            except InvalidInput as error:
                raise named(error, index) from error

        async def embed_some(indices: range) -> list[Embedded]:
            async with self._connection.slots:
                values = await asyncio.to_thread(lambda: [encode_named(i) for i in indices])
                return [await send(part, indices[start]) for start, part in split_by_size(values)]

        n = tower.inputs_per_request
        answers = await gather(
            [embed_some(range(len(inputs))[start : start + n]) for start in range(0, len(inputs), n)]
        )
        parts = [part for answer in answers for part in answer]
        if not parts:
            return Embedded(np.empty((0, EMBEDDING_SIZE), dtype=np.float32), scaling_factor=None)
        return Embedded(np.concatenate([part.features for part in parts]), parts[0].scaling_factor)

    async def _send(
        self, tower: Tower, values: Sequence[bytes], parameters: Mapping[str, int], timeout: float | None
    ) -> Embedded:
        tensor = np.array(values, dtype=np.object_).reshape(-1, 1)
        call = Call(tower.model, {tower.input_name: tensor}, (tower.output_name, SCALING_FACTOR), parameters)
        outputs = await self._connection.infer(call, timeout=timeout)
        features, scaling_factor = (outputs[name] for name in call.output_names)
        if features.shape != (len(values), EMBEDDING_SIZE):
            raise ServerError(
                f"{call.model} answered {tower.output_name} of shape {features.shape}; "
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
