"""What int4 makes of the decoder's weights: blocks that share a scale, in the layout of onnxruntime's MatMulNBits."""

import torch
from torch import Tensor

from medimage_export.cxrreportgen.checkpoint import Tensors

# Weights that share a scale. With 32, onnxruntime's CPU kernels give a row the same bits whatever rows are beside it,
# so that a report does not depend on how many are written at the same time; with 64 and more (4 bits) they do not.
# Blocks of 128 would read a prompt in two thirds of the time, with rounding errors a fifth larger (of normal weights).
BLOCK_SIZE = 32
WEIGHT_BITS = 4
HEAD_BITS = 8  # the head alone decides between tokens: 4 bits there cost the most and save the least


class QuantizedTensors:
    """The tensors of a checkpoint with the weights that int4 turns them into, for the reference of its parity check."""

    def __init__(self, tensors: Tensors) -> None:
        self.shapes = tensors.shapes
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        tensor = self._tensors.read(name).float()
        if not name.endswith(("_proj.weight", "lm_head.weight")):
            return tensor
        bits = HEAD_BITS if name.endswith("lm_head.weight") else WEIGHT_BITS
        packed, scales = quantize_blockwise(tensor, bits=bits, block_size=BLOCK_SIZE)
        return dequantize_blockwise(packed, scales, bits=bits, size=tensor.shape[1])


def quantize_blockwise(weight: Tensor, *, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """(out, in) float32 -> packed (out, blocks, block_size * bits / 8) uint8, and scales (out, blocks) float32.

    Symmetric: a weight is about (q - 2^(bits-1)) * scale. The value of largest magnitude in a block gets the end of the
    range that has one step more, so it is exact. The last block is filled up with zeros.

    Raises:
        ValueError: bits is neither 4 nor 8.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}; expected 4 or 8")
    out, size = weight.shape
    blocks = torch.nn.functional.pad(weight, (0, -size % block_size)).reshape(out, -1, block_size)
    zero = 2 ** (bits - 1)
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = extreme / -zero
    inverse = torch.where(scales == 0, torch.zeros_like(scales), 1 / scales)
    quantized = (blocks * inverse).round_().add_(zero).clamp_(0, 2 * zero - 1).to(torch.uint8)
    if bits == 4:
        quantized = quantized[..., 0::2] | (quantized[..., 1::2] << 4)
    return quantized.contiguous(), scales.squeeze(-1)


def dequantize_blockwise(packed: Tensor, scales: Tensor, *, bits: int, size: int) -> Tensor:
    """The weights (out, size) float32 that the packed ones stand for."""
    values = torch.stack([packed & 15, packed >> 4], -1).flatten(-2) if bits == 4 else packed
    return ((values.float() - 2 ** (bits - 1)) * scales[..., None]).flatten(1)[:, :size]
