"""Heads for vectors of the phantom encoder, with random weights: what they answer is no finding."""

import hashlib

import numpy as np

from medimage_analysis.heads.head import Head
from medimage_analysis.table import Model
from medimage_export.medimageinsight.checkpoint import find_checkpoint
from tests.paths import PHANTOM_CHECKPOINT

SHA256 = hashlib.sha256(find_checkpoint(PHANTOM_CHECKPOINT).weights.read_bytes()).hexdigest()
ENCODER = Model("medimageinsight", SHA256, "fp32", "azure", "file")


def random_head(kind, labels, *, multilabel, seed):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(len(labels), 1024)).astype(np.float32)
    if kind == "linear":
        tensors = {"weight": 4 * weight, "bias": rng.normal(size=len(labels)).astype(np.float32)}
    else:
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)
        tensors = {"label_features": weight, "scaling_factor": np.array([3], np.float32)}
    return Head(kind, labels, multilabel, ENCODER, tensors)


HEADS = {
    "cxr_findings": random_head("linear", ["Mass", "Erguß", "No Finding"], multilabel=False, seed=1),
    "views": random_head("zeroshot", ["frontal", "lateral"], multilabel=True, seed=2),
}
