"""Scores of predicted labels against counts by hand, scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.stats import binom, mannwhitneyu
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from medimage_client import InvalidInput
from medimage_client.labels.predictions import Predictions, predictions_of
from medimage_client.labels.scores import OF_A_LABEL, area, evaluate

LABELS = ["A", "B", "C"]
TRUE = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
ANSWERS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 0]


def named(n):
    return [str(i) for i in range(n)]


def test_scores_by_hand():
    probabilities = 0.6 * np.eye(3)[ANSWERS] + 0.2
    scores = evaluate(Predictions(named(10), LABELS, ANSWERS, probabilities), TRUE, samples=0)
    assert scores.confusion.tolist() == [[3, 1, 0], [0, 2, 1], [1, 0, 2]]
    assert scores.n_images == 10
    values = {name: estimate.value for name, estimate in scores.overall.items()}
    assert values["accuracy"] == pytest.approx(7 / 10)
    assert values["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 2 / 3) / 3)
    assert values["macro_f1"] == pytest.approx((3 / 4 + 2 / 3 + 2 / 3) / 3)  # precision and recall are equal
    of_a = {name: estimate.value for name, estimate in scores.of_label["A"].items()}
    # 3 right, 1 missed, 1 too many, 5 left out; the probability has two values, so that AUC is their mean
    assert of_a == pytest.approx(
        {"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "auc": (3 / 4 + 5 / 6) / 2, "mcc": (3 * 5 - 1 * 1) / 24}
    )
    assert all(estimate.low is None and estimate.high is None for estimate in scores.overall.values())


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn_and_scipy(seed):
    rng = np.random.default_rng(seed)
    n, n_labels = 60, 4
    true = rng.permutation(np.arange(n) % n_labels)
    probabilities = rng.dirichlet(np.ones(n_labels), n).round(1)  # many equal ones
    probabilities[:, 0] *= rng.choice([0, 1])  # of half of the seeds, a label that is hardly ever the answer
    predictions = predictions_of(named(n), list("abcd"), probabilities)
    scores = evaluate(predictions, true.tolist(), samples=0)
    answers = probabilities.argmax(axis=1)
    assert np.array_equal(scores.confusion, confusion_matrix(true, answers, labels=range(n_labels)))
    overall = {name: estimate.value for name, estimate in scores.overall.items()}
    areas = [
        mannwhitneyu(column[true == label], column[true != label]).statistic
        / ((true == label).sum() * (true != label).sum())
        for label, column in enumerate(probabilities.T)
    ]
    assert overall == pytest.approx(
        {
            "accuracy": accuracy_score(true, answers),
            "balanced_accuracy": balanced_accuracy_score(true, answers),
            "mauc": np.mean(areas),
            "macro_f1": f1_score(true, answers, average="macro", zero_division=0),
            "mcc": matthews_corrcoef(true, answers),
        }
    )
    precision, recall, f1, _ = precision_recall_fscore_support(true, answers, labels=range(n_labels), zero_division=0)
    mcc = [matthews_corrcoef(true == label, answers == label) for label in range(n_labels)]
    for name, expected in zip(OF_A_LABEL, (precision, recall, f1, areas, mcc), strict=True):
        assert [scores.of_label[label][name].value for label in "abcd"] == pytest.approx(list(expected)), name


def test_area_counts_an_image_as_often_as_it_was_drawn():
    rng = np.random.default_rng(1)
    values, positive, times = rng.integers(0, 9, 50), rng.random(50) < 0.4, rng.integers(0, 4, 50)
    assert area(values, positive, times) == pytest.approx(roc_auc_score(positive, values, sample_weight=times))


def test_interval_of_the_accuracy_is_that_of_two_binomials():
    """A sample draws 40 images of each label: how many of them are right is binomial, here of 3/4 and of 1/2."""
    true = [0] * 40 + [1] * 40
    answers = [0] * 30 + [1] * 10 + [1] * 20 + [0] * 20
    predictions = Predictions(named(80), ["a", "b"], answers, np.eye(2)[answers])
    accuracy = evaluate(predictions, true, samples=4000).overall["accuracy"]
    right = np.convolve(binom(40, 0.75).pmf(np.arange(41)), binom(40, 0.5).pmf(np.arange(41)))
    low, high = np.searchsorted(np.cumsum(right), [0.025, 0.975])
    assert accuracy.value == 50 / 80
    assert (accuracy.low, accuracy.high) == pytest.approx((low / 80, high / 80), abs=1 / 80)


def test_intervals_are_the_same_in_each_run_and_hold_the_value():
    rng = np.random.default_rng(0)
    true = rng.permutation(np.arange(90) % 3).tolist()
    predictions = predictions_of(named(90), LABELS, 0.5 * np.eye(3)[true] + rng.random((90, 3)))
    once, again = (evaluate(predictions, true, samples=200) for _ in range(2))
    assert once.overall == again.overall
    for estimates in (once.overall, *once.of_label.values()):
        assert all(found.low < found.value < found.high for found in estimates.values())


@pytest.mark.parametrize(
    ("true", "samples", "message"),
    [
        ([0, 0, 1, 1], 0, "no image has the label 'C' in the truth, so that it has no recall and no AUC; add an image"),
        ([0, 0, 1, 2], 10, "one image alone has the label 'B' in the truth, so that a bootstrap shows no spread; add"),
    ],
)
def test_label_of_too_few_images_is_refused(true, samples, message):
    predictions = predictions_of(named(4), LABELS, np.eye(3)[true])
    with pytest.raises(InvalidInput) as refused:
        evaluate(predictions, true, samples=samples)
    assert str(refused.value).startswith(message)


def test_label_of_one_image_is_scored_without_a_bootstrap():
    true = [0, 0, 1, 2]
    scores = evaluate(predictions_of(named(4), LABELS, np.eye(3)[true]), true, samples=0)
    assert scores.overall["mauc"].value == scores.overall["mcc"].value == 1
