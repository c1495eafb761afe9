"""Answers in JSON."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


def error_response(
    status: int,
    message: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    *,
    row: int | None = None,
    column: str | None = None,
) -> Response:
    body = error_body(status, message, request_id, row=row, column=column)
    return JSONResponse(body, status_code=int(status), headers=headers)


def error_body(
    status: int, message: str, request_id: str, *, row: int | None = None, column: str | None = None
) -> bytes:
    return orjson.dumps(error_values(status, message, request_id, row=row, column=column))


def error_values(
    status: int, message: str, request_id: str, *, row: int | None = None, column: str | None = None
) -> dict[str, Any]:
    """An error as all of ours are told. Clients of Azure's endpoints print `message`; programs read row and column."""
    values = {"message": message, "status": int(status), "row": row, "column": column, "request_id": request_id}
    return {name: value for name, value in values.items() if value is not None}
