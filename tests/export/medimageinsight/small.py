"""A small model with every trap of the full-size one: four stages, padded windows, several heads and groups."""

import torch

from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.config import DaViTConfig, MedImageInsightConfig, TextConfig
from medimage_export.medimageinsight.unicl import MedImageInsight

SMALL = MedImageInsightConfig(
    DaViTConfig(embed_dims=(16, 32, 64, 128), num_heads=(2, 4, 8, 16), num_groups=(2, 4, 8, 16), depths=(1, 1, 2, 1)),
    TextConfig(width=64, heads=4, layers=2, vocab_size=600),
    projection_dim=1024,
)


def perturbed_model() -> MedImageInsight:
    """Random weights, with the norms' and biases' initial ones and zeros replaced so that each of them matters."""
    model = random_model(SMALL)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model
