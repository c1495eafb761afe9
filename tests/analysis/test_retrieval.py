"""Precision and mAP are those of scikit-learn, and of hand maths."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from medimage_analysis.retrieval import evaluate_retrieval
from medimage_client.errors import InvalidInput


def at(*degrees):
    """Unit vectors on a circle, (n, 2)."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)


def test_hand_maths():
    """From 0 degrees the others come as 10, 20, 40; from 10 as 0 (10 away), 20 (10.5), 40 (30); and so on."""
    vectors, labels = at(0, 10, 20.5, 40), ["a", "b", "a", "a"]
    scores = evaluate_retrieval(vectors, labels, [None] * 4)
    # 0: b a a -> AP (1/2 + 2/3)/2; 20.5: b(10.5) a(19.5) a(20.5) -> the same; 40: a b a -> (1 + 2/3)/2
    a = scores.labels["a"]
    assert list(scores.labels) == ["a"] and scores.without_match == 1  # b is alone
    assert a.queries == 3
    assert a.average_precision == pytest.approx((2 * (1 / 2 + 2 / 3) / 2 + (1 + 2 / 3) / 2) / 3)
    assert a.precision == pytest.approx({1: 1 / 3, 3: 2 / 3, 5: 2 / 5, 10: 2 / 10})


def test_the_own_study_is_left_out():
    vectors, labels = at(0, 1, 30, 50), ["a", "a", "b", "a"]
    alone = evaluate_retrieval(vectors, labels, [None] * 4)
    assert alone.labels["a"].precision[1] == pytest.approx(2 / 3)  # of 0 and 1, which find each other
    scores = evaluate_retrieval(vectors, labels, ["s", "s", "t", "u"])
    assert scores.labels["a"].precision[1] == 0  # all find b first
    assert scores.labels["a"].average_precision == pytest.approx((1 / 2 + 1 / 2 + (1 / 2 + 2 / 3) / 2) / 3)


def naive(vectors, labels, studies, k):
    """Of each query, precision at k and scikit-learn's average precision, as loops."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for query in range(len(unit)):
        others = [n for n in range(len(unit)) if studies[n] != studies[query]]
        cosines = np.array([unit[query] @ unit[n] for n in others])
        match = np.array([labels[n] == labels[query] for n in others])
        order = np.argsort(-cosines)
        found.append((match[order[:k]].mean(), average_precision_score(match, cosines)))
    return np.array(found)


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_random_vectors_score_as_by_scikit_learn(k):
    rng = np.random.default_rng(3)
    n = 150
    labels = [f"label {value}" for value in rng.integers(0, 4, n)]
    studies = [f"study {value}" for value in rng.integers(0, 60, n)]
    vectors = rng.normal(size=(n, 16)).astype(np.float32)
    vectors[np.array(labels) == "label 0"] += 0.5
    scores = evaluate_retrieval(vectors, labels, studies)
    expected = naive(vectors, labels, studies, k)
    for name, one in scores.labels.items():
        of_label = expected[np.array(labels) == name].mean(axis=0)
        assert (one.precision[k], one.average_precision) == pytest.approx(tuple(of_label), abs=1e-6)
    macro = np.mean([expected[np.array(labels) == name].mean(axis=0) for name in sorted(set(labels))], axis=0)
    assert (scores.macro.precision[k], scores.macro.average_precision) == pytest.approx(tuple(macro), abs=1e-6)
    assert scores.macro.queries == n and scores.without_match == 0


def test_equal_distances_count_at_once_as_in_scikit_learn():
    vectors, labels = at(0, 20, 20, 20, 40), list("abaab")
    scores = evaluate_retrieval(vectors, labels, [None] * 5)
    expected = naive(vectors, labels, range(5), 1)
    assert scores.labels["a"].average_precision == pytest.approx(expected[[0, 2, 3], 1].mean())


def test_a_sample_of_the_queries_is_the_same_in_each_run():
    rng = np.random.default_rng(4)
    vectors, labels = rng.normal(size=(100, 8)).astype(np.float32), ["a", "b"] * 50
    one, other = (evaluate_retrieval(vectors, labels, [None] * 100, queries=20) for _ in range(2))
    assert one == other and one.macro.queries == 20


def test_labels_of_one_study_each_cannot_be_scored():
    with pytest.raises(InvalidInput, match="no label is that of two studies"):
        evaluate_retrieval(at(0, 1, 2), ["a", "a", "b"], ["s", "s", "t"])
