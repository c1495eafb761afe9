"""Answers in JSON."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


def error_response(status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(error_body(status, message, request_id), status_code=int(status), headers=headers)


def error_body(status: int, message: str, request_id: str) -> bytes:
    """An error as all of ours are told. Clients of Azure's endpoints print `message`."""
    return orjson.dumps({"message": message, "status": int(status), "request_id": request_id})
