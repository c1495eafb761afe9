"""8-bit integers for activations and weights, and what they stand for."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """The least and the greatest value of an activation, with zero between them."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Of one step of an unsigned 8-bit integer; 1 where there is nothing but zeros."""
        return np.float32((self.high - self.low) / 255 or 1)

    @property
    def zero_point(self) -> np.uint8:
        return np.uint8(round(-self.low / float(self.scale)))

    def rounded(self, x: Tensor) -> Tensor:
        """What is left of float32 numbers in 8 bits."""
        scale, zero_point = float(self.scale), int(self.zero_point)
        return ((x / scale).round() + zero_point).clamp(0, 255).sub(zero_point).mul(scale)


@dataclass(frozen=True)
class Quantization:
    """How the input of a layer is quantized.

    Attributes:
        divisors: of the input's channels (in,), by a node of their own; the layer's weights are to be larger by them.
    """

    range: Range
    divisors: Tensor | None = None


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) float32 -> int8 of the same shape, symmetric, and the scale of each output channel (out)."""
    # of a channel of zeros the least number that is none, also where denormals are taken as zero
    scales = weight.abs().amax(dim=1).clamp(min=127 * torch.finfo(torch.float32).tiny) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


def rounded_weight(weight: Tensor) -> Tensor:
    """What is left of a weight (out, in, ...) in 8 bits."""
    integers, scales = quantize_channels(weight.flatten(1))
    return (integers * scales[:, None]).reshape(weight.shape)
