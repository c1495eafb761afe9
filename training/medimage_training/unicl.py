"""The UniCL loss, and the model as it is trained: drop path, activation checkpointing, vectors of all processes."""

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medimage_export.medimageinsight.davit import ChannelBlock, SpatialBlock
from medimage_export.medimageinsight.reference import ImageEncoderReference, UniCL
from medimage_training.batches import TrainingBatch


class Encoders(nn.Module):
    """Both encoders in one call, which is what DistributedDataParallel watches. `model` has the published names."""

    def __init__(self, model: UniCL) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of images and of texts, (B, E) each, and the logit scale."""
        images, _ = encode_pixels(self.model, batch.pixels)
        return images, self.model.encode_text(batch.input_ids, batch.attention_mask), self.model.logit_scale


def encode_pixels(model: UniCL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """As it is served: scale and normalisation included."""
    reference = ImageEncoderReference(model)
    reference.mean, reference.std = reference.mean.to(pixels.device), reference.std.to(pixels.device)
    features: tuple[Tensor, Tensor] = reference(pixels)
    return features


def unicl_loss(images: Tensor, texts: Tensor, classes: Tensor, logit_scale: Tensor) -> Tensor:
    """Contrast images with texts, both ways; all pairs of one class are positives.

    Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", https://arxiv.org/abs/2204.03610.

    Args:
        images: (N, E) unit vectors, as `texts`; row i of both and of `classes` belong together.
    """
    logits = logit_scale.exp() * images @ texts.T  # (N, N)
    positives = (classes[:, None] == classes[None, :]).to(logits.dtype)
    targets = positives / positives.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def of_all_processes(rows: Tensor) -> Tensor:
    """(B, …) of each process -> (processes x B, …), in the order of the processes, with gradients."""
    if not distributed():
        return rows
    gathered: Tensor = Gather.apply(rows) if rows.requires_grad else gathered_rows(rows)  # type: ignore[no-untyped-call]
    return gathered


class Gather(torch.autograd.Function):
    """The gradient of a process's rows is the sum over what all processes make of them.

    DistributedDataParallel then takes the mean over processes, and that is the gradient of the one loss that all of
    them compute. PyTorch's own function for it is deprecated, and what it names instead is private.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gathered_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def gathered_rows(rows: Tensor) -> Tensor:
    """As `of_all_processes`, without gradients."""
    if not distributed():
        return rows
    there = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(there, rows.contiguous())
    return torch.cat(there)


def distributed() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def with_drop_path(model: UniCL, rate: float, *, processes: int = 1, process: int = 0) -> None:
    """Leave out residual branches of attention and MLP while training, image by image, after the published schedule.

    Rates rise linearly from 0 in the first block to `rate` in the last; the two branches of a block have the same. The
    dice are thrown for the images of all processes at once, from PyTorch's generator, so that an image has the same
    branches however many processes there are.
    """
    blocks = [m for m in model.image_encoder.modules() if isinstance(m, SpatialBlock | ChannelBlock)]
    for block, of_block in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        attention = block.window_attn if isinstance(block, SpatialBlock) else block.channel_attn
        for branch in (attention.fn, block.ffn.fn) if of_block else ():
            branch.register_forward_hook(functools.partial(_dropped, rate=of_block, of=(process, processes)))


def _dropped(branch: nn.Module, inputs: object, output: Tensor, *, rate: float, of: tuple[int, int]) -> Tensor:
    if not branch.training:
        return output
    process, processes = of
    kept = torch.rand(processes * len(output), device=output.device).chunk(processes)[process] >= rate
    return output * (kept.to(output.dtype) / (1 - rate)).view(-1, *[1] * (output.dim() - 1))


def with_checkpointing(model: UniCL) -> None:
    """Keep the input of each block of the image encoder alone for the backward pass, and compute the rest again."""
    for block in model.image_encoder.modules():
        if isinstance(block, SpatialBlock | ChannelBlock):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
