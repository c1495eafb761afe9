"""What travels to and from a scoring URI, in the terms of `transport.py`: calls as Azure's JSON, answers as outputs.

`schema` says what the JSON looks like; it reads requests, and this module writes them and reads the answers to them.
A report comes in Azure's JSON or, from this project's endpoint, as server-sent events:

    event: progress  {"row": 0, "progress": "…"}                                            how far it is before that
    event: text      {"row": 0, "text": "…"}                                                a piece
    event: row       {"row": 0, "output": "…", "status": "complete|truncated|malformed"}    the report
    event: error     {"row": 0, "message": "…", "status": 424, "request_id": "…"}           its failure; the stream ends

Other events tell nothing that is needed here, nor do comments, which keep the connection alive.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import EMBEDDING_SIZE
from medimage_client.errors import InvalidInput, ResponseError
from medimage_client.images.base64_text import encode_base64
from medimage_client.images.resize import RESIZED_BY_CLIENT
from medimage_client.schema import embeddings, reports
from medimage_client.schema.heads import read_ranked
from medimage_client.schema.json_text import decode_json
from medimage_client.schema.reports import IMAGE_INPUTS
from medimage_client.wire.error_reader import not_scoring
from medimage_client.wire.transport import LABELS, SCORES, Call, Outputs, read_object

IMAGE_COLUMNS = {"image", *IMAGE_INPUTS}
ONLY_MODE = "grounded"  # in which the endpoints report
CALLERS_NAMES = {RESIZED_BY_CLIENT: "resize='client'"}  # for a parameter


def is_report(call: Call) -> bool:
    return IMAGE_INPUTS[0] in call.inputs


def asks_head(call: Call) -> bool:
    return SCORES in call.output_names


def check_call(call: Call) -> None:
    """Raise InvalidInput for a call that Azure's JSON cannot say."""
    if is_report(call):
        known = {*reports.COLUMNS, reports.PROGRESS}  # which this project's endpoint always tells
        if "mode" in call.inputs and call.inputs["mode"].item() == ONLY_MODE:
            known.add("mode")
    else:
        known = {*embeddings.COLUMNS, *embeddings.IMAGE_PARAMS}
    for name in (*call.inputs, *call.parameters):
        if name not in known:
            raise no_place_for(CALLERS_NAMES.get(name, name))
    for array in call.inputs.values():
        for n, value in enumerate(array.ravel().tolist()):
            if not value:
                raise InvalidInput("is empty, which is no input in Azure's JSON; expected some content", row=n)


def no_place_for(option: str) -> InvalidInput:
    return InvalidInput(
        f"{option} has no place in Azure's JSON, all that a scoring URI takes; leave it out, or use the url of a "
        "Triton server"
    )


def request_body(call: Call) -> bytes:
    """The call as Azure's JSON.

    Put together by hand, with one copy of the base64 texts; an encoder of JSON would look at each of their characters.
    """
    return b"".join(pieces(call))


def pieces(call: Call) -> Iterator[bytes]:
    names = reports.COLUMNS if is_report(call) else embeddings.COLUMNS
    columns = {name: call.inputs[name].ravel().tolist() for name in names if name in call.inputs}
    yield b'{"input_data":{"columns":%b,"data":[' % json_bytes([*columns])
    for n, row in enumerate(zip(*columns.values(), strict=True)):
        for i, (column, value) in enumerate(zip(columns, row, strict=True)):
            yield b"," if i else b",[" if n else b"["
            yield from cell(column, value)
        yield b"]"
    yield b"]}"
    if asks_head(call):
        yield b',"params":%b' % json_bytes(dict(call.parameters))
    elif not is_report(call):  # those have no params
        yield b',"params":%b' % json_bytes({"get_scaling_factor": True, **call.parameters})
    yield b"}"


def cell(column: str, value: bytes | str) -> Sequence[bytes]:
    if column in IMAGE_COLUMNS:
        assert isinstance(value, bytes)
        return b'"', encode_base64(value), b'"'
    return (json_bytes(str(value, "utf-8") if isinstance(value, bytes) else value),)


def json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def read_head(body: bytes, call: Call) -> Outputs:
    """The scores of a head, with the labels by name.

    Raises:
        ResponseError: not a list of labels with their scores for each row.
    """
    (tensor,) = call.inputs.values()
    try:
        rows = decode_json(body)
        if not isinstance(rows, list) or len(rows) != len(tensor) or not all(isinstance(row, list) for row in rows):
            raise ValueError("not a list for each row")
        found = read_ranked(rows)
    except ValueError:
        raise ResponseError(
            f"the endpoint answered no list of labels and scores a row; is {call.model} a head?", status=200
        ) from None
    return {SCORES: found.scores, LABELS: np.array([found.labels] * len(rows), np.object_)}


