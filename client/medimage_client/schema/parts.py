"""A request of Azure's in as few parts as an endpoint takes: itself, or some of its rows each."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from medimage_client.constants import MAX_BODY_BYTES
from medimage_client.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Part:
    body: bytes = field(repr=False)
    first_row: int
    n_rows: int


def parts_of(given: Mapping[str, Any] | str | bytes, content: Mapping[str, Any], *, max_rows: int) -> Iterator[Part]:
    """A request as it was given, in one part, unless it has too many rows or bytes.

    Args:
        given: the request, as JSON text or decoded.
        content: the same, decoded and found to be right.
        max_rows: of a part.

    Raises:
        InvalidInput: there is something in it that JSON cannot hold.
    """
    table, data = content["input_data"], content["input_data"]["data"]
    if not data:
        return
    text = to_json(given) if isinstance(given, Mapping) else given
    body = text if isinstance(text, bytes) else text.encode()
    if len(data) <= max_rows and len(body) <= MAX_BODY_BYTES:
        yield Part(body, 0, len(data))
        return
    head = b'{"input_data":{"columns":%b,"data":[' % to_json(table["columns"])
    tail = b"]}}" if content.get("params") is None else b']},"params":%b}' % to_json(content["params"])
    start, size, rows = 0, 0, list[bytes]()
    for row in map(to_json, data):
        if rows and (len(rows) == max_rows or size + len(row) > MAX_BODY_BYTES):
            yield Part(head + b",".join(rows) + tail, start, len(rows))
            start, size, rows = start + len(rows), 0, []
        rows.append(row)
        size += len(row) + 1
    yield Part(head + b",".join(rows) + tail, start, len(rows))


def to_json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, default=plain).encode()
    except (TypeError, ValueError, RecursionError):  # a message of theirs may quote it
        raise InvalidInput("the request holds what JSON cannot; expected lists, objects, texts and numbers") from None


def plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
