"""The heads in PyTorch: the reference of an export, and what is trained.

Shapes: B images, d numbers of a vector, c labels, m vectors of a reference set. A module takes vectors (B, d), and
computes in the type of its weights.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Tensors = Mapping[str, np.ndarray]

WIDTH = 512  # of the adapter's first layers
HIDDEN = 512  # of its last ones, unless told otherwise


class Adapter(nn.Module):
    """The adapter of microsoft/healthcareai-examples (package/model_library/embedding.py), which gives logits.

    State dicts go both ways. The convolutions, of width 3, run on a length of 1 with padding 1: the middle tap alone
    sees data, and so it alone is computed with here.
    """

    def __init__(self, in_channels: int, hidden_dim: int, num_class: int) -> None:
        super().__init__()
        self.vision_embd = nn.Sequential(
            nn.Linear(in_channels, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        )
        self.retrieval_conv = nn.Sequential(
            nn.Conv1d(WIDTH, hidden_dim, 3, padding=1), nn.GELU(), nn.Conv1d(hidden_dim, hidden_dim, 3, padding=1)
        )
        self.prediction_head = nn.Sequential(nn.Linear(hidden_dim, num_class))

    @classmethod
    def of(cls, tensors: Tensors) -> "Adapter":
        """With the weights of a state dict, which also tell the sizes.

        Raises:
            RuntimeError: a tensor is missing, unexpected or of another shape.
        """
        try:
            hidden, num_class = len(tensors["retrieval_conv.0.weight"]), len(tensors["prediction_head.0.weight"])
            adapter = cls(tensors["vision_embd.0.weight"].shape[1], hidden, num_class)
        except (KeyError, IndexError) as error:
            raise RuntimeError(f"no {error} among its tensors") from None
        adapter.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
        return adapter

    def forward(self, vectors: Tensor) -> Tensor:
        first, act, second = self.retrieval_conv
        assert isinstance(first, nn.Conv1d) and isinstance(second, nn.Conv1d)
        hidden = act(linear(self.vision_embd(vectors.to(first.weight.dtype)), first.weight[:, :, 1], first.bias))
        logits: Tensor = self.prediction_head(linear(hidden, second.weight[:, :, 1], second.bias))
        return logits


class Linear(nn.Module):
    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.from_numpy(tensors[name])) for name in ("weight", "bias"))

    def forward(self, vectors: Tensor) -> Tensor:
        return linear(vectors.to(self.weight.dtype), self.weight, self.bias)


class ZeroShot(nn.Module):
    """Cosines with the vectors of the labels, times exp(scaling_factor)."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.label_features = nn.Parameter(torch.from_numpy(tensors["label_features"]))  # (c, d)
        self.scaling_factor = nn.Parameter(torch.from_numpy(tensors["scaling_factor"]))  # (1)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.scaling_factor.exp() * linear(vectors.to(self.label_features.dtype), self.label_features)


class Nearest(nn.Module):
    """The share of the k nearest of a reference set, or of their votes, for each label: scores, not logits."""

    def __init__(self, tensors: Tensors, *, multilabel: bool) -> None:
        super().__init__()
        self.reference = nn.Parameter(torch.from_numpy(tensors["reference"]))  # (m, d)
        self.votes = nn.Parameter(torch.from_numpy(tensors["votes"]))  # (m, c)
        self.k = int(tensors["k"][0])
        self.multilabel = multilabel

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(self.reference.dtype)
        rows = linear(vectors, self.reference).argsort(dim=1, descending=True, stable=True)[:, : self.k]
        votes = self.votes[rows].sum(dim=1)
        return votes / (self.k if self.multilabel else votes.sum(dim=1, keepdim=True))


class OfLogits(nn.Module):
    """Logits to what a head answers: each label by itself, or all together 1."""

    def __init__(self, logits: nn.Module, *, multilabel: bool) -> None:
        super().__init__()
        self.logits = logits
        self.multilabel = multilabel

    def forward(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.logits(vectors)
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)


def module_of(kind: str, tensors: Tensors, *, multilabel: bool) -> nn.Module:
    """What a head computes, from vectors to scores, ready to run."""
    if kind == "knn":
        return Nearest(tensors, multilabel=multilabel).eval()
    logits = {"mlp": Adapter.of, "linear": Linear, "zeroshot": ZeroShot}[kind](tensors)
    return OfLogits(logits, multilabel=multilabel).eval()
