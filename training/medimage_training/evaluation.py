"""How good weights are: zero-shot by prompts, or by the nearest neighbours of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from medimage_client.labels.scores import area
from medimage_export.medimageinsight.reference import UniCL
from medimage_server.text_tokenizer import TextTokenizer
from medimage_training.batches import tokens_of
from medimage_training.examples import Example
from medimage_training.images import ServedImages
from medimage_training.unicl import distributed, encode_pixels, gathered_rows

TEXTS_AT_ONCE = 64
Vectors = NDArray[np.float32]  # (n, E) unit vectors


@dataclass(frozen=True)
class SetScores:
    """Of one set of images."""

    accuracy: float
    balanced_accuracy: float  # mean recall of the labels that have images
    mauc: float | None  # mean area under the ROC curve of a label against the rest; None for neighbours
    confusion: NDArray[np.int64]  # (labels, labels), true ones down


@dataclass(frozen=True)
class EvaluationSet:
    """A block EVALDATASET_…, with its images."""

    name: str
    examples: list[Example]
    labels: list[str]  # the answers that there are; they are the prompts
    neighbours: int | None = None
    known: Sequence[Example] = ()  # the images that neighbours are of

    def scores(
        self, model: UniCL, images: ServedImages, tokenizer: TextTokenizer, *, batch: int, device: torch.device
    ) -> SetScores:
        """In every process; each encodes its part of the images."""
        vectors = embed(model, images, self.examples, batch=batch, device=device)
        truth = np.array([self.labels.index(example.label) for example in self.examples])
        if self.neighbours is None:
            texts = embed_texts(model, tokenizer, self.labels, device=device)
            return scores_of(vectors @ texts.T, truth)
        known = embed(model, images, self.known, batch=batch, device=device)
        nearest = KNeighborsClassifier(min(self.neighbours, len(known)), metric="cosine", algorithm="brute")
        nearest.fit(known, [self.labels.index(example.label) for example in self.known])
        shares = np.zeros((len(vectors), len(self.labels)))
        shares[:, nearest.classes_] = nearest.predict_proba(vectors)
        scores = scores_of(shares, truth)
        return SetScores(scores.accuracy, scores.balanced_accuracy, None, scores.confusion)


def scores_of(similarities: NDArray[np.floating[Any]], truth: NDArray[np.int64]) -> SetScores:
    """The answer is the label of the highest similarity, (n, labels); truth (n,) is its index.

    A label without an image can be a wrong answer, and has no recall and no AUC.
    """
    n_labels, ones = similarities.shape[1], np.ones(len(truth), np.int64)
    confusion = np.zeros((n_labels, n_labels), np.int64)
    np.add.at(confusion, (truth, similarities.argmax(axis=1)), 1)
    there = np.unique(truth)
    right = np.diag(confusion)
    ranks = [np.unique(column, return_inverse=True)[1] for column in similarities.T]
    areas = [area(ranks[label], truth == label, ones) for label in there] if len(there) > 1 else [float("nan")]
    return SetScores(
        accuracy=float(right.sum() / len(truth)),
        balanced_accuracy=float((right[there] / confusion.sum(axis=1)[there]).mean()),
        mauc=float(np.mean(areas)),
        confusion=confusion,
    )


@torch.no_grad()
def embed(
    model: UniCL, images: ServedImages, examples: Sequence[Example], *, batch: int, device: torch.device
) -> Vectors:
    """(n, E): every process encodes its part, and gets what the others encoded."""
    process, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed() else (0, 1)
    each = -(-len(examples) // processes)
    own = examples[process * each : (process + 1) * each]
    rows = torch.zeros(each, model.config.projection_dim, device=device)
    for start in range(0, len(own), batch):
        pixels = np.stack([images.pixels(example) for example in own[start : start + batch]])
        features, _ = encode_pixels(model, torch.from_numpy(pixels).to(device))
        rows[start : start + len(features)] = features
    return gathered_rows(rows)[: len(examples)].float().cpu().numpy()


@torch.no_grad()
def embed_texts(model: UniCL, tokenizer: TextTokenizer, texts: Sequence[str], *, device: torch.device) -> Vectors:
    ids, mask = tokens_of(tokenizer, texts)
    starts = range(0, len(ids), TEXTS_AT_ONCE)
    parts = [tuple(t[start : start + TEXTS_AT_ONCE].to(device) for t in (ids, mask)) for start in starts]
    return torch.cat([model.encode_text(*part) for part in parts]).float().cpu().numpy()
