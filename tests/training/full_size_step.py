"""Memory and time of one optimizer step of the published architecture, with random weights.

    python -m tests.training.full_size_step step [BATCH]          measured, on this machine's CPU, with checkpointing
    python -m tests.training.full_size_step estimate [BATCH]      counted, for any device; computes nothing

The estimate adds up what autograd keeps for the backward pass, from a forward pass on PyTorch's meta device.
"""

import resource
import sys
import time

import click
import torch

from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.davit import ChannelBlock, SpatialBlock
from medimage_export.medimageinsight.reference import UniCL
from medimage_training.batches import TrainingBatch
from medimage_training.unicl import Encoders, unicl_loss, with_checkpointing, with_drop_path

GB = 1e9


def batch_of(n: int, device: str) -> TrainingBatch:
    height, width = MedImageInsightConfig().image.image_size
    ids = torch.randint(49407, (n, 77), device=device)
    pixels = torch.randint(255, (n, height, width, 3), dtype=torch.uint8, device=device)
    return TrainingBatch(pixels, ids, torch.ones_like(ids), torch.arange(n, device=device))


def step(n: int) -> str:
    model = random_model(MedImageInsightConfig()).requires_grad_(True).train()
    with_drop_path(model, 0.2)
    with_checkpointing(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=0.4)
    batch, began = batch_of(n, "cpu"), time.process_time()
    images, texts, scale = Encoders(model)(batch)
    unicl_loss(images, texts, batch.classes, scale).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.07)
    optimizer.step()
    seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
    return f"batch {n}, checkpointing, no average of weights: {seconds:.0f} CPU-s, peak memory {peak:.1f} GB"


class Kept:
    """Bytes of the tensors that autograd keeps, each storage once, parameters left out."""

    def __init__(self, model: UniCL) -> None:
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._held: list[torch.Tensor] = []  # so that no storage is freed and its address given to another
        self.bytes = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def kept_by(n: int, *, checkpointing: bool) -> tuple[float, float]:
    """GB in float32 that are kept of the whole forward pass, and the most that one block keeps."""
    with torch.device("meta"):
        model = UniCL(MedImageInsightConfig()).train()
    model.requires_grad_(True)
    of_blocks: list[int] = []
    blocks = [m for m in model.image_encoder.modules() if isinstance(m, SpatialBlock | ChannelBlock)]
    kept = Kept(model)
    for block in blocks:
        before: list[int] = []
        block.register_forward_pre_hook(lambda *_, before=before: before.append(kept.bytes))
        block.register_forward_hook(lambda *_, before=before: of_blocks.append(kept.bytes - before[-1]))
    if checkpointing:
        with_checkpointing(model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        Encoders(model)(batch_of(n, "meta"))
    return kept.bytes / GB, max(of_blocks) / GB


def estimate(n: int) -> str:
    whole, largest = kept_by(n, checkpointing=False)
    inputs, _ = kept_by(n, checkpointing=True)
    numbers = sum(parameter.numel() for parameter in random_shapes())
    fixed = numbers * 4 * 5 / GB  # weights, gradients, two moments of AdamW, average
    return (
        f"batch {n}, float32: weights, gradients, moments and average {fixed:.1f} GB; activations {whole:.1f} GB, with "
        f"checkpointing {inputs:.1f} GB and {largest:.1f} GB for the largest block; together {fixed + whole:.1f} and "
        f"{fixed + inputs + largest:.1f} GB"
    )


def random_shapes() -> list[torch.Tensor]:
    with torch.device("meta"):
        return [*UniCL(MedImageInsightConfig()).parameters()]


if __name__ == "__main__":
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    click.echo({"step": step, "estimate": estimate}[sys.argv[1]](n))
