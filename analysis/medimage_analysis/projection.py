"""Vectors in two dimensions."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from medimage_client.errors import InvalidInput

Method = Literal["pca", "umap"]

LEAST_ROWS = {"pca": 3, "umap": 10}  # below, two axes say nothing; UMAP starts from three eigenvectors and a few more
NEIGHBOURS = 15  # UMAP's own default
SEED = 0


def project(vectors: NDArray[np.floating[Any]], method: Method) -> NDArray[np.float32]:
    """Points (n, 2) of vectors (n, d), the same in each run on one machine.

    `pca`: the two directions of greatest variance. `umap`: neighbours by their cosine stay neighbours, while distances
    between far points mean little.

    Raises:
        InvalidInput: too few rows, or a number that is not finite.
    """
    if len(vectors) < LEAST_ROWS[method]:
        raise InvalidInput(f"{len(vectors)} rows make no map; {method} needs at least {LEAST_ROWS[method]}")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise InvalidInput(f"row {bad[0]} has numbers that are not finite; embed it anew")
    if method == "pca":
        with np.errstate(invalid="ignore"):  # of vectors that are all the same no part of the variance is explained
            points = PCA(2, svd_solver="covariance_eigh").fit_transform(vectors)
    else:
        from umap import UMAP  # takes seconds, and compiles when it is first used

        neighbours = min(NEIGHBOURS, len(vectors) - 1)
        points = UMAP(n_neighbors=neighbours, metric="cosine", random_state=SEED, n_jobs=1).fit_transform(vectors)
    return np.asarray(points, np.float32)
