"""`medimage evaluate classification`: predictions and the truth to scores and pictures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from medimage_client.cli.label_options import bootstrap_option, truth_option
from medimage_client.cli.output_file import Content, check_place, write_files
from medimage_client.cli.table import table
from medimage_client.labels.pictures import confusion_matrix, import_figure, roc_curves
from medimage_client.labels.predictions import Predictions, read_predictions, read_truth, truth_of
from medimage_client.labels.scores import OF_A_LABEL, OVERALL, Estimate, LabelScores, evaluate

F = TypeVar("F", bound=Callable[..., Any])

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mauc": "mAUC",
    "macro_f1": "macro F1",
    "mcc": "MCC",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
}


def picture_option(name: str, what: str) -> Callable[[F], F]:
    return click.option(
        name,
        type=click.Path(path_type=Path, dir_okay=False, writable=True),
        callback=lambda ctx, parameter, path: path and check_picture(path),
        help=f"File to write, .png: {what}.",
    )


def check_picture(path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    if path.suffix != ".png":
        raise click.BadParameter(f"{path} is not .png")
    check_place(path)
    import_figure()
    return path


@click.command()
@click.argument(
    "predictions", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PREDICTIONS.csv|.parquet"
)
@truth_option(required=True)
@bootstrap_option
@picture_option("--confusion", "the confusion matrix")
@picture_option("--roc", "the ROC curve of each label against the rest")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def classification(
    predictions: Path, truth: Path, samples: int, confusion: Path | None, roc: Path | None, as_json: bool
) -> None:
    """Score predicted labels of images against true ones.

    PREDICTIONS is what `medimage classify --output` writes, or the like: a column `id`, one column of probabilities for
    each label, named after it, and `predicted`, the answer; without that the label of the highest probability. Images
    of --truth without a prediction are left out, and counted. Where its ids are names of files, folders do not count.
    """
    if confusion is not None and confusion == roc:
        raise click.UsageError("--confusion and --roc name the same file")
    answered = read_predictions(predictions)
    known = read_truth(truth, answered.labels)
    true = truth_of(answered.ids, known, truth)
    scores = evaluate(answered, true, samples=samples)
    pictures: dict[Path, Content] = {}
    if confusion is not None:
        pictures[confusion] = confusion_matrix(answered.labels, scores.confusion)
    if roc is not None:
        pictures[roc] = roc_of_labels(answered, true, scores)
    write_files(pictures)
    click.echo(render(scores, samples=samples, left_out=len(known) - len(true), as_json=as_json))


def roc_of_labels(predictions: Predictions, truth: Sequence[int], scores: LabelScores) -> bytes:
    curves = {}
    for index, label in enumerate(predictions.labels):
        text = f"{label} ({scores.of_label[label]['auc'].value:.3f})"
        curves[text] = (np.asarray(truth) == index, predictions.probabilities[:, index])
    return roc_curves(curves)


def render(scores: LabelScores, *, samples: int, left_out: int, as_json: bool) -> str:
    """What is printed; `left_out` are images of the truth without a prediction."""
    if as_json:
        return json.dumps(as_object(scores) | {"n_without_prediction": left_out}, indent=2)
    head = f"{scores.n_images} images, {len(scores.labels)} labels"
    if left_out:
        head += f"; {left_out} more images of the truth have no prediction"
    if samples:
        head += f"; in brackets 95 % intervals of {samples} bootstrap samples"
    overall = table(["", "score"], [[TITLES[name], cell(scores.overall[name])] for name in OVERALL])[1:]
    counts = scores.confusion.sum(axis=1)
    rows = [
        [label, str(count), *(cell(scores.of_label[label][name]) for name in OF_A_LABEL)]
        for label, count in zip(scores.labels, counts, strict=True)
    ]
    by_label = table(["label", "images", *(TITLES[name] for name in OF_A_LABEL)], rows)
    return "\n".join([head, "", *overall, "", *by_label])


def cell(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})"
    return f"{estimate.value:.3f}{interval}"


def as_object(scores: LabelScores) -> dict[str, Any]:
    return {
        "n_images": scores.n_images,
        **{name: asdict(estimate) for name, estimate in scores.overall.items()},
        "labels": {
            label: {"n_images": int(count), **{name: asdict(found) for name, found in scores.of_label[label].items()}}
            for label, count in zip(scores.labels, scores.confusion.sum(axis=1), strict=True)
        },
        "confusion": scores.confusion.tolist(),
    }
