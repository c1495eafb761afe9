"""Training of an adapter head on vectors that are already there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medimage_export.heads.modules import HIDDEN, Adapter

Tensors = Mapping[str, NDArray[np.float32]]


class NotAnAdapter(ValueError):
    """A file or its tensors are not those of an adapter, or of another size; str() is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """Defaults are those of Microsoft's adapter training, but for `patience`, which that does not have."""

    epochs: int = 30
    batch_size: int = 8
    learning_rate: float = 3e-4
    hidden: int = HIDDEN
    patience: int = 5  # epochs without a better one, after which it ends
    seed: int = 0
    start: Tensors | None = None  # a state dict to begin with


def train_adapter(
    vectors: NDArray[np.float32],
    targets: NDArray[np.bool_],
    options: AdapterOptions,
    *,
    multilabel: bool,
    weights: NDArray[np.float32] | None,
    measure: Callable[[Tensors], float],
    tell: Callable[[int, float, float], None],
) -> Tensors:
    """The state dict of the best epoch, or of the start without one.

    The loss is cross-entropy, or with `multilabel` that of each label by itself; AdamW.

    Args:
        vectors: (n, d).
        targets: (n, c).
        weights: of each label, (c), in the loss.
        measure: how good a state dict is, on other images; the greater, the better.
        tell: gets an epoch from 1, its mean loss and its measure.

    Raises:
        NotAnAdapter: the tensors of the start are not those of an adapter of these sizes.
    """
    torch.manual_seed(options.seed)
    if options.start is None:
        adapter = Adapter(vectors.shape[1], options.hidden, targets.shape[1])
    else:
        try:
            adapter = Adapter.of(options.start)
        except RuntimeError as error:
            raise NotAnAdapter(f"is no adapter: {str(error).splitlines()[-1].strip()}") from None
        sizes = (adapter.vision_embd[0].in_features, adapter.prediction_head[0].out_features)
        if sizes != (vectors.shape[1], targets.shape[1]):
            raise NotAnAdapter(
                f"is an adapter of {sizes[0]} numbers and {sizes[1]} labels; expected {vectors.shape[1]} numbers and "
                f"{targets.shape[1]} labels"
            )
    best, best_measure, since = state_of(adapter), -np.inf, 0
    inputs = torch.from_numpy(vectors)
    wanted = torch.from_numpy(targets.astype(np.float32) if multilabel else targets.argmax(axis=1))
    by_label = None if weights is None else torch.from_numpy(weights)
    optimizer = torch.optim.AdamW(adapter.parameters(), options.learning_rate, fused=True)
    for epoch in range(1, options.epochs + 1):
        loss_sum = 0.0
        for rows in torch.randperm(len(inputs)).split(options.batch_size):  # type: ignore[no-untyped-call]
            logits = adapter(inputs[rows])
            loss = (
                binary_cross_entropy_with_logits(logits, wanted[rows], pos_weight=by_label)
                if multilabel
                else cross_entropy(logits, wanted[rows], weight=by_label)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(rows)
        state = state_of(adapter)
        found = measure(state)
        tell(epoch, loss_sum / len(inputs), found)
        since += 1
        if found > best_measure:
            best, best_measure, since = state, found, 0
        if since >= options.patience:
            break
    return best


def read_state_dict(path: Path) -> Tensors:
    """Of a file of safetensors, or of what torch.save wrote.

    Raises:
        NotAnAdapter: neither, or more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:  # of a GPU, too
            found = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.detach().float().numpy() for name, tensor in found.items()}
    except OSError as error:
        raise NotAnAdapter(f"cannot be read: {error.strerror or error}") from None
    except (AttributeError, EOFError, RuntimeError, SafetensorError, TypeError, UnpicklingError) as error:
        raise NotAnAdapter(f"is no state dict, but {type(error).__name__} where it is read") from None


def state_of(adapter: nn.Module) -> Tensors:
    return {name: tensor.detach().numpy().copy() for name, tensor in adapter.state_dict().items()}
