"""Heads of each kind from labelled vectors; what can be chosen is chosen by the validation part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medimage_analysis.heads import Kind
from medimage_analysis.heads.head import Head, Scores, Tensors, nearest, shares
from medimage_analysis.heads.labelled import Labelled
from medimage_analysis.table import Model
from medimage_client.errors import InvalidInput, MissingExtra

Criterion = Literal["auc", "accuracy"]
Tell = Callable[[str], None]

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # C of the logistic regression; vectors of length 1 need little regularisation
NEIGHBOURS = (1, 3, 5, 9, 17, 33, 65)
MAX_ITERATIONS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How a head is made.

    Attributes:
        criterion: by which the validation part chooses.
        class_weights: rare labels count as much as frequent ones.
        start: file of a state dict of the adapter to begin with; `.safetensors`, or what torch.save wrote.
        others: of the adapter alone, see medimage_training.adapter.
    """

    criterion: Criterion = "auc"
    class_weights: bool = False
    seed: int = 0
    epochs: int = 30
    batch_size: int = 8
    learning_rate: float = 3e-4
    hidden: int = 512
    patience: int = 5
    start: Path | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """Images to learn from and to choose by; none is in both."""

    train: Labelled
    validation: Labelled
    encoder: Model

    def head(self, kind: Kind, tensors: Tensors) -> Head:
        return Head(kind, self.train.labels, self.train.multilabel, self.encoder, tensors)


def fit(kind: Kind, parts: Parts, options: FitOptions, *, tell: Tell) -> tuple[Head, dict[str, Any]]:
    """A head, and what was chosen for it.

    Raises:
        InvalidInput: an option is not for this kind, or a state dict does not fit.
        MissingExtra: mlp without PyTorch.
    """
    if kind == "knn" and options.class_weights:
        raise InvalidInput("--class-weights is not for knn, whose neighbours are counted; take mlp or linear")
    return {"mlp": fit_mlp, "linear": fit_linear, "knn": fit_knn}[kind](parts, options, tell)


def goodness(scores: Scores, targets: NDArray[np.bool_], criterion: Criterion, *, multilabel: bool) -> float:
    """The mean over labels of the areas under their ROC curves, or the share of right answers.

    With labels by themselves an answer is right where the score is over a half as it should be.
    """
    if criterion == "auc":
        return float(roc_auc_score(targets, scores, average="macro"))
    if multilabel:
        return float(((scores > 0.5) == targets).mean())
    return float((scores.argmax(axis=1) == targets.argmax(axis=1)).mean())


def weights_of_labels(targets: NDArray[np.bool_], *, multilabel: bool) -> NDArray[np.float32]:
    """(c): n / (c n_label), scikit-learn's `balanced`; of labels by themselves the negatives over the positives."""
    n, positives = len(targets), targets.sum(axis=0)
    weights = (n - positives) / positives if multilabel else n / (targets.shape[1] * positives)
    return np.asarray(weights, np.float32)


def best_of(
    scores: Mapping[float, Scores], validation: Labelled, criterion: Criterion, *, name: str, tell: Tell
) -> float:
    """The choice whose scores of the validation part are best; of equal ones that of the least log loss."""
    found = {}
    for choice, some in scores.items():
        good = goodness(some, validation.targets, criterion, multilabel=validation.multilabel)
        found[choice] = good, -log_loss(some, validation.targets)
        tell(f"{name} {choice:g}: validation {criterion} {good:.4f}")
    return max(found, key=found.__getitem__)


def log_loss(scores: Scores, targets: NDArray[np.bool_]) -> float:
    """Of each label by itself, on average; it is small where scores are what they should be."""
    right = np.where(targets, scores, 1 - scores)
    return float(-np.log(np.clip(right, np.finfo(np.float32).eps, None)).mean())


def fit_linear(parts: Parts, options: FitOptions, tell: Tell) -> tuple[Head, dict[str, Any]]:
    """Logistic regression, L2-regularised; with several labels one of each."""
    train = parts.train
    heads = {
        strength: parts.head("linear", logistic_regression(train, strength, balanced=options.class_weights))
        for strength in STRENGTHS
    }
    scores = {strength: head.scores(parts.validation.vectors) for strength, head in heads.items()}
    strength = best_of(scores, parts.validation, options.criterion, name="C", tell=tell)
    return heads[strength], {"C": strength}


