"""The whole MedImageInsight model: both encoders, their projections into one space, and the logit scale."""

import math

import torch
from torch import Tensor, nn

from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.davit import DaViT
from medimage_export.medimageinsight.text_transformer import TextTransformer


class MedImageInsight(nn.Module):
    """UniCL head over DaViT and the text transformer; E is the dimension of the shared space (1024 as published)."""

    def __init__(self, config: MedImageInsightConfig) -> None:
        super().__init__()
        self.config = config
        image_dim = config.image.embed_dims[-1]
        text_dim = config.text.width
        self.image_encoder = DaViT(config.image)
        self.lang_encoder = TextTransformer(config.text)
        self.image_projection = nn.Parameter(torch.randn(image_dim, config.projection_dim) * image_dim**-0.5)
        self.lang_projection = nn.Parameter(torch.randn(text_dim, config.projection_dim) * text_dim**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # exp() of it multiplies cosines

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Normalised RGB (B, 3, height, width) -> unit vectors (B, E)."""
        return unit(self.image_encoder(pixel_values) @ self.image_projection)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) -> unit vectors (B, E)."""
        return unit(self.lang_encoder(input_ids, attention_mask) @ self.lang_projection)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis; without an epsilon, as published."""
    return x / x.norm(dim=-1, keepdim=True)
