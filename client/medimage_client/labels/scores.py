"""How right predicted labels are, with bootstrap intervals.

- Accuracy, and balanced accuracy, the mean of the labels' recalls.
- AUC of a label: the area under the ROC curve of its probability, this label against the rest; ties count half. mAUC is
  the mean over labels.
- Precision, recall and F1 of a label; precision is 0 if the label was never the answer, as in scikit-learn. Macro F1 is
  the mean over labels.
- MCC of a label is Matthews' coefficient of this label against the rest; that of all is Gorodkin's for many classes. It
  is 0 where it is not defined.

A bootstrap sample draws, with replacement, as many images of each label as there are, so that every score is defined in
every sample; the interval is from the 2.5th to the 97.5th percentile. The formulas are written out over counts of how
often an image was drawn: a thousand samples then take as long as a dozen of scikit-learn's functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput
from medimage_client.labels.predictions import Predictions

Floats = NDArray[np.float64]
OVERALL = ("accuracy", "balanced_accuracy", "mauc", "macro_f1", "mcc")
OF_A_LABEL = ("precision", "recall", "f1", "auc", "mcc")
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap samples
DEFAULT_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float | None  # both None without a bootstrap
    high: float | None


@dataclass(frozen=True, slots=True)
class LabelScores:
    labels: list[str]
    confusion: NDArray[np.int64]  # (labels, labels): how many images of the row's label were answered by the column's
    overall: dict[str, Estimate]  # by the names of OVERALL
    of_label: dict[str, dict[str, Estimate]]  # by label, then by the names of OF_A_LABEL

    @property
    def n_images(self) -> int:
        return int(self.confusion.sum())


def evaluate(predictions: Predictions, truth: Sequence[int], *, samples: int, seed: int = 0) -> LabelScores:
    """LabelScores of predictions, of whose images the true labels are given by their index.

    Args:
        samples: of the bootstrap; 0 for no intervals.

    Raises:
        InvalidInput: a label has no image, or only one, of which a bootstrap can make no interval.
    """
    labels, true = predictions.labels, np.asarray(truth)
    check_truth(labels, truth, samples=samples)
    answers = np.asarray(predictions.answers)
    columns = [np.unique(column, return_inverse=True)[1] for column in predictions.probabilities.T]
    value, confusion = measure(true, answers, columns, np.ones(len(true), np.int64))
    members = [np.flatnonzero(true == label) for label in range(len(labels))]
    rng = np.random.default_rng(seed)
    drawn = [measure(true, answers, columns, draw(members, rng))[0] for _ in range(samples)]
    low, high = np.percentile(drawn, INTERVAL, axis=0) if samples else (None, None)

    def estimate(place: int) -> Estimate:
        if low is None or high is None:
            return Estimate(float(value[place]), None, None)
        return Estimate(float(value[place]), float(low[place]), float(high[place]))

    return LabelScores(
        labels,
        confusion,
        {name: estimate(place) for place, name in enumerate(OVERALL)},
        {
            label: {name: estimate(len(OVERALL) + i * len(labels) + row) for i, name in enumerate(OF_A_LABEL)}
            for row, label in enumerate(labels)
        },
    )


def check_truth(labels: Sequence[str], truth: Sequence[int], *, samples: int) -> None:
    """Raise InvalidInput if a label has too few images for `evaluate`, which has the same arguments."""
    for label, count in zip(labels, np.bincount(truth, minlength=len(labels)), strict=True):
        if count == 0:
            raise InvalidInput(
                f"no image has the label {label!r} in the truth, so that it has no recall and no AUC; add an image of "
                "it, or predict without this label"
            )
        if count == 1 and samples:
            raise InvalidInput(
                f"one image alone has the label {label!r} in the truth, so that a bootstrap shows no spread; add "
                "another, or ask for no intervals with --bootstrap 0"
            )


def draw(members: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each image is in a sample with as many of each label as there are; `members` are images by label."""
    times = np.zeros(sum(map(len, members)), np.int64)
    for images in members:
        times[images] = rng.multinomial(len(images), np.full(len(images), 1 / len(images)))
    return times


def measure(
    true: NDArray[np.int64], answers: NDArray[np.int64], columns: Sequence[NDArray[np.int64]], times: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64]]:
    """OVERALL, then each of OF_A_LABEL for all labels, as one array; and the confusion matrix.

    Args:
        columns: of each label, the ranks of its probabilities, from 0, equal ones with the same rank.
        times: how often each image counts.
    """
    n = len(columns)
    confusion = np.bincount(true * n + answers, times, n * n).reshape(n, n).astype(np.int64)
    right, actual, answered = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    total = confusion.sum()
    recall = right / actual
    precision = ratio(right, answered)
    f1 = 2 * right / (actual + answered)
    auc = np.array([area(ranks, true == label, times) for label, ranks in enumerate(columns)])
    mcc = ratio(
        right * (total - actual - answered + right) - (answered - right) * (actual - right),
        np.sqrt(1.0 * actual * answered * (total - actual) * (total - answered)),
    )
    mcc_of_all = ratio(
        right.sum() * total - actual @ answered,
        np.sqrt(1.0 * (total**2 - answered @ answered) * (total**2 - actual @ actual)),
    )
    overall = [right.sum() / total, recall.mean(), auc.mean(), f1.mean(), mcc_of_all]
    return np.concatenate([overall, precision, recall, f1, auc, mcc]), confusion


def area(ranks: NDArray[np.int64], positive: NDArray[np.bool_], times: NDArray[np.int64]) -> float:
    """Under the ROC curve: the share of pairs of a positive and a negative image in which the positive ranks higher."""
    of_negatives = np.bincount(ranks, np.where(positive, 0, times))
    lower = np.cumsum(of_negatives) - of_negatives / 2
    of_positives = np.where(positive, times, 0)
    return float(of_positives @ lower[ranks] / (of_positives.sum() * of_negatives.sum()))


def ratio(above: NDArray[np.int64], below: NDArray[np.float64]) -> Floats:
    """0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) > 0)
