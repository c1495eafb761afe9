"""Block-wise weight quantization in the layout of onnxruntime's MatMulNBits."""

import torch
from torch import Tensor


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
