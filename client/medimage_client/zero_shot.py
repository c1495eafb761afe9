"""Zero-shot classification: the probabilities of labels from embeddings."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def probabilities(
    images: NDArray[Any], labels: NDArray[Any], scaling_factor: float, *, multilabel: bool
) -> NDArray[np.float32]:
    """Embeddings (n, 1024) and (labels, 1024), L2-normalised, to (n, labels).

    The logits are exp(scaling_factor) times the cosines. Their softmax sums to 1 over the labels; with `multilabel`,
    their sigmoid rates each label by itself.
    """
    logits: NDArray[np.float64] = np.exp(scaling_factor) * (images.astype(np.float64) @ labels.astype(np.float64).T)
    if multilabel:
        scores: NDArray[np.float64] = (1 + np.tanh(logits / 2)) / 2  # the sigmoid, in the form that does not overflow
    else:
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = weights / weights.sum(axis=1, keepdims=True)
    return scores.astype(np.float32)
