"""Calls from one model of the repository to another: Triton's business logic scripting (BLS), and its errors.

A call may come from any thread of a model, decoupled or not, and blocks that thread alone. The code of an error is lost
on the way (see triton_workarounds.py); so an error is told by its text, which is read here and nowhere else.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_server.errors import CODES, InferenceFailed, InvalidInput, Unavailable

REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")  # of Triton's own queues
TRY_AGAIN = "; try again"  # of our preprocessing, in what it calls Unavailable
ROW = re.compile(r"row (\d+): ")  # how our preprocessing names the image that cannot be used

NAMED_ERRORS = {kind.__name__: kind for kind in CODES}


def infer(pb_utils: Any, model: str, inputs: Mapping[str, NDArray[Any]], output: str) -> NDArray[Any]:
    """Call a model that answers once; its output is copied to memory of our own.

    Args:
        pb_utils: the module triton_python_backend_utils, which there is only inside Triton.

    Raises:
        InvalidInput, Unavailable, InferenceFailed: what the model answered instead.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(name, values) for name, values in inputs.items()],
        requested_output_names=[output],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
    )
    response = request.exec()
    if response.has_error():
        raise error_of(model, response.error().message())
    return np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy())


def error_of(model: str, message: str) -> Exception:
    """The error of medimage_server.errors that a preprocessing step or an encoder means by its message."""
    if named := ROW.match(message):
        return InvalidInput(message[named.end() :], row=int(named[1]))
    if any(text in message for text in REFUSALS):
        return Unavailable(f"{model} is busy; try again later")
    if TRY_AGAIN in message:
        return Unavailable(f"{model}: {message}")
    return InferenceFailed(f"internal error: {model}: {message}")


def with_name(error: Exception) -> Exception:
    """An error of medimage_server.errors for a caller by BLS: the same, its text preceded by its kind."""
    return type(error)(f"{type(error).__name__}: {error}")


def by_name(message: str) -> Exception:
    """What `with_name` was given."""
    name, _, text = message.partition(": ")
    return NAMED_ERRORS[name](text) if name in NAMED_ERRORS else InferenceFailed(f"internal error: {message}")
