"""DaViT, the image encoder of MedImageInsight (`davit_v1`), for inference.

Paper: "DaViT: Dual Attention Vision Transformers", https://arxiv.org/abs/2204.03645. MedImageInsight's differs from
it in four places that change every number: window padding is not masked, channel attention is scaled by the token
count, each block has a depthwise convolution before each of its two halves, and the last norm follows the pooling.
Module names are those of the published checkpoint. Training-only drop path (DROP_PATH_RATE) has no place here.

Shapes: B images, H by W tokens (N = H * W), C channels; tokens are kept as (B, H, W, C) throughout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimage_export.medimageinsight.config import DaViTConfig

MLP_RATIO = 4  # a code default of the reference, not in config.yaml


class PatchEmbed(nn.Module):
    """Strided convolution between stages; LayerNorm over its input (`prenorm`) or over its output."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int, padding: int, *, prenorm: bool) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(in_dim if prenorm else dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.prenorm:
            x = self.norm(x)
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, H, W, C) -> (B, H/stride, W/stride, dim)
        return x if self.prenorm else self.norm(x)


class Residual(nn.Module):
    """x + fn(x), or x + fn(norm(x)) where the reference normalises first."""

    def __init__(self, fn: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x if self.norm is None else self.norm(x))


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel alone: gives the tokens their position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:  # for which PyTorch convolves channel by channel: minutes at full size
            H, W = x.shape[1:3]
            padded, taps = F.pad(x, (0, 0, 1, 1, 1, 1)), self.dw.weight[:, 0]
            products = (padded[:, i : i + H, j : j + W] * taps[:, i, j] for i in range(3) for j in range(3))
            return sum(products, start=self.dw.bias)
        return self.dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """Self-attention inside windows of `window` by `window` tokens, not shifted, without position bias."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        w = self.window
        # The padded tokens are not masked: after qkv they are keys and values equal to its bias, as in training.
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % w))
        rows, cols = x.shape[1] // w, x.shape[2] // w
        x = x.reshape(B, rows, w, cols, w, C).transpose(2, 3).reshape(-1, w * w, C)  # (B * windows, w * w, C)

        qkv = self.qkv(x).reshape(-1, w * w, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B * windows, heads, w * w, C / heads)
        x = self.proj(self.attended(q, k, v).transpose(1, 2).reshape(-1, w * w, C))

        x = x.reshape(B, rows, cols, w, w, C).transpose(2, 3).reshape(B, rows * w, cols * w, C)
        return x[:, :H, :W]

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(-1) @ v


class ChannelAttention(nn.Module):
    """Attention between the channels of a group, over all tokens of the image."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        N = H * W
        qkv = self.qkv(x).reshape(B, N, 3, self.groups, C // self.groups)
        q, k, v = qkv.permute(2, 0, 3, 4, 1)  # each (B, groups, C / groups, N)
        scores = (q * N**-0.5) @ k.transpose(-1, -2)  # scaled by the token count, as trained, not by the head dim
        mixed = scores.softmax(-1) @ v  # (B, groups, C / groups, N)
        return self.proj(mixed.permute(0, 3, 1, 2).reshape(B, H, W, C))


class Mlp(nn.Module):
    """Two linear layers with exact (erf) GELU; `net` is a level of the checkpoint's names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential()
        self.net.add_module("fc1", nn.Linear(dim, MLP_RATIO * dim))
        self.net.add_module("act", nn.GELU())
        self.net.add_module("fc2", nn.Linear(MLP_RATIO * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SpatialBlock(nn.Module):
    """Four residuals: depthwise convolution, window attention, depthwise convolution, MLP."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.conv1 = Residual(DepthwiseConv(dim))
        self.window_attn = Residual(WindowAttention(dim, heads, window), nn.LayerNorm(dim))
        self.conv2 = Residual(DepthwiseConv(dim))
        self.ffn = Residual(Mlp(dim), nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.conv2(self.window_attn(self.conv1(x))))


class ChannelBlock(nn.Module):
    """As SpatialBlock, with channel attention."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.conv1 = Residual(DepthwiseConv(dim))
        self.channel_attn = Residual(ChannelAttention(dim, groups), nn.LayerNorm(dim))
        self.conv2 = Residual(DepthwiseConv(dim))
        self.ffn = Residual(Mlp(dim), nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.conv2(self.channel_attn(self.conv1(x))))


class DualBlock(nn.Sequential):
    """One depth step: a spatial block, then a channel block."""

    def __init__(self, dim: int, heads: int, groups: int, window: int) -> None:
        super().__init__()
        self.add_module("spatial_block", SpatialBlock(dim, heads, window))
        self.add_module("channel_block", ChannelBlock(dim, groups))


class DaViT(nn.Module):
    """Normalised pixels (B, 3, height, width) -> pooled features (B, C of the last stage), not L2-normalised."""

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        in_dims = (3, *config.embed_dims[:-1])
        self.convs = nn.ModuleList(
            PatchEmbed(in_dim, dim, kernel, stride, padding, prenorm=prenorm)
            for in_dim, dim, kernel, stride, padding, prenorm in zip(
                in_dims,
                config.embed_dims,
                config.patch_size,
                config.patch_stride,
                config.patch_padding,
                config.patch_prenorm,
                strict=True,
            )
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(DualBlock(dim, heads, groups, config.window_size) for _ in range(depth)))
            for dim, heads, groups, depth in zip(
                config.embed_dims, config.num_heads, config.num_groups, config.depths, strict=True
            )
        )
        self.norms = nn.LayerNorm(config.embed_dims[-1])

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.permute(0, 2, 3, 1)
        for conv, blocks in zip(self.convs, self.blocks, strict=True):
            x = blocks(conv(x))
        return self.norms(torch.mean(x, dim=(1, 2)))
