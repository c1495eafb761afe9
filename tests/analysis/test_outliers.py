"""Outliers against SciPy's distances, pandas-like statistics by hand, and thresholds by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medimage_analysis.outliers import Described, Separation, distances, members_of, pool, separation, threshold_of_roc
from medimage_client import InvalidInput


def described(vectors, prefix):
    return Described([f"{prefix}{i}" for i in range(len(vectors))], np.asarray(vectors, np.float32))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_distance_is_the_mean_of_the_nearest(k):
    rng = np.random.default_rng(0)
    some, reference = described(rng.normal(size=(7, 16)), "a"), described(rng.normal(size=(9, 16)), "b")
    every = cdist(some.vectors, reference.vectors)
    found, nearest = distances(some, reference, k)
    np.testing.assert_allclose(found, np.sort(every, axis=1)[:, :k].mean(axis=1), rtol=1e-6)
    assert nearest == [f"b{i}" for i in every.argmin(axis=1)]


def test_nothing_is_its_own_neighbour():
    points = described([[0, 0], [3, 4], [3, 4], [0, 8]], "a")
    found, nearest = distances(points, points, 2)
    assert found == pytest.approx([(5 + 5) / 2, (0 + 5) / 2, (0 + 5) / 2, (5 + 5) / 2])
    assert nearest[1:3] == ["a2", "a1"]
    some = Described(["a3", "new"], points.vectors[[3, 3]])  # one that the reference has, and one that it has not
    assert distances(some, points, 1)[0] == pytest.approx([5, 0])
    assert distances(some, points, 1)[1][1] == "a3"


def test_reference_of_too_few_is_refused():
    points = described([[0, 0], [3, 4]], "a")
    with pytest.raises(InvalidInput, match="the reference has 1 to compare with; 2 nearest ones need as many"):
        distances(points, points, 2)
    with pytest.raises(InvalidInput, match="the reference has 2 to compare with; 3 nearest"):
        distances(described([[1, 1]], "b"), points, 3)
    assert distances(described([[0, 2]], "b"), points, 2)[0] == pytest.approx([(2 + np.hypot(3, 2)) / 2])


def test_group_has_seven_statistics_of_each_number():
    images = np.array([[1, 10], [7, 0], [2, 20], [3, 30], [4, 90]], np.float32)
    pooled = pool(images, members_of(["s", "t", "s", "s", "s"]))
    assert pooled.ids == ["s", "t"]
    # of 1, 2, 3, 4 and of 10, 20, 30, 90: mean, standard deviation with ddof 1, min, quartiles, max
    first = [2.5, np.sqrt(5 / 3), 1, 1.75, 2.5, 3.25, 4]
    second = [37.5, np.sqrt((27.5**2 + 17.5**2 + 7.5**2 + 52.5**2) / 3), 10, 17.5, 25, 45, 90]
    assert pooled.vectors[0] == pytest.approx(np.array([first, second]).T.reshape(-1))
    assert pooled.vectors[1] == pytest.approx([7, 0, 0, 0] + 5 * [7, 0])


@pytest.mark.parametrize(
    ("scores", "odd", "threshold", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 2.5, Separation(1, 1, 1)),
        ([1, 2, 3, 4, 5], [0, 1, 0, 1, 1], 3.5, Separation(5 / 6, 2 / 3, 1)),
        ([1, 1, 1, 2], [0, 0, 1, 1], 1.5, Separation(0.75, 0.5, 1)),
        ([4, 3, 2, 1], [0, 0, 1, 1], 4, Separation(0, 0, 1)),  # the wrong way round: better call none odd
    ],
)
def test_threshold_of_the_roc_by_hand(scores, odd, threshold, expected):
    scores, odd = np.array(scores, float), np.array(odd, bool)
    assert threshold_of_roc(scores, odd) == threshold
    found = separation(scores, odd, threshold)
    assert (found.auc, found.sensitivity, found.specificity) == pytest.approx(
        (expected.auc, expected.sensitivity, expected.specificity)
    )
