"""How every adapter answers a request that failed, so that no caller and no log gets to see what was in it."""

import traceback
from typing import Any

from medimage_server.errors import InferenceFailed, InvalidInput


def error_response(pb_utils: Any, request: Any, error: Exception) -> Any:
    """The InferenceResponse that refuses one request.

    Only the errors of medimage_server.errors reach the caller with their text. Of any other, the log gets type and
    place, but not the text, which may quote the input.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.
        request: the InferenceRequest.
    """
    if isinstance(error, InvalidInput):
        return _refusal(pb_utils, str(error), pb_utils.TritonError.INVALID_ARG)
    if isinstance(error, InferenceFailed):
        return _refusal(pb_utils, str(error), pb_utils.TritonError.INTERNAL)
    where = "".join(traceback.format_tb(error.__traceback__))
    pb_utils.Logger.log_error(f"request {request.request_id()}: {type(error).__name__}\n{where}")
    return _refusal(pb_utils, "internal error", pb_utils.TritonError.INTERNAL)


def _refusal(pb_utils: Any, message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
