"""Errors that a caller of the server may see, and one for its operator; and how each adapter answers with them.

str() of each is one line, without content of a request. Of any other error no caller and no log sees the text, which
may quote the input.
"""

import traceback
from typing import Any


class InvalidInput(Exception):
    """The request cannot be served as sent. Says what, where, and what would be right.

    Triton carries the text alone; medimage_client.wire.error_reader reads row or column out of it again.

    Args:
        row: of the input at fault, within the request.
        column: of the input at fault, by its name.
    """

    def __init__(self, reason: str, *, row: int | None = None, column: str | None = None) -> None:
        place = column if row is None else f"row {row}"
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.row = row


class InferenceFailed(Exception):
    """The model failed for a reason that is not the caller's. Its text begins with "internal error"."""


class Unavailable(Exception):
    """The server cannot do it now: its queue is full, the request took too long, or it is shutting down."""


class Cancelled(Exception):
    """The caller gave the request up."""


class LaunchError(Exception):
    """A server cannot be started, or goes on no more; says what is wrong and what to do."""


class StuckStart(LaunchError):
    """A server's start that came to a standstill by chance: it will not end, and the next one may well."""


# the name of the code in pb_utils.TritonError
CODES = {InvalidInput: "INVALID_ARG", InferenceFailed: "INTERNAL", Unavailable: "UNAVAILABLE", Cancelled: "CANCELLED"}


def error_response(pb_utils: Any, request: Any, error: Exception) -> Any:
    """The InferenceResponse that refuses one request.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        request: the InferenceRequest.
    """
    return refusal(pb_utils, public_error(pb_utils, error, request.request_id()))


def public_error(pb_utils: Any, error: Exception, request_id: str) -> Exception:
    """One of the errors of medimage_server.errors: the error itself, if it is one.

    Of any other, the log gets type and place, but not the text, which may quote the input.
    """
    if type(error) in CODES:
        return error
    where = "".join(traceback.format_tb(error.__traceback__))
    pb_utils.Logger.log_error(f"request {request_id}: {type(error).__name__}\n{where}")
    return InferenceFailed("internal error")


def refusal(pb_utils: Any, error: Exception) -> Any:
    """The InferenceResponse of an error of medimage_server.errors."""
    code = getattr(pb_utils.TritonError, CODES[type(error)])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
