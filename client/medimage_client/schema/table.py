"""The JSON that Azure's endpoints take, as far as it is common to the models: a table of rows, and params.

    {"input_data": {"columns": ["image", "text"], "index": [0], "data": [["<base64>", "x-ray chest …"]]}, "params": {}}

What is accepted follows the model cards' MLmodel signatures, the documentation (MicrosoftDocs/azure-ai-docs,
deploy-medimageinsight.md, deploy-cxrreportgen.md) and the clients in microsoft/healthcareai-examples:

- rows are lists in the order of `columns`, or objects; columns may be in any order, and some may be left out;
- "" and null stand for an absent cell;
- base64 may have line breaks or a `data:` prefix; a URL is refused, nothing is ever downloaded;
- `index` may be absent; if given, it has one entry a row;
- `params` may be absent or null;
- the JSON is that of RFC 8259 in UTF-8, without byte order mark, NaN and Infinity. An object has each key once: of two,
  parsers keep the last and drop the other silently.

Unknown columns, which Azure drops silently, are refused: a misspelt one would lose a part of every row.

`embeddings.py` and `reports.py` hold what each model makes of it. All of this is free of transport, so that a server
can use it too.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medimage_client.errors import InvalidInput
from medimage_client.images.base64_text import decode_base64
from medimage_client.schema.json_text import parse_json

Request = Mapping[str, Any] | str | bytes | os.PathLike[str]  # a decoded object, JSON text, or the path of a JSON file

MAX_DIGITS = 20  # of an integer that is shown: those of 64 bits


@dataclass(frozen=True, slots=True)
class Table:
    """A request whose outer form is right."""

    rows: Sequence[Mapping[str, object]] = field(repr=False)  # cells by column; a column may be absent
    params: Mapping[str, object] = field(repr=False)


def read_table(request: Mapping[str, Any], columns: Sequence[str]) -> Table:
    """A decoded request's rows and params.

    Args:
        columns: those that the model knows.

    Raises:
        InvalidInput: not the form above; has row and column where it is one cell's.
    """
    input_data = request.get("input_data")
    if not isinstance(input_data, Mapping):
        raise InvalidInput(f"'input_data' is {kind(input_data)}; expected an object with 'columns' and 'data'")
    params = request.get("params")
    if params is None:
        params = {}
    if not isinstance(params, Mapping):
        raise InvalidInput(f"'params' is {kind(params)}; expected an object")
    return Table(read_rows(input_data, columns), params)


def read_json(request: Request) -> Mapping[str, Any]:
    """The request as a decoded object.

    Raises:
        InvalidInput: an unreadable file, not strict JSON, or not that of an object.
    """
    request = loaded(request)
    if isinstance(request, str | bytes):
        request = parse_json(request)
    if not isinstance(request, Mapping):
        raise InvalidInput(f"the request is {kind(request)}; expected an object with 'input_data'")
    return request


def loaded(request: Request) -> Mapping[str, Any] | str | bytes:
    """The request, or what is in the file that it names.

    Raises:
        InvalidInput: an unreadable file.
    """
    if not isinstance(request, os.PathLike):
        return request
    try:
        return Path(request).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {os.fspath(error.filename)}: {error.strerror}") from error


def read_rows(input_data: Mapping[str, Any], known: Sequence[str]) -> list[Mapping[str, object]]:
    columns = read_columns(input_data.get("columns"), known)
    data = input_data.get("data")
    if not isinstance(data, list):
        raise InvalidInput(f"'data' is {kind(data)}; expected a list of rows")
    index = input_data.get("index")
    if index is not None and not isinstance(index, list):
        raise InvalidInput(f"'index' is {kind(index)}; expected a list with one entry for each row of 'data'")
    if index is not None and len(index) != len(data):
        raise InvalidInput(f"'index' has {len(index)} entries and 'data' {len(data)} rows; expected as many")
    return [read_row(n, row, columns, known) for n, row in enumerate(data)]


def read_columns(columns: object, known: Sequence[str]) -> list[str]:
    if not isinstance(columns, list) or not columns:
        raise InvalidInput(f"'columns' is {kind(columns)}; expected a list of names, of {list(known)}")
    for i, column in enumerate(columns):
        if not (isinstance(column, str) and column in known):
            raise InvalidInput(f"entry {i} of 'columns' is {short(column, known)}; expected one of {list(known)}")
    if len(set(columns)) != len(columns):
        raise InvalidInput("'columns' holds a name twice; expected each once")
    return columns


def read_row(n: int, row: object, columns: Sequence[str], known: Sequence[str]) -> Mapping[str, object]:
    if isinstance(row, list):
        if len(row) != len(columns):
            raise InvalidInput(f"has {len(row)} cells; expected {len(columns)}, one for each of 'columns'", row=n)
        return dict(zip(columns, row, strict=True))
    if not isinstance(row, dict):
        raise InvalidInput(f"is {kind(row)}; expected a list of cells or an object", row=n)
    for i, name in enumerate(row):
        if name not in columns:
            reason = f"key {i} is {short(name, known)}; expected only those of 'columns', {columns}"
            raise InvalidInput(reason, row=n)
    return row


def read_cell(n: int, row: Mapping[str, object], column: str) -> str | None:
    cell = row.get(column)
    if cell is None or cell == "":
        return None
    if not isinstance(cell, str):
        raise InvalidInput(f"is {kind(cell)}; expected a string, or null if absent", row=n, column=column)
    return cell


def read_text(n: int, row: Mapping[str, object], column: str) -> str | None:
    """The text in a cell of row n, None if it is absent."""
    cell = read_cell(n, row, column)
    if cell is None:
        return None
    try:
        cell.encode()
    except UnicodeEncodeError:  # a decoded object can hold half of a surrogate pair
        raise InvalidInput("is not valid Unicode", row=n, column=column) from None
    return cell


def check_text(text: object, *, column: str, row: int | None = None, place: str | None = None) -> None:
    """Raise InvalidInput of that place unless it is a str that UTF-8 can hold; for texts of Python's callers."""
    if not isinstance(text, str):
        raise InvalidInput(f"is of type {type(text).__name__}; expected str", row=row, column=column, place=place)
    try:
        text.encode()
    except UnicodeEncodeError:
        reason = "is not valid Unicode; expected no lone surrogates"
        raise InvalidInput(reason, row=row, column=column, place=place) from None


def read_image(n: int, row: Mapping[str, object], column: str) -> bytes | None:
    """The encoded image file in a cell of row n, None if it is absent."""
    cell = read_cell(n, row, column)
    if cell is None:
        return None
    if cell.lstrip()[:8].lower().startswith(("http://", "https://")):
        reason = "is a URL; nothing is downloaded, send the image file itself as base64"
        raise InvalidInput(reason, row=n, column=column)
    try:
        image = decode_base64(cell)
    except ValueError:
        reason = "is not valid base64; expected an image file as base64"
        raise InvalidInput(reason, row=n, column=column) from None
    if not image:
        reason = "holds only white space; expected an image file as base64, or null if absent"
        raise InvalidInput(reason, row=n, column=column)
    return image


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


def short(value: object, names: Sequence[str] = ()) -> str:
    """A number, a boolean or one of the names as it is; of another text its length, for it may be a misplaced cell."""
    match value:
        case int() if abs(value) >= 10**MAX_DIGITS:
            return f"a whole number of more than {MAX_DIGITS} digits"
        case int() | float():
            return repr(value)
        case str():
            return repr(value) if value in names else f"a string of {len(value)} characters"
    return kind(value)
