"""The state of a run, from which it goes on as if it had not been interrupted; and its log.

Of dice nothing is kept: those of batches, augmentation and drop path follow from the seed and the step.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from medimage_client.errors import InvalidInput
from medimage_training.config import FineTuning
from medimage_training.published import replacing

STATE, LOG = "state.pt", "log.csv"
FREE_TO_CHANGE = {  # options that a resumed run may have otherwise: they do not change the weights
    *("checkpoint", "output", "train", "label_file", "evaluations", "model", "said", "resume", "workers"),
    *("save_every", "evaluate_every", "log_every", "evaluation_batch", "checkpointing", "ema_on_cpu"),
}


def identity(options: FineTuning, *, checkpoint_sha256: str, data_sha256: str) -> dict[str, str]:
    """What makes two runs the same one, by name."""
    own = {field.name: repr(getattr(options, field.name)) for field in fields(options)}
    kept = {name: value for name, value in own.items() if name not in FREE_TO_CHANGE}
    return {"the checkpoint": checkpoint_sha256, "the training data": data_sha256, **kept}


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Whole or not at all: a run that is killed meanwhile goes on from the state before."""
    with replacing(folder / STATE) as partial:
        torch.save(dict(state), partial)


def load_state(folder: Path, expected: Mapping[str, str]) -> dict[str, Any] | None:
    """The last state that was saved, or None.

    Raises:
        InvalidInput: it is damaged, or of another run.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle and zip files almost any type
        raise InvalidInput(f"{path} is damaged; remove it, and the run starts anew") from error
    different = [name for name, value in expected.items() if state["identity"].get(name) != value]
    if different:
        raise InvalidInput(
            f"{path} is the state of another run: {', '.join(different)} differ; resume with the same, or write to "
            "another folder"
        )
    return state


class Log:
    """log.csv: a row for a step that is logged or evaluated."""

    def __init__(self, folder: Path, columns: Sequence[str], *, last_step: int) -> None:
        self._path, self._columns = folder / LOG, [*columns]
        rows = [row for row in read_log(folder) if int(row["step"]) <= last_step] if last_step else []
        with replacing(self._path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def write(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(
                {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
            )


def read_log(folder: Path) -> list[dict[str, str]]:
    path = folder / LOG
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]  # one cut off by a kill lacks cells


def as_json(options: FineTuning) -> dict[str, Any]:
    """Options for a manifest."""
    own = {field.name: getattr(options, field.name) for field in fields(options) if field.name != "said"}
    text = json.dumps(own, default=lambda value: vars(value) if hasattr(value, "__dict__") else str(value))
    plain: dict[str, Any] = json.loads(text)
    return plain
