"""Answers in JSON, and what a caller is told when there is none: a status, one line, and when to come again."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from medimage_client.errors import (
    InvalidInput,
    MedImageError,
    ModelLost,
    NoSharedMemory,
    NotFound,
    NotReady,
    RequestTimeout,
    ResponseError,
    TransportError,
    Unavailable,
)

RETRY_AFTER = "retry-after"
MODEL_FAILED = HTTPStatus.FAILED_DEPENDENCY  # 424, Azure's for a failed container; clients do not repeat it
RUN_FAILED = "x-ms-run-function-failed"  # of Azure's inference server
RECOVERY_S = 5  # that a restarted Triton takes at least; when to ask again where none is ready
CLIENT_GONE = 499  # for the log alone: nobody is there to read it


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


class Refusal(Exception):
    """The answer to a request that is not served. `message` is public, one line, without content of the request.

    Row and column are those of the input at fault, if it is one.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = int(status)
        self.message = message
        self.headers = headers or {}
        self.row: int | None = None
        self.column: str | None = None


class ClientGone(Exception):
    """The connection has ended before the answer."""


def refusal_of(error: MedImageError) -> Refusal:
    """A failure to ask Triton, in the statuses of Azure's endpoints.

    Nothing that is the caller's fault is a 5xx, which Microsoft's clients repeat up to fifteen times.
    """
    refusal = without_place(error)
    refusal.row, refusal.column = error.row, error.column
    return refusal


def without_place(error: MedImageError) -> Refusal:
    match error:
        case InvalidInput():
            return Refusal(HTTPStatus.BAD_REQUEST, str(error))
        case RequestTimeout():
            return Refusal(HTTPStatus.GATEWAY_TIMEOUT, str(error))
        case NotReady() | NotFound() | TransportError() | ModelLost():
            # which Triton is not there is the operator's business, and in the log
            return not_ready("no Triton is ready to answer; try again")
        case NoSharedMemory():
            return not_ready("the shared memory of the model's server is full; try again")
        case Unavailable():
            return too_many("the model's queue is full; try again", seconds=1)
        case ResponseError() if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Refusal(MODEL_FAILED, "Triton refuses this endpoint; see its configuration", {RUN_FAILED: "True"})
        case _:
            return Refusal(MODEL_FAILED, "the model failed; see the log of Triton", {RUN_FAILED: "True"})


def not_ready(message: str) -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, {RETRY_AFTER: str(RECOVERY_S)})


def too_many(message: str, *, seconds: int) -> Refusal:
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, message, {RETRY_AFTER: str(seconds)})


def ending() -> Refusal:
    return not_ready("the server is about to end")


def json_error(
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
