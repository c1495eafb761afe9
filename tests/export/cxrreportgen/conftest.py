"""Checkpoint folders of small random models, and a repository to export into."""

from pathlib import Path

import pytest

from medimage_export.repository import copy_unexported
from tests.export.cxrreportgen.small import LLAMA, LONGROPE, PHI3, shorter, write_checkpoint
from tests.paths import REPOSITORY

CONFIGS = {"llama": shorter(LLAMA), "phi3": shorter(PHI3), "longrope": shorter(LONGROPE)}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A folder for each kind of decoder; not to be written into."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, config in CONFIGS.items():
        write_checkpoint(root / name, config)
    return {name: root / name for name in CONFIGS}


@pytest.fixture
def repository(tmp_path) -> Path:
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")
