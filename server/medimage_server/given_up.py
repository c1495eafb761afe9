"""Images that nobody waits for any more, told from the endpoint to Triton's Python models.

Triton 2.51 does not pass the end of a call on to the steps of an ensemble, not even to one that still waits in a queue.
So a call has a number, a parameter that Triton hands to every step. When the endpoint gives the call up, it leaves a
file of that number in the run's folder.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from medimage_server.heartbeat import FOLDER_VARIABLE

PARAMETER = "medimage_call"  # of a request: its number


def new_number() -> int:
    return secrets.randbits(62)


def file_of(folder: Path, number: int) -> Path:
    """That a call was given up."""
    return folder / f"given-up-{number:x}"


def is_given_up(parameters: Mapping[str, object]) -> bool:
    """In a Python model: whether the request with these parameters is part of a call that was given up."""
    folder, number = os.environ.get(FOLDER_VARIABLE), parameters.get(PARAMETER)
    return folder is not None and type(number) is int and file_of(Path(folder), number).exists()
