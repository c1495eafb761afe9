"""Checkpoints that compute the same with outlier channels, as trained transformers have them.

A few channels of what a LayerNorm gives are far larger than the rest (https://arxiv.org/abs/2211.10438, section 2).
"""

import copy

import torch
from torch import Tensor, nn

from medimage_export.medimageinsight.davit import PatchEmbed, Residual
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.medimageinsight.text_transformer import ResidualAttentionBlock


def with_outliers(model: UniCL, *, factor: int, share: float, seed: int) -> UniCL:
    """A copy in which a share of the channels of each LayerNorm before a linear layer is `factor` times as large.

    The weights that read them are smaller by as much. With a power of two it is the same function to the last bit.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for norm, weight in _norms_and_readers(model):
        channels = torch.randperm(len(norm.weight), generator=generator)[: max(1, round(share * len(norm.weight)))]
        norm.weight[channels] *= factor
        norm.bias[channels] *= factor
        weight[:, channels] /= factor
    return model


def _norms_and_readers(model: nn.Module) -> list[tuple[nn.LayerNorm, Tensor]]:
    found = []
    for module in model.modules():
        if isinstance(module, PatchEmbed) and module.prenorm:
            found.append((module.norm, module.proj.weight))
        elif isinstance(module, Residual) and module.norm is not None:
            reader = module.fn.qkv if hasattr(module.fn, "qkv") else module.fn.net.fc1
            found.append((module.norm, reader.weight))
        elif isinstance(module, ResidualAttentionBlock):
            found += [(module.ln_1, module.attn.in_proj_weight), (module.ln_2, module.mlp.c_fc.weight)]
    return found
