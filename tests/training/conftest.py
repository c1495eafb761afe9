"""A tiny checkpoint with drawings beside it, and what a run on them leaves."""

from pathlib import Path

import pytest

from medimage_training.config import read_fine_tuning
from medimage_training.trainer import fine_tune
from tests.training.tiny import write_config, write_drawings, write_tiny_checkpoint


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """checkpoint/, train.csv, new.csv and train.yaml; to be read alone."""
    folder = tmp_path_factory.mktemp("finetune")
    checkpoint = write_tiny_checkpoint(folder / "checkpoint")
    write_drawings(folder, "train", range(2))
    write_drawings(folder, "new", range(10, 11))
    write_config(folder / "train.yaml", checkpoint)
    return folder


@pytest.fixture(scope="session")
def finished(workplace) -> Path:
    """The output of an undisturbed run in one process; to be read alone."""
    output = workplace / "finished"
    lines: list[str] = []
    fine_tune(read_fine_tuning(workplace / "train.yaml", output=output), say=lines.append)
    (output / "said.txt").write_text("\n".join(lines))
    return output