def logistic_regression(train: Labelled, strength: float, *, balanced: bool) -> Tensors:
    settings = {"C": strength, "max_iter": MAX_ITERATIONS, "class_weight": "balanced" if balanced else None}
    if train.multilabel:
        models = [LogisticRegression(**settings).fit(train.vectors, wanted) for wanted in train.targets.T]
        weight = np.concatenate([model.coef_ for model in models])
        bias = np.concatenate([model.intercept_ for model in models])
    else:
        model = LogisticRegression(**settings).fit(train.vectors, train.targets.argmax(axis=1))
        weight, bias = model.coef_, model.intercept_
        if len(train.labels) == 2:  # one row, of the second label against the first
            weight, bias = (np.concatenate([-values / 2, values / 2]) for values in (weight, bias))
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def fit_knn(parts: Parts, options: FitOptions, tell: Tell) -> tuple[Head, dict[str, Any]]:
    """The training part as a reference set."""
    train = parts.train
    votes = train.targets.astype(np.float32)
    choices = [k for k in NEIGHBOURS if k <= len(train.ids)]
    rows = nearest(parts.validation.vectors, train.vectors, choices[-1])
    scores: dict[float, Scores] = {k: shares(votes[rows[:, :k]], multilabel=train.multilabel) for k in choices}
    k = int(best_of(scores, parts.validation, options.criterion, name="k", tell=tell))
    return parts.head("knn", {"reference": train.vectors, "votes": votes, "k": np.array([k], np.int64)}), {"k": k}


def fit_mlp(parts: Parts, options: FitOptions, tell: Tell) -> tuple[Head, dict[str, Any]]:
    """Microsoft's adapter, of the epoch that does best on the validation part."""
    try:
        from medimage_training.adapter import AdapterOptions, NotAnAdapter, read_state_dict, train_adapter
    except ModuleNotFoundError as error:
        raise MissingExtra("--kind mlp", error.name or "PyTorch", "training") from None
    train, validation = parts.train, parts.validation
    best = {"epoch": 0, "loss": None, options.criterion: -np.inf}

    def measure(tensors: Tensors) -> float:
        scores = parts.head("mlp", tensors).scores(validation.vectors)
        if not np.isfinite(scores).all():
            raise InvalidInput("the training diverged; lower --learning-rate")
        return goodness(scores, validation.targets, options.criterion, multilabel=train.multilabel)

    def note(epoch: int, loss: float, found: float) -> None:
        tell(f"epoch {epoch}: loss {loss:.4f}, validation {options.criterion} {found:.4f}")
        if found > best[options.criterion]:  # type: ignore[operator]  # a number
            best.update({"epoch": epoch, "loss": loss, options.criterion: found})

    weights = weights_of_labels(train.targets, multilabel=train.multilabel) if options.class_weights else None
    try:
        adapter = AdapterOptions(
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            hidden=options.hidden,
            patience=options.patience,
            seed=options.seed,
            start=None if options.start is None else read_state_dict(options.start),
        )
        tensors = train_adapter(
            train.vectors,
            train.targets,
            adapter,
            multilabel=train.multilabel,
            weights=weights,
            measure=measure,
            tell=note,
        )
    except NotAnAdapter as error:
        raise InvalidInput(f"{options.start}: {error}") from None
    return parts.head("mlp", tensors), best if best["epoch"] else {"epoch": 0}


def share_of(train: Labelled, share: float, seed: int) -> Labelled:
    """A part of the training images, by whole groups and with each label in it; smaller shares are within larger."""
    names, member_of = np.unique(train.groups, return_inverse=True)
    rank = np.empty(len(names), np.int64)
    rank[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names))
    first = {int(rank[member_of[rows]].min()) for rows in map(np.flatnonzero, train.targets.T)}  # a group of each label
    keep = (rank < round(share * len(names))) | np.isin(rank, [*first])
    return train.take(np.flatnonzero(keep[member_of]))


def learning_curve(
    kind: Kind, parts: Parts, options: FitOptions, shares: Sequence[float], *, tell: Tell
) -> list[tuple[float, int, Head]]:
    """For each share of the training images, how many they are and the head of them."""
    found = []
    for share in shares:
        some = share_of(parts.train, share, options.seed)
        head, _ = fit(kind, replace(parts, train=some), options, tell=lambda line: None)
        tell(f"{share:g} of the training images: {len(some.ids)}")
        found.append((share, len(some.ids), head))
    return found
