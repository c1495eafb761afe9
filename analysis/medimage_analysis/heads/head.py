"""A head: from image vectors to a score for each label, as it is kept in a folder.

Shapes: n images, d = 1024 numbers of a vector, c labels, m vectors of a reference set. The tensors of each kind are

    mlp       those of Microsoft's adapter, by its own names (see medimage_export.heads.modules)
    linear    weight (c, d), bias (c)
    knn       reference (m, d), L2-normalised; votes (m, c), what each of them says; k (1), int64
    zeroshot  label_features (c, d), L2-normalised; scaling_factor (1), the log of the logit scale
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit, softmax

from medimage_analysis.heads import Kind
from medimage_analysis.table import Model, Vectors
from medimage_client.errors import InvalidInput

Tensors = Mapping[str, NDArray[Any]]
Scores = NDArray[np.float32]  # (n, c)

DESCRIPTION, WEIGHTS, SPLITS_FILE, REPORT = "head.json", "weights.safetensors", "splits.csv", "report.md"
ROWS_AT_ONCE = 4096
COSINES_AT_ONCE = 2**24  # 64 MB, and twice that for their order
LAYER_NORM_EPS = 1e-5  # PyTorch's default, which the adapter has


@dataclass(frozen=True, slots=True)
class Head:
    kind: Kind
    labels: list[str]
    multilabel: bool  # each label by itself; otherwise the scores of an image sum to 1
    encoder: Model  # of the vectors that it was trained on
    tensors: Tensors = field(repr=False)

    def scores(self, vectors: Vectors) -> Scores:
        """(n, d) to (n, c), each from 0 to 1."""
        parts = [self._scores(vectors[start : start + ROWS_AT_ONCE]) for start in range(0, len(vectors), ROWS_AT_ONCE)]
        return np.concatenate([np.empty((0, len(self.labels)), np.float32), *parts])

    def _scores(self, vectors: Vectors) -> Scores:
        if self.kind == "knn":
            rows = nearest(vectors, self.tensors["reference"], int(self.tensors["k"][0]))
            return shares(self.tensors["votes"][rows], multilabel=self.multilabel)
        logits = LOGITS[self.kind](vectors, self.tensors)
        scores: Scores = expit(logits) if self.multilabel else softmax(logits, axis=1)
        return scores.astype(np.float32, copy=False)

    def check_encoder(self, model: Model, place: str) -> None:
        """Raise InvalidInput unless the vectors of `place` are of the model that the head was trained on."""
        if model != self.encoder:
            raise InvalidInput(
                f"{place} is of {model}, and the head of {self.encoder}: embed the images with the head's encoder, or "
                "train a head on this table"
            )

    def save(self, folder: Path, **more: Any) -> None:
        """Write weights and description into a folder that is there; `more` goes into the latter."""
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()}, folder / WEIGHTS)
        described = {
            "kind": self.kind,
            "labels": self.labels,
            "multilabel": self.multilabel,
            "encoder": asdict(self.encoder),
            **more,
        }
        (folder / DESCRIPTION).write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a folder that `save` wrote.

        Raises:
            InvalidInput: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        described = read_description(folder)
        try:
            tensors = load_file(folder / WEIGHTS)
            return cls(
                described["kind"],
                described["labels"],
                described["multilabel"],
                Model(**described["encoder"]),
                tensors,
            )
        except OSError as error:
            raise InvalidInput(f"cannot read {folder / WEIGHTS}: {error.strerror or error}") from None
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"{folder / DESCRIPTION}: not what `medimage head train` writes: {error}") from None
        except SafetensorError as error:
            raise InvalidInput(f"{folder / WEIGHTS}: damaged: {error}; train the head again") from None


def read_description(folder: Path) -> dict[str, Any]:
    """What is in head.json.

    Raises:
        InvalidInput: there is none, or it is no JSON of an object.
    """
    path = folder / DESCRIPTION
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(
            f"cannot read {path}: {error.strerror}; a head is a folder that `medimage head train` wrote"
        ) from None
    except ValueError:
        described = None
    if not isinstance(described, dict):
        raise InvalidInput(f"{path}: not what `medimage head train` writes; train the head again")
    return described


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    exact: NDArray[np.float32] = x * (1 + erf(x / np.sqrt(np.float32(2)))) / 2
    return exact


def mlp_logits(vectors: Vectors, tensors: Tensors) -> NDArray[np.float32]:
    """Microsoft's adapter. Its convolutions run on a length of 1, where the middle tap alone sees data."""

    def linear(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        weight = tensors[f"{name}.weight"]
        weight = weight[:, :, 1] if weight.ndim == 3 else weight
        out: NDArray[np.float32] = x @ weight.T + tensors[f"{name}.bias"]
        return out

    x = linear(gelu(linear(vectors, "vision_embd.0")), "vision_embd.2")
    x = x - x.mean(axis=1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(LAYER_NORM_EPS))
    x = x * tensors["vision_embd.3.weight"] + tensors["vision_embd.3.bias"]
    x = linear(gelu(linear(x, "retrieval_conv.0")), "retrieval_conv.2")
    return linear(x, "prediction_head.0")


def linear_logits(vectors: Vectors, tensors: Tensors) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = vectors @ tensors["weight"].T + tensors["bias"]
    return logits


def zeroshot_logits(vectors: Vectors, tensors: Tensors) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = np.exp(tensors["scaling_factor"]) * (vectors @ tensors["label_features"].T)
    return logits


LOGITS = {"mlp": mlp_logits, "linear": linear_logits, "zeroshot": zeroshot_logits}


def shares(votes: NDArray[np.float32], *, multilabel: bool) -> Scores:
    """Votes of the k nearest (n, k, c) to the share of them, or of all their votes, for each label."""
    found = votes.sum(axis=1)
    total = votes.shape[1] if multilabel else found.sum(axis=1, keepdims=True)
    scores: Scores = (found / total).astype(np.float32)
    return scores


def nearest(vectors: Vectors, reference: Vectors, k: int) -> NDArray[np.int64]:
    """(n, k), the rows of the reference with the highest cosines; of equal ones the first, as in the exported graph."""
    n = max(1, COSINES_AT_ONCE // len(reference))
    parts = [nearest_of_some(vectors[start : start + n], reference, k) for start in range(0, len(vectors), n)]
    return np.concatenate([np.empty((0, k), np.int64), *parts])


def nearest_of_some(vectors: Vectors, reference: Vectors, k: int) -> NDArray[np.int64]:
    distances = -(vectors @ reference.T)
    rows = np.sort(np.argpartition(distances, k - 1, axis=1)[:, :k], axis=1)  # so that a stable order is theirs
    of_rows = np.take_along_axis(distances, rows, axis=1)
    rows = np.take_along_axis(rows, np.argsort(of_rows, axis=1, kind="stable"), axis=1)
    tied = (distances <= of_rows.max(axis=1, keepdims=True)).sum(axis=1) > k  # others are as near as the last
    rows[tied] = np.argsort(distances[tied], axis=1, kind="stable")[:, :k]
    return rows
