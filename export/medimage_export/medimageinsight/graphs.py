"""What the graphs that Triton serves compute, in PyTorch: the reference of their parity check.

Scaling, normalisation, L2 norm and the logit scale are part of a graph, so that a client sends 8-bit pixels or token
ids and every runtime gives the same vectors. The graphs themselves are written by `image_graph` and `text_graph`.
"""

import torch
from torch import Tensor, nn

from medimage_export.medimageinsight.unicl import MedImageInsight, unit


class ImageEncoderGraph(nn.Module):
    """pixels (B, height, width, 3) uint8 RGB -> image_features (B, E) unit vectors, scaling_factor (B, 1)."""

    OUTPUTS = ("image_features", "scaling_factor")

    def __init__(self, model: MedImageInsight) -> None:
        super().__init__()
        self.encoder = model.image_encoder
        self.projection = model.image_projection
        self.logit_scale = model.logit_scale
        self.register_buffer("mean", torch.tensor(model.config.image.image_mean))
        self.register_buffer("std", torch.tensor(model.config.image.image_std))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pixel_values = (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std
        features = unit(self.encoder(pixel_values.permute(0, 3, 1, 2)) @ self.projection)
        return features, self.logit_scale.expand(pixels.shape[0], 1)


class TextEncoderGraph(nn.Module):
    """input_ids, attention_mask (B, T) int64 -> text_features (B, E) unit vectors, scaling_factor (B, 1)."""

    OUTPUTS = ("text_features", "scaling_factor")

    def __init__(self, model: MedImageInsight) -> None:
        super().__init__()
        self.encoder = model.lang_encoder
        self.projection = model.lang_projection
        self.logit_scale = model.logit_scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        features = unit(self.encoder(input_ids, attention_mask) @ self.projection)
        return features, self.logit_scale.expand(input_ids.shape[0], 1)
