"""How every adapter answers a request that failed, so that no caller and no log gets to see what was in it."""

import traceback
from typing import Any

from medimage_server.errors import Cancelled, InferenceFailed, InvalidInput, Unavailable

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
