"""How good a search is, by labels: whether what it finds has the label of what was asked for.

Each image, or volume, is asked for in turn. Its own study is left out of what can be found, for images of one study are
alike by more than what they show.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimage_analysis.table import Vectors
from medimage_client.errors import InvalidInput

PRECISION_AT = (1, 3, 5, 10)
QUERIES_AT_ONCE = 64  # each has a score of every row in memory


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Means over queries, each from 0 to 1."""

    queries: int
    precision: dict[int, float]  # at k: the part of the k nearest that have the query's label
    average_precision: float  # mean over the queries: the mAP


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    labels: dict[str, Retrieval]  # in alphabetical order
    macro: Retrieval  # mean over the labels
    without_match: int  # queries that no other study has the label of, which are left out


def evaluate_retrieval(
    vectors: Vectors,
    labels: Sequence[str],
    studies: Sequence[str | None],
    *,
    queries: int | None = None,
) -> RetrievalScores:
    """Precision at 1, 3, 5 and 10 and mAP of exact search by the cosine.

    Of equal distances, average precision counts all at once, as scikit-learn does.

    Args:
        vectors: (n, 1024); each is a candidate of the others.
        labels: of each.
        studies: of each; None is a study of its own.
        queries: how many are asked for, chosen at random, the same in each run; None for all.

    Raises:
        InvalidInput: no label is that of two studies.
    """
    names, label = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    study = study_numbers(studies)
    normalised = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = np.arange(len(vectors))
    if queries is not None and queries < len(asked):
        asked = np.sort(np.random.default_rng(0).choice(asked, queries, replace=False))
    scores = [
        score_queries(normalised, label, study, asked[start : start + QUERIES_AT_ONCE])
        for start in range(0, len(asked), QUERIES_AT_ONCE)
    ]
    # of each query: precision at each k, and average precision; NaN without a match
    found = np.concatenate([np.empty((0, len(PRECISION_AT) + 1)), *scores])
    matched = ~np.isnan(found[:, -1])
    of_label = {
        str(name): retrieval(found[matched & (label[asked] == number)])
        for number, name in enumerate(names)
        if (matched & (label[asked] == number)).any()
    }
    if not of_label:
        raise InvalidInput("no label is that of two studies, so that nothing can be found")
    macro = Retrieval(
        queries=int(matched.sum()),
        precision={k: float(np.mean([one.precision[k] for one in of_label.values()])) for k in PRECISION_AT},
        average_precision=float(np.mean([one.average_precision for one in of_label.values()])),
    )
    return RetrievalScores(of_label, macro, int((~matched).sum()))


def study_numbers(studies: Sequence[str | None]) -> NDArray[np.int64]:
    """Equal for images of one study."""
    numbers: dict[str | tuple[int], int] = {}
    return np.array(
        [numbers.setdefault((i,) if name is None else name, len(numbers)) for i, name in enumerate(studies)]
    )


def score_queries(
    normalised: Vectors, label: NDArray[np.int64], study: NDArray[np.int64], asked: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each query its precisions and its average precision, (n, 5); NaN where nothing could be found."""
    cosines = normalised[asked] @ normalised.T
    return np.array(
        [
            score_query(cosines[row][study != study[query]], (label == label[query])[study != study[query]])
            for row, query in enumerate(asked)
        ]
    )


def score_query(cosines: Vectors, is_match: NDArray[np.bool_]) -> list[float]:
    """Of the cosines of the candidates, and whether each is a match."""
    if not is_match.any():
        return [np.nan] * (len(PRECISION_AT) + 1)
    most = min(max(PRECISION_AT), len(cosines))
    nearest = np.argpartition(-cosines, most - 1)[:most]
    nearest = nearest[np.argsort(-cosines[nearest], kind="stable")]
    precision = [float(is_match[nearest[:k]].sum() / k) for k in PRECISION_AT]
    matches = np.sort(cosines[is_match])
    as_near = len(cosines) - np.searchsorted(np.sort(cosines), matches, side="left")
    matches_as_near = len(matches) - np.searchsorted(matches, matches, side="left")
    return [*precision, float(np.mean(matches_as_near / as_near))]


def retrieval(found: NDArray[np.float64]) -> Retrieval:
    means = found.mean(axis=0)
    precision = {k: float(value) for k, value in zip(PRECISION_AT, means[:-1], strict=True)}
    return Retrieval(len(found), precision, float(means[-1]))
