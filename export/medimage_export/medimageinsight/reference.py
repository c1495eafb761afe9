"""MedImageInsight in PyTorch: the model, and what each graph that Triton serves has to compute of it.

Scaling, normalisation, L2 norm and the logit scale are part of a graph, so that a client sends 8-bit pixels or token
ids and every runtime gives the same vectors. The graphs are written by `image_graph` and `text_graph`, and the parity
check holds them to the two references here.
"""

import math

import torch
from torch import Tensor, nn

from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.davit import DaViT
from medimage_export.medimageinsight.text_transformer import TextTransformer


class UniCL(nn.Module):
    """MedImageInsight as published: two encoders, their projections into one space (E dimensions), the logit scale."""

    def __init__(self, config: MedImageInsightConfig) -> None:
        super().__init__()
        self.config = config
        image_dim = config.image.embed_dims[-1]
        text_dim = config.text.width
        self.image_encoder = DaViT(config.image)
        self.lang_encoder = TextTransformer(config.text)
        self.image_projection = nn.Parameter(nn.init.xavier_uniform_(torch.empty(image_dim, config.projection_dim)))
        self.lang_projection = nn.Parameter(nn.init.xavier_uniform_(torch.empty(text_dim, config.projection_dim)))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # exp() of it multiplies cosines

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Normalised RGB (B, 3, height, width) -> unit vectors (B, E)."""
        return unit(self.image_encoder(pixel_values) @ self.image_projection)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) -> unit vectors (B, E)."""
        return unit(self.lang_encoder(input_ids, attention_mask) @ self.lang_projection)


class ImageEncoderReference(nn.Module):
    """pixels (B, height, width, 3) uint8 RGB -> image_features (B, E) unit vectors, scaling_factor (B, 1)."""

    OUTPUTS = ("image_features", "scaling_factor")

    def __init__(self, model: UniCL) -> None:
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


class TextEncoderReference(nn.Module):
    """input_ids, attention_mask (B, T) int64 -> text_features (B, E) unit vectors, scaling_factor (B, 1)."""

    OUTPUTS = ("text_features", "scaling_factor")

    def __init__(self, model: UniCL) -> None:
        super().__init__()
        self.encoder = model.lang_encoder
        self.projection = model.lang_projection
        self.logit_scale = model.logit_scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        features = unit(self.encoder(input_ids, attention_mask) @ self.projection)
        return features, self.logit_scale.expand(input_ids.shape[0], 1)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis; without an epsilon, as published."""
    return x / x.norm(dim=-1, keepdim=True)
