"""Files that `medimage export` writes beside a model.py, and the one line that names what is wrong with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def exported_file(path: Path, model: str) -> Path:
    """The path of a file that `medimage export MODEL` writes.

    Raises:
        FileNotFoundError: the model was not exported yet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; run `medimage export {model}` to write it")
    return path


@contextmanager
def exported_json(path: Path, model: str) -> Iterator[Any]:
    """The content of a JSON file that `medimage export MODEL` writes, for a block that takes from it what it needs.

    Raises:
        FileNotFoundError: the model was not exported yet.
        ValueError: the file is no JSON, or the block found a key missing or a value that is not allowed.
    """
    exported_file(path, model)
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not what `medimage export {model}` writes: {reason}") from error
