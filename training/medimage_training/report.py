"""What a run has brought: a table of scores before and after, curves, and confusion matrices."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medimage_client.cli.table import table
from medimage_client.labels.pictures import DPI, confusion_matrix, import_figure, png
from medimage_training.evaluation import EvaluationSet, SetScores
from medimage_training.published import write_text
from medimage_training.run_state import read_log

HEAD = ["", "images", "labels", "accuracy", "BACC", "mAUC"]
MAX_LABELS_OF_A_PICTURE = 60


def lines_of(sets: Sequence[EvaluationSet], moments: Mapping[str, Mapping[str, SetScores]]) -> list[str]:
    """A table: each set before, and after; `moments` have the scores by a moment's name, then by that of the set."""
    rows = [
        [
            f"{one.name}, {moment}",
            str(len(one.examples)),
            str(len(one.labels)),
            *(f"{value:.3f}" if value is not None else "-" for value in numbers(scores[one.name])),
        ]
        for one in sets
        for moment, scores in moments.items()
    ]
    return table(HEAD, rows)


def numbers(scores: SetScores) -> tuple[float, float, float | None]:
    return scores.accuracy, scores.balanced_accuracy, scores.mauc


def write_report(
    folder: Path, sets: Sequence[EvaluationSet], moments: Mapping[str, Mapping[str, SetScores]]
) -> list[str]:
    """report.md, report.json and pictures; returns the lines of the table."""
    lines = lines_of(sets, moments)
    text = ["# Fine-tuning report", "", "```text", *lines, "```", "", "![Loss and accuracy](curves.png)", ""]
    (folder / "curves.png").write_bytes(curves(read_log(folder), [one.name for one in sets]))
    for one in sets:
        if len(one.labels) > MAX_LABELS_OF_A_PICTURE:
            continue
        for moment, scores in [*moments.items()][:2]:  # before, and best
            name = f"confusion_{one.name}_{moment.split()[0]}.png"
            (folder / name).write_bytes(confusion_matrix(one.labels, scores[one.name].confusion))
            text += [f"{one.name}, {moment}:", "", f"![Confusion matrix of {one.name}, {moment}]({name})", ""]
    write_text(folder / "report.md", "\n".join(text))
    found: dict[str, Any] = {
        one.name: {"labels": one.labels, **{moment: as_object(scores[one.name]) for moment, scores in moments.items()}}
        for one in sets
    }
    write_text(folder / "report.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return lines


def as_object(scores: SetScores) -> dict[str, Any]:
    return asdict(scores) | {"confusion": scores.confusion.tolist()}


def curves(rows: Sequence[Mapping[str, str]], sets: Sequence[str]) -> bytes:
    """A PNG: the loss above, the accuracy of each set below."""
    figure = import_figure()(figsize=(7, 5), dpi=DPI, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    points = [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]
    above.plot(*zip(*points, strict=True) if points else ([], []))
    above.set_ylabel("loss")
    for name in sets:
        column = f"{name}_accuracy"
        points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        below.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, label=name)
    below.set_ylabel("accuracy")
    below.set_ylim(0, 1)
    below.set_xlabel("optimizer step")
    if sets:
        below.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)
