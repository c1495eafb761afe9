"""The model repository as export sees it: where each file goes, and whether the configs fit the checkpoint."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_export.errors import RepositoryError
from medimage_export.medimageinsight.config import MedImageInsightConfig

VERSION = "1"
EXPORTED_INTO = ("image_encoder", "image_preprocessing", "medimageinsight", "text_encoder", "text_tokenizer")
STAGING_PREFIX = ".export-"


def check_is_repository(repository: Path) -> None:
    """Raise RepositoryError unless every model that an export writes into is there."""
    for model in EXPORTED_INTO:
        path = repository / model / "config.pbtxt"
        if not path.is_file():
            raise RepositoryError(f"{path} is missing; --repository takes the model_repository folder of this project")


@contextmanager
def staging_folder(repository: Path) -> Iterator[Path]:
    """A folder with one subfolder per model of EXPORTED_INTO, gone after the `with` block."""
    # In the repository, to be of one file system with it; in a model's folder, where Triton looks only at versions.
    with tempfile.TemporaryDirectory(dir=repository / EXPORTED_INTO[0], prefix=STAGING_PREFIX) as scratch:
        for model in EXPORTED_INTO:
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
    exported = shutil.ignore_patterns("*.onnx", "*.onnx.data", "*.plan", "*.json", f"{STAGING_PREFIX}*", "__pycache__")
    return Path(shutil.copytree(repository, target, ignore=exported))


def check_configs(repository: Path, config: MedImageInsightConfig) -> None:
    """Raise RepositoryError unless the committed configs have the tensors that this checkpoint gives and takes."""
    height, width = config.image.image_size
    expected = {
        ("image_preprocessing", "pixels"): [height, width, 3],
        ("image_encoder", "pixels"): [height, width, 3],
        ("image_encoder", "image_features"): [config.projection_dim],
        ("text_tokenizer", "input_ids"): [config.text.context_length],
        ("text_encoder", "input_ids"): [config.text.context_length],
        ("text_encoder", "text_features"): [config.projection_dim],
    }
    for (model, tensor), dims in expected.items():
        path = repository / model / "config.pbtxt"
        try:
            parsed = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        except text_format.ParseError as exc:
            raise RepositoryError(f"{path}: line {exc}") from exc
        found = {t.name: list(t.dims) for t in (*parsed.input, *parsed.output)}
        if found.get(tensor) != dims:
            raise RepositoryError(f"{path}: {tensor} has dims {found.get(tensor)}; this checkpoint needs {dims}")
