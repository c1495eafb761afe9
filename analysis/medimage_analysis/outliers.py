"""How unlike a reference set images or studies are: the mean distance to their nearest neighbours in it.

After the outlier detection of Microsoft's healthcareai-examples: a study is described by statistics of its images'
vectors, and its score is the mean Euclidean distance to the two nearest studies of the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from medimage_client.errors import InvalidInput

Floats = NDArray[np.floating[Any]]

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Described:
    """What is compared: images, or groups of them such as studies."""

    ids: list[str]
    vectors: Floats  # (n, d)


def members_of(groups: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each group, groups in the order of their first row."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return members


def pool(vectors: Floats, members: Mapping[str, Sequence[int]]) -> Described:
    """Groups of images, by the statistics of their vectors (n, d): (groups, 7 d).

    These are the mean, the standard deviation (ddof 1; 0 of a single image), the least, the quartiles and the greatest
    value of each of the d numbers.
    """
    pooled = np.empty((len(members), 7 * vectors.shape[1]), np.float32)
    for place, rows in enumerate(members.values()):
        some = vectors[list(rows)].astype(np.float64)
        spread = some.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(some.shape[1])
        quartiles = np.quantile(some, QUARTILES, axis=0)
        pooled[place] = np.concatenate([some.mean(axis=0), spread, some.min(axis=0), *quartiles, some.max(axis=0)])
    return Described([*members], pooled)


def distances(described: Described, reference: Described, k: int) -> tuple[NDArray[np.float64], list[str]]:
    """The mean Euclidean distance to the k nearest of the reference, and the id of the nearest.

    What has the same id in the reference is not its own neighbour.

    Raises:
        InvalidInput: the reference has too few others.
    """
    place = {name: row for row, name in enumerate(reference.ids)}
    own = np.array([place.get(name, -1) for name in described.ids])
    n_others = len(reference.ids) - int((own >= 0).any())
    if not 1 <= k <= n_others:
        raise InvalidInput(
            f"the reference has {n_others} to compare with; {k} nearest ones need as many: take a larger reference, or "
            "a smaller -k"
        )
    n = min(k + 1, len(reference.ids))
    model = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(reference.vectors)
    found, rows = model.kneighbors(described.vectors)
    found[rows == own[:, None]] = np.inf  # itself goes to the end
    order = np.argsort(found, axis=1, kind="stable")
    found, rows = (np.take_along_axis(values, order, axis=1) for values in (found, rows))
    return found[:, :k].mean(axis=1, dtype=np.float64), [reference.ids[row] for row in rows[:, 0]]


@dataclass(frozen=True, slots=True)
class Separation:
    """How well a threshold tells outliers, which are beyond it, from the others."""

    auc: float
    sensitivity: float  # share of the outliers that are beyond the threshold
    specificity: float  # share of the others that are not


def separation(scores: Floats, odd: NDArray[np.bool_], threshold: float) -> Separation:
    beyond = scores > threshold
    return Separation(float(roc_auc_score(odd, scores)), float(beyond[odd].mean()), float((~beyond[~odd]).mean()))


def threshold_of_roc(scores: Floats, odd: NDArray[np.bool_]) -> float:
    """Where sensitivity + specificity is greatest (Youden's J), midway between the two scores that it parts."""
    false_positive_rate, true_positive_rate, levels = roc_curve(odd, scores, drop_intermediate=False)
    best = int(np.argmax(true_positive_rate - false_positive_rate))
    below = scores[scores < levels[best]]  # the level itself is the least score beyond the threshold, or infinite
    if not below.size:
        return float(np.nextafter(levels[best], -np.inf))
    return float(below.max() if np.isinf(levels[best]) else (below.max() + levels[best]) / 2)
