"""The JSON of Azure's MedImageInsight endpoint: requests to typed rows, embeddings to its answer layouts.

Free of transport, so that a server can use it too. What is accepted follows the model card's MLmodel signature, the
documentation (MicrosoftDocs/azure-ai-docs, deploy-medimageinsight.md) and the clients in
microsoft/healthcareai-examples:

    {"input_data": {"columns": ["image", "text"], "index": [0], "data": [["<base64>", "x-ray chest …"]]}, "params": {}}

- rows are lists in the order of `columns`, or objects; one of the two columns may be left out;
- "" and null stand for an absent half; a row without both is refused;
- base64 may have line breaks or a `data:` prefix; a URL is refused, nothing is ever downloaded;
- `index` may be absent; if given, it has one entry a row;
- `params`, or any of them, may be absent or null; `get_scaling_factor` may be the text "true" or "false", as in the
  documentation's own example; unknown params are ignored, as Azure does.

Unknown columns, which Azure drops silently, are refused: a misspelt one would lose half of every row.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medimage_client.base64_text import decode_base64
from medimage_client.constants import MAX_IMAGE_SIZE_PX, MAX_JPEG_QUALITY
from medimage_client.errors import InvalidInput

COLUMNS = ("image", "text")
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


def read_request(request: Mapping[str, Any] | str | bytes | os.PathLike[str]) -> EmbeddingRequest:
    """A request as a decoded object, JSON text, or the path of a JSON file.

    Raises:
        InvalidInput: not the schema above; the message names the row and column.
    """
    if isinstance(request, os.PathLike):
        try:
            request = Path(request).read_bytes()
        except OSError as error:
            raise InvalidInput(f"cannot read {os.fspath(error.filename)}: {error.strerror}") from error
    if isinstance(request, str | bytes):
        try:
            request = json.loads(request)
        except (ValueError, RecursionError):  # the parser's message may quote the text
            raise InvalidInput("the request is not valid JSON") from None
    if not isinstance(request, Mapping):
        raise InvalidInput(f"the request is {kind(request)}; expected an object with 'input_data'")

    input_data = request.get("input_data")
    if not isinstance(input_data, Mapping):
        raise InvalidInput(f"'input_data' is {kind(input_data)}; expected an object with 'columns' and 'data'")
    return EmbeddingRequest(read_rows(input_data), read_params(request.get("params")))


def read_rows(input_data: Mapping[str, Any]) -> tuple[RequestRow, ...]:
    columns = read_columns(input_data.get("columns"))
    data = input_data.get("data")
    if not isinstance(data, list):
        raise InvalidInput(f"'data' is {kind(data)}; expected a list of rows")
    index = input_data.get("index")
    if index is not None and not isinstance(index, list):
        raise InvalidInput(f"'index' is {kind(index)}; expected a list with one entry for each row of 'data'")
    if index is not None and len(index) != len(data):
        raise InvalidInput(f"'index' has {len(index)} entries and 'data' {len(data)} rows; expected as many")
    return tuple(read_row(n, row, columns) for n, row in enumerate(data))


def read_columns(columns: object) -> list[str]:
    if not isinstance(columns, list) or not columns:
        raise InvalidInput(f"'columns' is {kind(columns)}; expected a list of 'image', 'text' or both")
    for i, column in enumerate(columns):
        if column not in COLUMNS:
            raise InvalidInput(f"entry {i} of 'columns' is {short(column)}; expected 'image' or 'text'")
    if len(set(columns)) != len(columns):
        raise InvalidInput("'columns' holds a name twice; expected each once")
    return columns


def read_row(n: int, row: object, columns: Sequence[str]) -> RequestRow:
    if isinstance(row, list):
        if len(row) != len(columns):
            raise InvalidInput(f"row {n}: has {len(row)} cells; expected {len(columns)}, one for each of 'columns'")
        cells = dict(zip(columns, row, strict=True))
    elif isinstance(row, dict):
        for i, name in enumerate(row):
            if name not in columns:
                raise InvalidInput(f"row {n}: key {i} is {short(name)}; expected only those of 'columns', {columns}")
        cells = row
    else:
        raise InvalidInput(f"row {n}: is {kind(row)}; expected a list of cells or an object")

    image, text = (read_cell(n, column, cells.get(column)) for column in COLUMNS)
    if image is None and text is None:
        raise InvalidInput(f"row {n}, columns 'image' and 'text': both are empty; expected at least one")
    return RequestRow(image=None if image is None else read_image(n, image), text=text)


def read_cell(n: int, column: str, cell: object) -> str | None:
    if cell is None or cell == "":
        return None
    if not isinstance(cell, str):
        raise InvalidInput(f"row {n}, column {column!r}: is {kind(cell)}; expected a string, or null if absent")
    try:
        cell.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair
        raise InvalidInput(f"row {n}, column {column!r}: is not valid Unicode") from None
    return cell


def read_image(n: int, cell: str) -> bytes:
    where = f"row {n}, column 'image'"
    if cell.lstrip()[:8].lower().startswith(("http://", "https://")):
        raise InvalidInput(f"{where}: is a URL; nothing is downloaded, send the image file itself as base64")
    try:
        image = decode_base64(cell)
    except ValueError:
        raise InvalidInput(f"{where}: is not valid base64; expected an image file as base64") from None
    if not image:
        raise InvalidInput(f"{where}: holds only white space; expected an image file as base64, or null if absent")
    return image


def read_params(params: object) -> RequestParams:
    if params is None:
        return RequestParams()
    if not isinstance(params, Mapping):
        raise InvalidInput(f"'params' is {kind(params)}; expected an object")
    numbers = {name: params[name] for name in IMAGE_PARAMS if params.get(name) is not None}
    return RequestParams(get_scaling_factor=read_flag(params, "get_scaling_factor"), **numbers)


def read_flag(params: Mapping[str, Any], name: str) -> bool:
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


def kind(value: object) -> str:
    """What a JSON value is, in the words of JSON, without its content."""
    match value:
        case None:
            return "missing or null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case []:
            return "an empty list"
        case list():
            return "a list"
        case Mapping():
            return "an object"
    return f"a {type(value).__name__}"


def short(value: object) -> str:
    """A number, a boolean or a column's name as it is; of any other text its length, for it may be a misplaced cell."""
    if isinstance(value, int | float) or value in COLUMNS:
        return repr(value)
    return f"a string of {len(value)} characters" if isinstance(value, str) else kind(value)
