"""How heads are asked: classifiers behind the image encoder, each served as two models.

NAME takes images, and shares the encoder's batches with all others; NAME_head takes vectors that are there already, so
that several heads need one run of the encoder.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import IMAGES_PER_REQUEST
from medimage_client.embeddings import Embeddings, in_requests, way_of_images
from medimage_client.errors import InvalidInput, ServerError
from medimage_client.images.resize import Resize
from medimage_client.schema.embeddings import RequestParams
from medimage_client.schema.heads import HeadScores
from medimage_client.wire.connection import Connection, gather
from medimage_client.wire.transport import LABELS, SCORES, Call

T = TypeVar("T")

OF_VECTORS = "_head"  # suffix of the model that takes vectors
VECTORS_PER_REQUEST = 64  # what that model takes at once
NAME = re.compile(r"[a-z][a-z0-9_]{1,62}")


def check_names(heads: Sequence[object]) -> None:
    """Raise InvalidInput unless these are names that a head can have, at least one, each once."""
    for head in heads:
        if not isinstance(head, str) or not NAME.fullmatch(head):
            raise InvalidInput("head is not the name of one; expected small letters, digits and _, as cxr_findings")
    if not heads or len({*heads}) < len(heads):
        raise InvalidInput("head is an empty list, or has a name twice; expected each once")


async def score_images(
    connection: Connection,
    head: str,
    images: Sequence[T],
    *,
    encode: Callable[..., bytes],
    params: RequestParams,
    resize: Resize,
    rows: Sequence[int],
    place: Callable[[int], str] | None = None,
    timeout: float | None,
) -> HeadScores:
    """Scores of a head's labels for images; arguments and errors as for `embeddings.embed_images`."""
    square_px, parameters = way_of_images(params, resize)

    async def send(values: Sequence[bytes]) -> HeadScores:
        tensor = np.array(values, dtype=np.object_).reshape(-1, 1)
        return await infer(connection, head, {"image": tensor}, parameters, timeout)

    parts = await in_requests(
        connection,
        images,
        column="image",
        inputs_per_request=IMAGES_PER_REQUEST,
        encode=partial(encode, square_px=square_px),
        send=send,
        rows=rows,
        place=place,
    )
    return joined(head, parts)


async def score_vectors(
    connection: Connection, head: str, features: Embeddings, *, timeout: float | None
) -> HeadScores:
    """Scores of a head's labels for vectors of images, (n, 1024)."""

    async def score(some: Embeddings) -> HeadScores:
        async with connection.slots:
            return await infer(connection, f"{head}{OF_VECTORS}", {"image_features": some}, {}, timeout)

    n = VECTORS_PER_REQUEST
    return joined(head, await gather([score(features[start : start + n]) for start in range(0, len(features), n)]))


async def infer(
    connection: Connection,
    model: str,
    inputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, int],
    timeout: float | None,
) -> HeadScores:
    call = Call(model, inputs, (SCORES, LABELS), parameters)
    outputs = await connection.infer(call, timeout=timeout)
    scores, labels = outputs[SCORES], outputs[LABELS]
    (tensor,) = inputs.values()
    if scores.ndim != 2 or scores.shape != labels.shape or len(scores) != len(tensor):
        raise ServerError(f"{model} answered {SCORES} of shape {scores.shape} to {len(tensor)} rows")
    names = [label.decode() if isinstance(label, bytes) else str(label) for label in labels[0]]
    return HeadScores(names, scores.astype(np.float32, copy=False))


def joined(head: str, parts: Sequence[HeadScores]) -> HeadScores:
    """The scores of several requests."""
    if not parts:
        raise InvalidInput(f"there are no images for the head {head}; expected at least one")
    if any(part.labels != parts[0].labels for part in parts):
        raise ServerError(f"the labels of {head} changed between two requests; ask again")
    return HeadScores(parts[0].labels, np.concatenate([part.scores for part in parts]))
