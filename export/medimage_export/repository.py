"""The model repository as export sees it: where each file goes, and whether the configs fit the checkpoint."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_export.errors import RepositoryError

VERSION = "1"
EXPORTED_FILES = ("*.onnx", "*.onnx.data", "*.plan", "*.npy", "*.json")
STAGING_PREFIX = ".export-"


def check_is_repository(repository: Path, models: Sequence[str]) -> None:
    """Raise RepositoryError unless every model that an export writes into is there."""
    for model in models:
        path = repository / model / "config.pbtxt"
        if not path.is_file():
            raise RepositoryError(f"{path} is missing; --repository takes the model_repository folder of this project")


@contextmanager
def staging_folder(repository: Path, models: Sequence[str]) -> Iterator[Path]:
    """A folder with one subfolder per model, gone after the `with` block."""
    # In the repository, to be of one file system with it; in a model's folder, where Triton looks only at versions.
    with tempfile.TemporaryDirectory(dir=repository / models[0], prefix=STAGING_PREFIX) as scratch:
        for model in models:
            (Path(scratch) / model).mkdir()
        yield Path(scratch)


def put_in_place(staging: Path, repository: Path) -> None:
    """Move what was staged into the version folders."""
    for file in staging.glob("*/*"):
        version_folder = repository / file.parent.name / VERSION
        version_folder.mkdir(exist_ok=True)
        file.replace(version_folder / file.name)


def copy_unexported(repository: Path, target: Path) -> Path:
    """Copy a model repository without what exports wrote into it; returns `target`, which must not exist."""
    exported = shutil.ignore_patterns(
        "*.onnx", "*.onnx.data", "*.plan", "*.npy", "*.json", f"{STAGING_PREFIX}*", "__pycache__"
    )
    return Path(shutil.copytree(repository, target, ignore=exported))


def check_configs(repository: Path, expected: Mapping[tuple[str, str], Sequence[int]]) -> None:
    """Raise RepositoryError unless the committed configs have these dims, by model and tensor."""
    for (model, tensor), dims in expected.items():
        path = repository / model / "config.pbtxt"
        try:
            parsed = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        except text_format.ParseError as exc:
            raise RepositoryError(f"{path}: line {exc}") from exc
        found = {t.name: list(t.dims) for t in (*parsed.input, *parsed.output)}
        if found.get(tensor) != list(dims):
            raise RepositoryError(f"{path}: {tensor} has dims {found.get(tensor)}; this checkpoint needs {list(dims)}")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a file that people may read, too."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
