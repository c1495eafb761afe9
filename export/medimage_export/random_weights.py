"""Random weights with which every block of a transformer matters, for benchmarks and tests without a checkpoint.

Modules start their training with weights so small that a block hardly changes what it gets: numbers measured on those
flatter every precision. Here a weight of n inputs is drawn from N(0, (gain / n^0.5)²), so that outputs are about as
large as inputs times the gain; the last one of each residual branch has half of that, and depthwise convolutions, which
no norm follows, a fifth. Biases are N(0, 0.1²), weights of norms and layer scales N(1, 0.1²), embeddings N(0, 1).

With a gain of 1, the vector of the tests' small image encoder has a cosine of 0.86 to 0.98 to itself with one residual
branch left out (median 0.943; 0.988 with PyTorch's initial weights). A larger gain amplifies, rounding included.
"""

import re

import torch
from torch import Generator, Tensor

GAIN = 1.0
BRANCH = 0.5
DEPTHWISE = 0.2
SPREAD = 0.1

BRANCH_ENDS = re.compile(r"(fn\.proj|fc2|out_proj|c_proj|output\.dense|o_proj|down_proj)\.weight$")
EMBEDDINGS = re.compile(r"(embedding(\.weight|s)?|cls_token|mask_token|embed_tokens\.weight)$")


def random_tensor(name: str, shape: torch.Size, generator: Generator, *, gain: float = GAIN) -> Tensor:
    """The float32 parameter of that published name."""
    normal = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        return normal * SPREAD + (not name.endswith("bias"))
    if EMBEDDINGS.search(name):
        return normal
    inputs = shape[0] if name.endswith("_projection") else shape[1:].numel()  # projections multiply from the right
    scale = gain * inputs**-0.5
    if BRANCH_ENDS.search(name):
        scale *= BRANCH
    elif name.endswith(".dw.weight"):
        scale *= DEPTHWISE
    return normal.mul_(scale)
