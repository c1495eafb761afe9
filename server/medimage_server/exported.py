"""Files that `medimage export` writes beside a model.py, and the one line that names what is wrong with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medimage_client.schema.reports import ModelIdentity


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


@dataclass(frozen=True, slots=True)
class Export:
    """What was exported."""

    precision: str
    format: str
    checkpoint: str  # the name of its file or folder
    checkpoint_sha256: str | None  # None of random weights

    @classmethod
    def read(cls, manifest: Path) -> "Export | None":
        """None of a manifest that is not one of ours."""
        try:
            values = json.loads(manifest.read_text(encoding="utf-8"))
            source = values["checkpoint"]
            return cls(values["precision"], values["format"], source["weights"], source.get("sha256"))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def to_json(self) -> dict[str, str | None]:
        return asdict(self)


def report_model(folder: Path) -> str | None:
    """The output `model` of a report, of the folder with its manifest; None without one of ours."""
    export = Export.read(folder / "manifest.json")
    if export is None:
        return None
    return ModelIdentity(
        checkpoint=export.checkpoint,
        checkpoint_sha256=export.checkpoint_sha256,
        precision=export.precision,
        version=version("medimage-triton"),
    ).to_json()
