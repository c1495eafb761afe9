"""Does an exported model give the numbers of the PyTorch model? Every export asks, and fails if not.

The truth is the PyTorch module in float64. Its own float32 is off that by the rounding that the checkpoint amplifies:
1e-7 of a unit vector where the weights are gentle, a thousand times as much where each block amplifies what it gets.
That error is the yardstick, since no runtime that computes in float32 can be asked for less.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from medimage_export.errors import ParityError

# How many times PyTorch's own error an export may have. Another order of summation is another draw of the rounding;
# of 60 small checkpoints, gentle and amplifying ones, none had more than 3.5 times PyTorch's error (perf/NOTES.md).
MULTIPLE = 10

Feed = Mapping[str, np.ndarray]
Array = NDArray[np.floating]


class Session(Protocol):
    """What runs an exported model: onnxruntime's InferenceSession, and whatever else has its `run`."""

    def run(self, output_names: Sequence[str], feed: Feed, /) -> Sequence[np.ndarray]:
        """The outputs for one batch, in the order of their names."""


@dataclass(frozen=True)
class Errors:
    """The worst of one output over the rows of a batch."""

    max_abs: float
    min_cosine: float


@dataclass(frozen=True)
class Bound:
    """The worst that a precision may do to one row of an output, beside what PyTorch's float32 does to it."""

    max_abs: float = math.inf
    min_cosine: float = -math.inf

    def beside(self, pytorch: Errors) -> "Bound":
        """The bound plus MULTIPLE times the error of PyTorch's float32."""
        # 1 - cosine grows with the square of an error
        return Bound(
            self.max_abs + MULTIPLE * pytorch.max_abs, self.min_cosine - MULTIPLE**2 * (1 - pytorch.min_cosine)
        )

    def allows(self, found: Errors) -> bool:
        return found.max_abs <= self.max_abs and found.min_cosine >= self.min_cosine  # false for NaN

    def __str__(self) -> str:
        if self.max_abs < math.inf:
            return f"max |err| {self.max_abs:.1e}"
        return f"cosine {self.min_cosine:.6g}"


@dataclass(frozen=True)
class Truth:
    """What a module computes of one batch, by output: in float64, and in PyTorch's float32."""

    feed: Feed
    float64: Mapping[str, Array]
    float32: Mapping[str, Array]


@dataclass(frozen=True)
class ParityRow:
    """The distances of one output from float64 over one batch: of PyTorch's float32, and of the export."""

    model: str
    output: str
    inputs: str  # what was fed, in a word
    batch: int
    pytorch: Errors
    export: Errors


def cpu_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A session that multiplies 8-bit numbers exactly on any CPU, as the server's does.

    x86 without VNNI adds their products by pairs in 16 bits, where they saturate, unless told not to.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def truths(reference: nn.Module, names: Sequence[str], feeds: Mapping[str, Feed]) -> dict[str, Truth]:
    """Run a module on batches, which the keys of `feeds` name, in float32 and then in float64.

    The module takes the arrays of a feed in their order and gives the outputs that `names` names, in that order.
    """
    tensors = dict((*reference.named_parameters(), *reference.named_buffers()))
    float32 = {kind: _outputs(reference, {}, names, feed) for kind, feed in feeds.items()}
    doubled = {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {kind: Truth(feed, _outputs(reference, doubled, names, feed), float32[kind]) for kind, feed in feeds.items()}


def _outputs(module: nn.Module, tensors: Mapping[str, Tensor], names: Sequence[str], feed: Feed) -> dict[str, Array]:
    """By name, with `tensors` in the place of the module's own."""
    with torch.inference_mode():
        found = functional_call(module, dict(tensors), tuple(torch.from_numpy(array) for array in feed.values()))
    outputs = found if isinstance(found, tuple) else (found,)
    return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}


def compare(model: str, truths: Mapping[str, Truth], session: Session) -> list[ParityRow]:
    """Run an exported model on the batches of `truths`: a row for each of them and each output."""
    rows = []
    for kind, truth in truths.items():
        names = list(truth.float64)
        for name, found in zip(names, session.run(names, dict(truth.feed)), strict=True):
            want = truth.float64[name]
            if found.shape != want.shape:
                raise ParityError(f"{model}: {name} has shape {found.shape} instead of {want.shape}")
            rows.append(ParityRow(model, name, kind, len(want), errors(want, truth.float32[name]), errors(want, found)))
    return rows


def errors(want: Array, found: Array) -> Errors:
    """Of `found`, whose last axis are the vectors of which cosines are taken."""
    found = found.astype(np.float64)
    cosine = (want * found).sum(-1) / (np.linalg.norm(want, axis=-1) * np.linalg.norm(found, axis=-1))
    return Errors(float(np.abs(want - found).max()), float(cosine.min()))


def check_parity(rows: Sequence[ParityRow], precision: str, bound: Bound) -> None:
    """Print how far each output is from float64, then raise once if any is too far.

    Raises:
        ParityError: names every output at fault, how far it is, and what holds.
    """
    print(f"{'distance from float64':<54}{'max |err|':^22}{'min cosine':^26}".rstrip())
    names = f"{'PyTorch':>11}{precision:>11}{'PyTorch':>13}{precision:>13}"
    print(f"{'model':<20}{'output':<15}{'inputs':<15}{'rows':>4}{names}")
    for r in rows:
        distances = f"{r.pytorch.max_abs:>11.1e}{r.export.max_abs:>11.1e}"
        cosines = f"{r.pytorch.min_cosine:>13.8f}{r.export.min_cosine:>13.8f}"
        print(f"{r.model:<20}{r.output:<15}{r.inputs:<15}{r.batch:>4}{distances}{cosines}")
    print(f"bound: {bound}, and {MULTIPLE} times PyTorch's own error", flush=True)
    failed, pytorch = [], yardsticks(rows)
    for row in rows:
        allowed = bound.beside(pytorch[row.model, row.output])
        if not allowed.allows(row.export):
            found = f"max |err| {row.export.max_abs:.1e}, cosine {row.export.min_cosine:.6f}; allowed {allowed}"
            failed.append(f"{row.model} {row.output} ({row.inputs}) has {found}")
    if failed:
        holds = "" if precision == "fp32" else " (--precision fp32 has PyTorch's rounding alone)"
        raise ParityError(f"{precision} is too far from PyTorch in float64{holds}: {'; '.join(failed)}")


def yardsticks(rows: Sequence[ParityRow]) -> dict[tuple[str, str], Errors]:
    """PyTorch's worst errors over all batches, by model and output: one batch alone may be near by luck."""
    found: dict[tuple[str, str], Errors] = {}
    for row in rows:
        so_far = found.get((row.model, row.output), row.pytorch)
        found[row.model, row.output] = Errors(
            max(so_far.max_abs, row.pytorch.max_abs), min(so_far.min_cosine, row.pytorch.min_cosine)
        )
    return found
