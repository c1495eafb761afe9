"""Image encoder of CXRReportGen / MAIRA-2: a DINOv2-shaped ViT, then the projector into the decoder's space.

Papers: DINOv2, https://arxiv.org/abs/2304.07193; RAD-DINO, https://arxiv.org/abs/2401.10815; MAIRA-2,
https://arxiv.org/abs/2406.04449. Module names are those of the published checkpoint (transformers' Dinov2).
transformers' own LLaVA would feed features without the final LayerNorm, so it cannot stand in for this.

Shapes: B images, N = 1 + grid² tokens, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimage_export.cxrreportgen.config import CXRReportGenConfig, VisionConfig


class Embeddings(nn.Module):
    """Pixels -> patch tokens with the CLS token before them and their positions added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        C, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.randn(1, 1, C) * 0.02)
        # for one image size only, to which the server resizes; transformers would take any
        self.position_embeddings = nn.Parameter(torch.randn(1, 1 + config.grid**2, C) * 0.02)
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, C, patch, patch)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, grid², C)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], 1) + self.position_embeddings


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.num_heads = config.num_heads
        self.attention = nn.Module()
        self.attention.query, self.attention.key, self.attention.value = (nn.Linear(C, C) for _ in range(3))
        self.output = nn.Module()
        self.output.dense = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = (
            project(x).reshape(B, N, self.num_heads, -1).transpose(1, 2)  # (B, heads, N, C/heads)
            for project in (self.attention.query, self.attention.key, self.attention.value)
        )
        return self.output.dense(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.fc1, self.fc2 = nn.Linear(C, C * config.mlp_ratio), nn.Linear(C * config.mlp_ratio, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learnt factor per channel."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class Block(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size, config.layer_norm_eps) for _ in range(2))
        self.attention, self.mlp = Attention(config), MLP(config)
        if config.layer_scale:
            self.layer_scale1, self.layer_scale2 = LayerScale(config), LayerScale(config)
        else:
            self.layer_scale1, self.layer_scale2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class VisionTower(nn.Module):
    """pixel_values (B, 3, size, size), normalised -> features (B, tokens_per_image, C)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embeddings(pixel_values)
        for block in self.encoder.layer[: self.config.blocks_used]:
            x = block(x)
        if self.config.final_norm:
            x = self.layernorm(x)
        return x[:, 1:] if self.config.drop_cls else x


class Projector(nn.Module):
    """Linear layers with exact GELU between them: features (B, T, C) -> image tokens (B, T, H)."""

    def __init__(self, vision_size: int, text_size: int, n_layers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(vision_size, text_size)]
        for _ in range(n_layers - 1):
            layers += [nn.GELU(), nn.Linear(text_size, text_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class ImageEncoder(nn.Module):
    """pixels (B, size, size) uint8, grey -> image_tokens (B, tokens_per_image, H) float32.

    The reference repeats the grey image in three channels; scaling and normalisation are in the graph, so that one
    channel of bytes travels.
    """

    OUTPUTS = ("image_tokens",)

    def __init__(self, config: CXRReportGenConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(
            config.vision.hidden_size, config.decoder.hidden_size, config.projector_layers
        )
        # on the CPU also where the model is built without memory: these are not loaded
        for name, values in (("mean", config.vision.image_mean), ("std", config.vision.image_std)):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        pixel_values = (pixels[:, None].to(self.mean.dtype) / 255 - self.mean) / self.std  # (B, 3, size, size)
        weights = self.vision_tower.layernorm.weight
        tokens = self.multi_modal_projector(self.vision_tower(pixel_values.to(weights.dtype)))
        return tokens.to(self.mean.dtype)