def read_rows(body: bytes, n_rows: int) -> Sequence[dict[str, Any]]:
    """The rows of an answer.

    Raises:
        ResponseError: not the JSON of so many objects in a list.
    """
    try:
        rows = decode_json(body)
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ResponseError(not_scoring(200), status=200)
    if len(rows) != n_rows:
        raise ResponseError(f"the endpoint answered {len(rows)} rows; expected {n_rows}, as many as sent", status=200)
    return rows


def read_embeddings(body: bytes, call: Call) -> Outputs:
    """The call's outputs, each of shape (n, k) float32.

    Raises:
        ResponseError: not the answer to so many rows, or not as many numbers in each.
    """
    (tensor,) = call.inputs.values()
    rows = read_rows(body, len(tensor))
    return {name: read_numbers(rows, name) for name in call.output_names}


def read_numbers(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float32]:
    """What the rows hold under a name, a number, a list, or a list in a list; (n, k)."""
    try:
        array = np.array([row[name] for row in rows])
    except KeyError:
        raise ResponseError(f"a row of the endpoint's answer has no {name!r}", status=200) from None
    except ValueError:  # ragged
        array = np.array(None)
    if array.dtype.kind in "fi" and array.size and array.shape[1:-1] in ((), (1,)):
        with np.errstate(over="ignore"):  # gives infinity
            numbers = array.astype(np.float32).reshape(len(rows), -1)
        if np.isfinite(numbers).all():
            return numbers
    raise ResponseError(f"{name!r} of the endpoint's answer is not one list of numbers a row", status=200)


def read_vectors(rows: Sequence[Mapping[str, Any]], name: str, *, size: int = EMBEDDING_SIZE) -> NDArray[np.float32]:
    """What the rows hold under a name, (n, size)."""
    if not rows:
        return np.empty((0, size), np.float32)
    numbers = read_numbers(rows, name)
    if numbers.shape[1] != size:
        raise ResponseError(
            f"{name!r} of the endpoint's answer has {numbers.shape[1]} numbers in a row; expected {size}", status=200
        )
    return numbers


def read_report(body: bytes) -> Outputs:
    """The output of a report in Azure's JSON, which has no status.

    Raises:
        ResponseError: anything else.
    """
    (row,) = read_rows(body, 1)
    return text_outputs(row, output="output")


async def read_events(lines: AsyncIterable[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
    """Name and data of server-sent events, after WHATWG's HTML standard, 9.2.6; a lone CR does not end a line here."""
    name, data = b"message", list[bytes]()
    async for line in lines:
        key, _, value = line.rstrip(b"\r\n").partition(b":")
        value = value.removeprefix(b" ")
        if key == b"event":
            name = value
        elif key == b"data":
            data.append(value)
        elif not line.strip(b"\r\n"):
            if data:
                yield name, b"\n".join(data)
            name, data = b"message", []


def read_event(name: bytes, data: bytes) -> Outputs:
    """What an event of a report, other than its failure, tells; nothing if it is of no known name.

    Raises:
        ResponseError: its data are not those of its name.
    """
    match name:
        case b"text":
            return text_outputs(read_object(data), text_output="text")
        case b"progress":
            return text_outputs(read_object(data), progress="progress")
        case b"row":
            values = read_object(data) or {}
            optional = {name: name for name in ("model", "timing") if name in values}
            return text_outputs(values, output="output", status="status", **optional)
    return {}


def read_row_event(data: bytes, n_rows: int) -> tuple[int, dict[str, str]]:
    """The row of a report that is done, and its answer in Azure's JSON."""
    values = read_object(data) or {}
    row = values.get("row")
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < n_rows:
        raise ResponseError(not_scoring(200), status=200)
    return row, {"output": read_text(values, "output")}


def text_outputs(values: Mapping[str, Any] | None, **keys: str) -> Outputs:
    """Outputs, each a tensor of the text that `values` hold under its key."""
    return {name: np.array([read_text(values, key).encode()], dtype=np.object_) for name, key in keys.items()}


def read_text(values: Mapping[str, Any] | None, key: str) -> str:
    text = (values or {}).get(key)
    try:
        if isinstance(text, str):
            text.encode()
            return text
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise ResponseError(not_scoring(200), status=200)
