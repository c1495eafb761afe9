"""The model repository as export sees it: where each file goes, and whether the configs fit the checkpoint."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from medimage_export.errors import RepositoryError
from medimage_export.served_config import HEAD_KEY, ConfigChange, as_onnx, parse_config

VERSION = "1"
EXPORTED_FILES = ("*.onnx", "*.onnx.data", "*.plan", "*.npy", "*.json")
STAGING_PREFIX = ".export-"


def check_is_repository(repository: Path, models: Sequence[str]) -> None:
    """Raise RepositoryError unless every model that an export writes into is there."""
    for model in models:
        path = repository / model / "config.pbtxt"
        if not path.is_file():
            raise RepositoryError(f"{path} is missing; run `medimage init --repository {repository}`")


@contextmanager
def staging_folder(repository: Path, models: Sequence[str]) -> Iterator[Path]:
    """A folder with one subfolder per model, gone after the `with` block."""
    # In the repository, to be of one file system with it; in a model's folder, where Triton looks only at versions.
    with tempfile.TemporaryDirectory(dir=repository / models[0], prefix=STAGING_PREFIX) as scratch:
        for model in models:
            (Path(scratch) / model).mkdir()
        yield Path(scratch)


def put_in_place(staging: Path, repository: Path, changes: Sequence[ConfigChange] = ()) -> None:
    """Move what was staged into the version folders, and change the configs that are to serve it or to tell of it."""
    for file in staging.glob("*/*"):
        version_folder = repository / file.parent.name / VERSION
        version_folder.mkdir(exist_ok=True)
        file.replace(version_folder / file.name)
    for change in changes:
        _write_config(repository / change.model / "config.pbtxt", change.config)
        if change.stale_files is not None:
            for stale in (repository / change.model / VERSION).glob(change.stale_files):
                stale.unlink()


def copy_unexported(repository: Path, target: Path) -> Path:
    """Copy a model repository as it was before any export; returns `target`, which must not exist."""
    heads = [config.parent.name for config in repository.glob("*/config.pbtxt") if is_of_head(config)]
    exported = shutil.ignore_patterns(*EXPORTED_FILES, f"{STAGING_PREFIX}*", "__pycache__", *heads)
    shutil.copytree(repository, target, ignore=exported)
    for config in target.glob("*/config.pbtxt"):
        _write_config(config, as_onnx(config.read_bytes().decode()))
    return target


def is_of_head(config: Path) -> bool:
    """Whether an export of a head has made this model whole."""
    return HEAD_KEY in parse_config(config, config.read_bytes().decode()).parameters


def _write_config(path: Path, text: str) -> None:
    """Only where something changes, as Triton loads a model again whose config is newer."""
    content = text.encode()  # bytes, so that line ends stay
    if path.read_bytes() != content:
        write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def check_configs(repository: Path, expected: Mapping[tuple[str, str], Sequence[int]]) -> None:
    """Raise RepositoryError unless the committed configs have these dims, by model and tensor."""
    for (model, tensor), dims in expected.items():
        path = repository / model / "config.pbtxt"
        parsed = parse_config(path, path.read_text(encoding="utf-8"))
        found = {t.name: list(t.dims) for t in (*parsed.input, *parsed.output)}
        if found.get(tensor) != list(dims):
            raise RepositoryError(f"{path}: {tensor} has dims {found.get(tensor)}; this checkpoint needs {list(dims)}")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a file that people may read, too."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
