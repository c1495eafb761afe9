"""How right a head is, and at which score a label counts as found.

Shapes: n images, c labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from medimage_analysis.heads.head import Scores
from medimage_client.labels.predictions import Predictions, predictions_of
from medimage_client.labels.scores import Estimate, LabelScores, evaluate

POINTS = ("youden_j", "sensitivity_90", "best_f1")
WANTED_SENSITIVITY = 0.9
BINS = 10  # of the calibration

Targets = NDArray[np.bool_]  # (n, c)


@dataclass(frozen=True, slots=True)
class Point:
    """An operating point: a label counts as found from this score on."""

    threshold: float
    sensitivity: float
    specificity: float
    f1: float


def operating_points(scores: Scores, targets: Targets, labels: Sequence[str]) -> dict[str, dict[str, Point]]:
    """By label and name in POINTS.

    - youden_j: where sensitivity + specificity is greatest;
    - sensitivity_90: the highest score with a sensitivity of 0.9 or more;
    - best_f1: where F1 is greatest.
    """
    return {label: points_of(scores[:, i], targets[:, i]) for i, label in enumerate(labels)}


def points_of(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> dict[str, Point]:
    false_positives, sensitivity, levels = (
        values[1:] for values in roc_curve(positive, scores, drop_intermediate=False)
    )  # the first level is above all scores
    precision, recall, f1_levels = precision_recall_curve(positive, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    chosen = {
        "youden_j": levels[np.argmax(sensitivity - false_positives)],
        "sensitivity_90": levels[np.argmax(sensitivity >= WANTED_SENSITIVITY)],
        "best_f1": f1_levels[np.argmax(f1[:-1])],  # the last one is that of no answer
    }
    return {name: point_at(float(level), scores, positive) for name, level in chosen.items()}


def point_at(threshold: float, scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> Point:
    found = scores >= np.float32(threshold)
    true = int((found & positive).sum())
    f1 = 2 * true / max(1, int(found.sum() + positive.sum()))
    return Point(threshold, true / max(1, int(positive.sum())), float((~found[~positive]).mean()), f1)


@dataclass(frozen=True, slots=True)
class HeadMeasures:
    """Scores of one set of images."""

    n_images: int
    overall: dict[str, Estimate]  # accuracy, balanced_accuracy, mauc, macro_f1, mcc; of labels by themselves, some
    of_label: dict[str, dict[str, Estimate]]  # by label, then precision, recall, f1, auc, mcc
    counts: dict[str, int]  # images of each label
    confusion: NDArray[np.int64] | None  # None of labels by themselves
    calibration_error: float

    def to_json(self) -> dict[str, object]:
        return {
            "n_images": self.n_images,
            **{name: asdict(estimate) for name, estimate in self.overall.items()},
            "calibration_error": self.calibration_error,
            "labels": {
                label: {"n_images": self.counts[label], **{name: asdict(one) for name, one in found.items()}}
                for label, found in self.of_label.items()
            },
        }


def measured(
    ids: Sequence[str],
    labels: Sequence[str],
    scores: Scores,
    targets: Targets,
    *,
    multilabel: bool,
    thresholds: Mapping[str, float],
    samples: int,
) -> HeadMeasures:
    """By the client's scores, with bootstrap intervals.

    One label an image: the answer is that of the highest score. Labels by themselves: each is found from its threshold
    on, and is scored as a question of two answers; the mean of their AUC and F1 is that of all, without an interval.

    Raises:
        InvalidInput: a label has no image, or a single one with a bootstrap.
    """
    counts = dict(zip(labels, targets.sum(axis=0).tolist(), strict=True))
    error = calibration_error(scores, targets)
    if not multilabel:
        found = evaluate(predictions_of(ids, labels, scores), targets.argmax(axis=1).tolist(), samples=samples)
        return HeadMeasures(len(ids), found.overall, found.of_label, counts, found.confusion, error)
    of_label = {
        label: of_one_label(ids, label, scores[:, i], targets[:, i], thresholds[label], samples).of_label[label]
        for i, label in enumerate(labels)
    }
    means = {
        f"{'m' if name == 'auc' else 'macro_'}{name}": mean_of([found[name] for found in of_label.values()])
        for name in ("auc", "f1")
    }
    return HeadMeasures(len(ids), means, of_label, counts, None, error)


def of_one_label(
    ids: Sequence[str],
    label: str,
    scores: NDArray[np.float32],
    positive: NDArray[np.bool_],
    threshold: float,
    samples: int,
) -> LabelScores:
    both = np.stack([1 - scores, scores], axis=1)
    answers = (scores >= np.float32(threshold)).astype(int).tolist()
    predictions = Predictions([*ids], [f"not {label}", label], answers, both)
    return evaluate(predictions, positive.astype(int).tolist(), samples=samples)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(float(np.mean([estimate.value for estimate in estimates])), None, None)


def calibration(scores: Scores, targets: Targets) -> list[tuple[float, float, int]]:
    """Of all scores of all labels, in BINS of equal width: the mean score, the share that is true, and how many."""
    flat, true = scores.ravel().astype(np.float64), targets.ravel()
    place = np.minimum((flat * BINS).astype(int), BINS - 1)
    there = [np.flatnonzero(place == index) for index in range(BINS)]
    return [(float(flat[some].mean()), float(true[some].mean()), len(some)) for some in there if some.size]


def calibration_error(scores: Scores, targets: Targets) -> float:
    """The mean distance of score and truth over the bins, each as often as it has scores (ECE)."""
    bins = calibration(scores, targets)
    return sum(abs(score - true) * n for score, true, n in bins) / sum(n for *_, n in bins)
