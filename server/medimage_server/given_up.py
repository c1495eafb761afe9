"""Calls that nobody waits for any more, told to Triton's Python models.

Triton 2.51 does not pass the end of a call on to the steps of an ensemble, not even to one that still waits in a queue,
and has no way to cancel a call of one model to another. So a call has a number, a parameter that Triton hands to every
step. Who gives the call up, the endpoint or a model, leaves a file of that number in the run's folder.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from medimage_server.heartbeat import FOLDER_VARIABLE

PARAMETER = "medimage_call"  # of a request: its number


def new_number() -> int:
    return secrets.randbits(62)


def file_of(folder: Path, number: int) -> Path:
    """That a call was given up."""
    return folder / f"given-up-{number:x}"


def number_of(parameters: Mapping[str, object]) -> int | None:
    """The number of the request with these parameters, if it has one."""
    number = parameters.get(PARAMETER)
    return number if type(number) is int and number >= 0 else None


def is_given_up(parameters: Mapping[str, object]) -> bool:
    """In a Python model: whether the request with these parameters is part of a call that was given up."""
    number = number_of(parameters)
    return number is not None and file_of(models_folder(), number).exists()


def models_folder() -> Path:
    """Where the Python models look; there is no run's folder where another launcher has started Triton."""
    return Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir())
