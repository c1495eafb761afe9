"""The graphs that Triton serves: an encoder with everything that belongs to the model's numbers inside.

Scaling, normalisation, L2 norm and the logit scale are part of the graph, so that a client sends 8-bit pixels or token
ids and every runtime gives the same vectors.
"""

import torch
from torch import Tensor

from medimage_export.medimageinsight.unicl import MedImageInsight
from medimage_export.to_onnx import Graph


class ImageEncoderGraph(Graph):
    """pixels (B, height, width, 3) uint8 RGB -> image_features (B, E) unit vectors, scaling_factor (B, 1)."""

    INPUTS = ("pixels",)
    OUTPUTS = ("image_features", "scaling_factor")

    def __init__(self, model: MedImageInsight) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.config.image.image_mean))
        self.register_buffer("std", torch.tensor(model.config.image.image_std))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pixel_values = (pixels.float() / 255 - self.mean) / self.std
        features = self.model.encode_image(pixel_values.permute(0, 3, 1, 2))
        return features, self.model.logit_scale.expand(pixels.shape[0], 1)

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros((2, *self.model.config.image.image_size, 3), dtype=torch.uint8),)


class TextEncoderGraph(Graph):
    """input_ids, attention_mask (B, T) int64 -> text_features (B, E) unit vectors, scaling_factor (B, 1)."""

    INPUTS = ("input_ids", "attention_mask")
    OUTPUTS = ("text_features", "scaling_factor")

    def __init__(self, model: MedImageInsight) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.encode_text(input_ids, attention_mask)
        return features, self.model.logit_scale.expand(input_ids.shape[0], 1)

    def example(self) -> tuple[Tensor, ...]:
        ids = torch.zeros((2, self.model.config.text.context_length), dtype=torch.int64)
        return ids, torch.ones_like(ids)
