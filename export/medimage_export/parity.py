"""Does an exported model give the numbers of the PyTorch model? Every export asks, and fails if not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from torch import nn

from medimage_export.errors import ParityError

Feed = Mapping[str, np.ndarray]


class Session(Protocol):
    """What runs an exported model: onnxruntime's InferenceSession, and whatever else has its `run`."""

    def run(self, output_names: Sequence[str], feed: Feed, /) -> Sequence[np.ndarray]:
        """The outputs for one batch, in the order of their names."""


@dataclass(frozen=True)
class Bound:
    """The worst that a precision may do to one row of an output."""

    max_abs: float
    min_cosine: float


@dataclass(frozen=True)
class ParityRow:
    """The worst errors of one output over one batch."""

    model: str
    output: str
    inputs: str  # what was fed, in a word
    batch: int
    max_abs: float
    min_cosine: float


def cpu_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A session that multiplies 8-bit numbers exactly on any CPU, as the server's does.

    x86 without VNNI adds their products by pairs in 16 bits, where they saturate, unless told not to.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compare(
    model: str, reference: nn.Module, session: Session, names: Sequence[str], feeds: Mapping[str, Feed]
) -> list[ParityRow]:
    """Run PyTorch and an exported model on the same batches, named by the keys of `feeds`.

    The reference takes the arrays of a feed in their order and gives the outputs that `names` names, in that order.
    """
    rows = []
    for kind, feed in feeds.items():
        with torch.inference_mode():
            expected = reference(*(torch.from_numpy(array) for array in feed.values()))
        outputs = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(names, dict(feed))
        for name, want, got in zip(names, outputs, found, strict=True):
            rows.append(_row(model, name, kind, want.numpy().astype(np.float64), got.astype(np.float64)))
    return rows


def _row(model: str, output: str, kind: str, want: np.ndarray, got: np.ndarray) -> ParityRow:
    if got.shape != want.shape:
        raise ParityError(f"{model}: {output} has shape {got.shape} instead of {want.shape}")
    cosine = (want * got).sum(-1) / (np.linalg.norm(want, axis=-1) * np.linalg.norm(got, axis=-1))
    return ParityRow(model, output, kind, len(want), float(np.abs(want - got).max()), float(cosine.min()))


def check_parity(rows: Sequence[ParityRow], bound: Bound) -> None:
    """Print each output's worst errors, then raise once if any is past the bound; NaN is past every bound.

    Raises:
        ParityError: names every output at fault.
    """
    print(f"{'model':<18}{'output':<16}{'inputs':<12}{'batch':>6}{'max |err|':>12}{'min cosine':>13}")
    for r in rows:
        print(f"{r.model:<18}{r.output:<16}{r.inputs:<12}{r.batch:>6}{r.max_abs:>12.1e}{r.min_cosine:>13.8f}")
    print(f"{'bound':<52}{bound.max_abs:>12.1e}{bound.min_cosine:>13.8f}", flush=True)
    # `not (a <= b)` so that NaN fails too
    failed = [r for r in rows if not (r.max_abs <= bound.max_abs and r.min_cosine >= bound.min_cosine)]
    if failed:
        names = ", ".join(f"{r.model} {r.output} ({r.inputs})" for r in failed)
        raise ParityError(f"past the bound of max |err| {bound.max_abs:g}, cosine {bound.min_cosine:g}: {names}")
