"""How int8 quantizes what goes into each layer: chosen on a few inputs, by the error of the layer's product.

For each layer a small search tries how strongly to migrate outlier channels into the weights, and then how much of the
range to cut off. What wins comes nearest to the product in float32 on a sample of rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medimage_export.errors import ExportError
from medimage_export.medimageinsight.integer_layers import IntegerLayer
from medimage_export.medimageinsight.quantization import Quantization, Range, rounded_weight
from medimage_export.parity import Feed

STRENGTHS = (0.25, 0.5, 0.75)  # 0 leaves activations as they are, 1 makes all channels alike; SmoothQuant takes 0.5
KEPT = (0.8, 0.6, 0.4)  # of the largest magnitude; what lies beyond is cut off to it
ROWS = 384  # of the sample
WORTH_A_CUT = 0.8  # of the error at most must be left: beyond the sample there are larger numbers
WORTH_A_PASS = 0.5  # only where so much of the error is left are activations divided by a node of their own


@dataclass
class Activations:
    """What went into a layer: least and greatest of each channel (in,), zero among them, and a sample of rows."""

    low: Tensor
    high: Tensor
    rows: list[Tensor]  # each (n, in)


def observe(
    layers: Sequence[IntegerLayer], model: nn.Module, feeds: Sequence[Feed]
) -> tuple[dict[str, Activations], list[Tensor]]:
    """What goes into each layer while `model` takes the feeds, by the layer's name; and its first output of each feed.

    Raises:
        ExportError: a layer's input is not finite.
    """
    seen: dict[str, Activations] = {}
    per_feed = -(-ROWS // len(feeds))

    def watched(layer: IntegerLayer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = layer.by_rows(inputs[0])
            low, high = rows.amin(0).clamp(max=0), rows.amax(0).clamp(min=0)
            if not (low.isfinite().all() and high.isfinite().all()):
                raise ExportError(f"no int8 range: the input of {layer.name} is not finite")
            found = seen.setdefault(layer.name, Activations(low, high, []))
            found.low, found.high = torch.minimum(found.low, low), torch.maximum(found.high, high)
            # every so many, and some with the largest numbers for their channels: rare ones must not be cut off unseen
            largest = (rows.abs() / rows.abs().amax(0).clamp(min=torch.finfo().tiny)).pow(4).sum(1).topk(4).indices
            found.rows += [rows[:: -(-len(rows) // per_feed)].clone(), rows[largest].clone()]

        return watch

    handles = [layer.module.register_forward_pre_hook(watched(layer)) for layer in layers]
    try:
        with torch.inference_mode():
            outputs = [model(*(torch.from_numpy(array) for array in feed.values()))[0] for feed in feeds]
    finally:
        for handle in handles:
            handle.remove()
    return seen, outputs


class _Trial(NamedTuple):
    error: float  # of the product, over the sample
    factors: Tensor
    range: Range


def quantize(layer: IntegerLayer, seen: Activations) -> Quantization:
    """Choose how a layer's input is quantized, and migrate its outliers into its weight where that is free."""
    rows = torch.cat(seen.rows)
    exact = rows @ _taps(layer.weight).T

    def tried(factors: Tensor, kept: float) -> _Trial:
        low, high = float((seen.low / factors).min()), float((seen.high / factors).max())
        limit = kept * max(-low, high)
        found = Range(max(low, -limit), min(high, limit))
        product = found.rounded(rows / factors) @ _taps(rounded_weight(layer.grow(layer.weight, factors))).T
        return _Trial(float((product - exact).square().sum()), factors, found)

    def best(candidates: Sequence[Tensor]) -> _Trial:
        whole = min((tried(factors, 1.0) for factors in candidates), key=attrgetter("error"))
        cut = min((tried(whole.factors, kept) for kept in KEPT), key=attrgetter("error"))
        return cut if cut.error < WORTH_A_CUT * whole.error else whole

    plain, migrated = torch.ones_like(seen.low), [_factors(layer, seen, strength) for strength in STRENGTHS]
    if layer.shrink is not None:
        won = best([plain, *migrated])
        layer.migrate(won.factors)
        return Quantization(won.range)
    won, divided = best([plain]), best(migrated)
    if divided.error < WORTH_A_PASS * won.error:
        return Quantization(divided.range, divided.factors)
    return Quantization(won.range)


def _factors(layer: IntegerLayer, seen: Activations, strength: float) -> Tensor:
    """SmoothQuant's, each rounded to a power of two: extent^strength / weight^(1 - strength) of each channel."""
    extent = torch.maximum(-seen.low, seen.high)
    weight = _taps(layer.weight).abs().amax(0)
    factors = (strength * extent.log2() - (1 - strength) * weight.log2()).round()
    factors[~factors.isfinite()] = 0  # a channel of zeros, or that nothing reads
    factors = factors.reshape(-1, layer.tied).amax(1).repeat_interleave(layer.tied)
    return torch.exp2(factors - factors.median())


def _taps(weight: Tensor) -> Tensor:
    """(out, in, ...) -> (out * ..., in): each tap of a convolution is a product of its own."""
    return weight.movedim(1, -1).flatten(0, -2)
