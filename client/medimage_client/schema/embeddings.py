"""The JSON of Azure's MedImageInsight endpoint: requests to typed rows, embeddings to its answer layouts.

On top of what `table.py` says:

- a row has an `image`, a `text` or both; a row without both is refused;
- any of the params may be absent or null; `get_scaling_factor` may be the text "true" or "false", as in the
  documentation's own example; unknown params are ignored, as Azure does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import MAX_IMAGE_SIZE_PX, MAX_JPEG_QUALITY
from medimage_client.errors import InvalidInput
from medimage_client.schema.table import read_image, read_table, read_text, short

COLUMNS = ("image", "text")
MAX_ROWS = 1024  # of a request; what the documentation of Azure's endpoint allows
IMAGE_PARAMS = {  # and the largest value that the server takes
    "image_standardization_image_size": MAX_IMAGE_SIZE_PX,
    "image_standardization_jpeg_compression_ratio": MAX_JPEG_QUALITY,
}

Layout = Literal["rows", "card", "object"]
Answer = list[dict[str, Any]] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One row of `data`, at least one half present."""

    image: bytes | None = field(repr=False)  # an encoded image file
    text: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class RequestParams:
    """The `params` of a request, named as in the model's MLmodel signature.

    Raises:
        InvalidInput: a number is not whole or out of range.
    """

    get_scaling_factor: bool = True
    image_standardization_image_size: int = 0  # side in pixels; 0: the server's own, 512
    image_standardization_jpeg_compression_ratio: int = 0  # JPEG quality; 0: the server's own, 75

    def __post_init__(self) -> None:
        for name, maximum in IMAGE_PARAMS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
                raise InvalidInput(f"param {name!r} is {short(value)}; expected a whole number from 0 to {maximum}")

    def for_images(self) -> dict[str, int]:
        """The request parameters of the image models: those that differ from the server's own."""
        return {name: value for name in IMAGE_PARAMS if (value := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    rows: tuple[RequestRow, ...]
    params: RequestParams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingRow:
    """The answer to one row. Its embeddings are L2-normalised, (1024,) float32; None where the row had no such half."""

    image_features: NDArray[np.float32] | None
    text_features: NDArray[np.float32] | None


def read_request(request: Mapping[str, Any]) -> EmbeddingRequest:
    """A request that `table.read_json` has decoded.

    Raises:
        InvalidInput: not the schema above; has row and column where it is one cell's.
    """
    table = read_table(request, COLUMNS)
    return EmbeddingRequest(tuple(read_row(n, row) for n, row in enumerate(table.rows)), read_params(table.params))


def read_row(n: int, row: Mapping[str, object]) -> RequestRow:
    image, text = read_image(n, row, "image"), read_text(n, row, "text")
    if image is None and text is None:
        place = f"row {n}, columns 'image' and 'text'"
        raise InvalidInput("both are empty; expected at least one", row=n, place=place)
    return RequestRow(image, text)


def read_params(params: Mapping[str, object]) -> RequestParams:
    numbers: dict[str, Any] = {name: params[name] for name in IMAGE_PARAMS if params.get(name) is not None}
    return RequestParams(get_scaling_factor=read_flag(params, "get_scaling_factor"), **numbers)


def read_flag(params: Mapping[str, object], name: str) -> bool:
    match params.get(name):
        case None:
            return True
        case bool(value):
            return value
        case str(value) if value.lower() in ("true", "false"):
            return value.lower() == "true"
        case value:
            raise InvalidInput(f"param {name!r} is {short(value)}; expected true or false")


def render_answer(rows: Sequence[EmbeddingRow], *, scaling_factor: float | None, layout: Layout = "rows") -> Answer:
    """The answer's JSON object; every number is the exact value of its float32.

    - `rows`, what the recorded endpoint answers: one object a row, `image_features` nested (1, 1024), `text_features`
      flat (1024,), `scaling_factor`;
    - `card`, the model card's example: one object a key, in a list, with the vectors of all rows;
    - `object`, the documentation's schema: the same in one object.

    Only keys that apply are there. No rows give an empty answer.

    Args:
        scaling_factor: log of the logit scale, as Azure returns it (callers apply exp); None if not asked for.
    """
    if layout == "rows":
        return [render_row(row, scaling_factor) for row in rows]
    images = [row.image_features.tolist() for row in rows if row.image_features is not None]
    texts = [row.text_features.tolist() for row in rows if row.text_features is not None]
    answer: dict[str, Any] = {}
    if images:
        answer["image_features"] = images
    if texts:
        answer["text_features"] = texts
    if rows and scaling_factor is not None:
        answer["scaling_factor"] = scaling_factor
    return answer if layout == "object" else [{key: value} for key, value in answer.items()]


def render_row(row: EmbeddingRow, scaling_factor: float | None) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if row.image_features is not None:
        answer["image_features"] = [row.image_features.tolist()]
    if row.text_features is not None:
        answer["text_features"] = row.text_features.tolist()
    if scaling_factor is not None:
        answer["scaling_factor"] = scaling_factor
    return answer
