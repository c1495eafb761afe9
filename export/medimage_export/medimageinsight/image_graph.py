"""The image encoder as an ONNX graph, written node by node: the numbers of `davit.DaViT`, arranged for speed.

What differs from a trace of the PyTorch modules, and changes no number beyond rounding:

- Tokens are a matrix, (B * H * W, C), so that a linear layer is one Gemm with its bias.
- x + DWConv(x) is one convolution, whose middle weights are higher by one. The transposes around it are those that
  onnxruntime merges into the reordering which its convolution needs anyway.
- Windows are padded after qkv and not before, which saves 7 % of the multiply-adds: there the padding is the bias. A
  bias of k adds the same to all scores of a query, so softmax drops it. A bias of v is added to every output, since the
  weights sum to 1, so it goes into the bias of proj. And queries of the padding are cut off again.
- Without padding, windows are made once before qkv instead of three times after it.

Shapes: B images, H by W tokens, C channels, w the window.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from medimage_export.medimageinsight.config import DaViTConfig
from medimage_export.medimageinsight.davit import (
    ChannelAttention,
    ChannelBlock,
    DepthwiseConv,
    PatchEmbed,
    SpatialBlock,
    WindowAttention,
)
from medimage_export.medimageinsight.encoder_writer import EncoderWriter, Operators, Precision, Quantized
from medimage_export.medimageinsight.quantization import Quantization
from medimage_export.medimageinsight.reference import UniCL


class TokenGrid(NamedTuple):
    """How the tokens of an image lie: those of a batch are a matrix (B * height * width, channels)."""

    height: int
    width: int
    channels: int

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (-1, *self)


def write_image_encoder(
    model: UniCL,
    path: Path,
    *,
    precision: Precision,
    operators: Operators = "onnxruntime",
    integer_layers: Mapping[str, Quantization] | None = None,
) -> None:
    """pixels uint8 (B, height, width, 3) RGB -> image_features fp32 (B, E) unit vectors, scaling_factor fp32 (B, 1).

    Weights go to `<path>.data`; `integer_layers` are those of int8, see `int8`.
    """
    encoder = model.image_encoder
    with ImageEncoderWriter(path, precision=precision, operators=operators, integer_layers=integer_layers) as graph:
        grid = TokenGrid(*model.config.image.image_size, channels=3)
        pixels = graph.input("pixels", TensorProto.UINT8, ["batch", *grid])
        # at once, because TensorRT takes uint8 here and nowhere else
        pixels = graph.node("Cast", [pixels], "pixels/float", to=TensorProto.FLOAT)
        x = graph.normalised(pixels, model.config.image)
        for i, (conv, stage) in enumerate(zip(encoder.convs, encoder.blocks, strict=True)):
            x, grid = graph.patch_embed(x, f"convs.{i}", conv, grid)
            for j, dual in enumerate(stage):
                x = graph.block(x, f"blocks.{i}.{j}.spatial_block", dual.spatial_block, grid)
                x = graph.block(x, f"blocks.{i}.{j}.channel_block", dual.channel_block, grid)
        x = graph.to_float32(graph.reshape(x, -1, grid.tokens, grid.channels))
        x = graph.node("ReduceMean", [x, graph.integers(1)], "pooled", keepdims=0)
        graph.unit_vectors(x, encoder.norms, model.image_projection, "image_features")
        graph.scaling_factor(model.logit_scale, pixels)


class ImageEncoderWriter(EncoderWriter):
    """The layers of DaViT; each takes and gives tokens as a matrix, and names its nodes as the checkpoint does."""

    def normalised(self, pixels: str, config: DaViTConfig) -> str:
        """(B, height, width, 3), 0 to 255 -> (B, 3, height, width), as the published transform has it."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (config.image_mean, config.image_std))
        x = self.node("Mul", [self.transpose(pixels, 0, 3, 1, 2), self.constant("scale", 1 / (255 * std))], "scaled")
        return self.from_float32(self.node("Sub", [x, self.constant("shift", mean / std)], "normalised"))

    def patch_embed(self, x: str, name: str, module: PatchEmbed, grid: TokenGrid) -> tuple[str, TokenGrid]:
        """Strided convolution; the image itself comes in channel-first, all else as tokens."""
        (kernel, _), (stride, _), (padding, _) = module.proj.kernel_size, module.proj.stride, module.proj.padding
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in grid[:2])
        new = TokenGrid(height, width, module.proj.out_channels)
        if module.prenorm:
            x = self.layer_norm(x, f"{name}.norm", module.norm)
            if f"{name}.proj" in self.integer_layers:
                return self._integer_convolution(x, name, module, grid, new), new
            x = self.transpose(self.reshape(x, *grid.shape), 0, 3, 1, 2)
        x = self.node(
            "Conv",
            [
                x,
                self.matrix(f"{name}.proj.weight", module.proj.weight),
                self.vector(f"{name}.proj.bias", module.proj.bias),
            ],
            f"{name}.proj",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[padding] * 4,
        )
        x = self.reshape(self.transpose(x, 0, 2, 3, 1), -1, new.channels)
        return (x if module.prenorm else self.layer_norm(x, f"{name}.norm", module.norm)), new

    def block(self, x: str, name: str, module: SpatialBlock | ChannelBlock, grid: TokenGrid) -> str:
        """Depthwise convolution, attention, depthwise convolution, MLP; each a residual."""
        x = self.depthwise_residual(x, f"{name}.conv1.fn", module.conv1.fn, grid)
        if isinstance(module, SpatialBlock):
            normed = self.layer_norm(x, f"{name}.window_attn.norm", module.window_attn.norm)
            attended = self.window_attention(normed, f"{name}.window_attn.fn", module.window_attn.fn, grid)
        else:
            normed = self.layer_norm(x, f"{name}.channel_attn.norm", module.channel_attn.norm)
            attended = self.channel_attention(normed, f"{name}.channel_attn.fn", module.channel_attn.fn, grid)
        x = self.add(x, attended)
        x = self.depthwise_residual(x, f"{name}.conv2.fn", module.conv2.fn, grid)
        normed, net = self.layer_norm(x, f"{name}.ffn.norm", module.ffn.norm), module.ffn.fn.net
        hidden = self.mlp(normed, (f"{name}.ffn.fn.net.fc1", net.fc1), self.gelu, (f"{name}.ffn.fn.net.fc2", net.fc2))
        return self.add(x, hidden)

    def depthwise_residual(self, x: str, name: str, module: DepthwiseConv, grid: TokenGrid) -> str:
        """x + DWConv(x) as one convolution."""
        weight = module.dw.weight.clone()
        weight[:, 0, 1, 1] += 1
        parameters = [self.matrix(f"{name}.dw.weight", weight), self.vector(f"{name}.dw.bias", module.dw.bias)]
        x = self.transpose(self.reshape(x, *grid.shape), 0, 3, 1, 2)
        x = self.node("Conv", [x, *parameters], f"{name}.dw", group=grid.channels, pads=[1] * 4)
        return self.reshape(self.transpose(x, 0, 2, 3, 1), -1, grid.channels)

    def window_attention(self, x: str, name: str, module: WindowAttention, grid: TokenGrid) -> str:
        """Self-attention inside windows."""
        C, w = grid.channels, module.window
        padding = (-grid.height % w, -grid.width % w)
        if not any(padding):
            x = self.to_windows(x, grid, w, padding)
        x = self.activation(x, f"{name}.qkv", C)
        scale = (C // module.heads) ** -0.5
        (q_weight, k_weight, v_weight), (q_bias, _, v_bias) = module.qkv.weight.split(C), module.qkv.bias.split(C)
        qkv = (
            self.linear(x, f"{name}.q", q_weight * scale, q_bias * scale),
            self.linear(x, f"{name}.k", k_weight, None),
            self.linear(x, f"{name}.v", v_weight, None),
        )
        if any(padding):
            qkv = tuple(self.to_windows(x, grid, w, padding) for x in qkv)
        attended = self.attention(*(self.reshape(x, -1, w * w, C) for x in qkv), name, module.heads)
        attended = self.activation(self.from_windows(attended, grid, w, padding), f"{name}.proj", C)
        return self.linear(attended, f"{name}.proj", module.proj.weight, module.proj.bias + module.proj.weight @ v_bias)

    def to_windows(self, x: str, grid: TokenGrid, window: int, padding: tuple[int, int]) -> str:
        """Tokens in the order of windows, (B * windows * window * window, C), with zeros for the padding."""
        below, right = padding
        rows, columns = (grid.height + below) // window, (grid.width + right) // window
        if any(padding):
            x = self.reshape(x, *grid.shape)
            x = self.node("Pad", [x, self.integers(0, 0, 0, 0, 0, below, right, 0)], f"{x}/padded")
        x = self.reshape(x, -1, rows, window, columns, window, grid.channels)
        return self.reshape(self.transpose(x, 0, 1, 3, 2, 4, 5), -1, grid.channels)

    def from_windows(self, x: str, grid: TokenGrid, window: int, padding: tuple[int, int]) -> str:
        """The reverse of `to_windows`; `x` may have any shape."""
        below, right = padding
        rows, columns = (grid.height + below) // window, (grid.width + right) // window
        x = self.transpose(self.reshape(x, -1, rows, columns, window, window, grid.channels), 0, 1, 3, 2, 4, 5)
        if any(padding):
            x = self.reshape(x, -1, rows * window, columns * window, grid.channels)
            ends = self.integers(grid.height, grid.width)
            x = self.node("Slice", [x, self.integers(0, 0), ends, self.integers(1, 2)], f"{x}/cropped")
        return self.reshape(x, -1, grid.channels)

    def channel_attention(self, x: str, name: str, module: ChannelAttention, grid: TokenGrid) -> str:
        """Attention between the channels of a group, over all tokens; two products of which one side is C / groups."""
        C, groups = grid.channels, module.groups
        x = self.activation(x, f"{name}.qkv", C)
        products = (
            self.linear(x, f"{name}.{part}", weight, bias)
            for part, weight, bias in zip("qkv", module.qkv.weight.split(C), module.qkv.bias.split(C), strict=True)
        )
        by_token = (self.reshape(y, -1, grid.tokens, groups, C // groups) for y in products)
        q, k, v = (self.transpose(y, 0, 2, 1, 3) for y in by_token)  # each (B, groups, N, C / groups)
        # In float32, for these sums are over all tokens: up to 14,400 of them, at which float16 has steps of 8.
        q, k = self.to_float32(q), self.to_float32(k)
        scores = self.node("MatMul", [self.transpose(q, 0, 1, 3, 2), k], f"{name}/products")
        scale = self.constant(f"{name}.scale", np.array(grid.tokens**-0.5, np.float32))
        scores = self.node("Mul", [scores, scale], f"{name}/scores")  # (B, groups, C / groups, C / groups)
        weights = self.from_float32(self.node("Softmax", [scores], f"{name}/weights", axis=-1))
        mixed = self.node("MatMul", [v, self.transpose(weights, 0, 1, 3, 2)], f"{name}/mixed")
        mixed = self.reshape(self.transpose(mixed, 0, 2, 1, 3), -1, C)
        return self.linear(
            self.activation(mixed, f"{name}.proj", C), f"{name}.proj", module.proj.weight, module.proj.bias
        )

    def _integer_convolution(self, x: str, name: str, module: PatchEmbed, grid: TokenGrid, new: TokenGrid) -> str:
        """The convolution as one integer product over the neighbours of each new token, side by side."""
        kernel, stride, padding = module.proj.kernel_size[0], module.proj.stride[0], module.proj.padding[0]
        values, scale, zero_point, _ = self.quantized(x, f"{name}.proj")
        pads = self.integers(0, padding, padding, 0, 0, padding, padding, 0)
        padded = self.node("Pad", [self.reshape(values, *grid.shape), pads, zero_point], f"{name}/padded")
        neighbours = []
        for row, column in np.ndindex(kernel, kernel):
            ends = (row + stride * (new.height - 1) + 1, column + stride * (new.width - 1) + 1)
            bounds = [
                self.integers(row, column),
                self.integers(*ends),
                self.integers(1, 2),
                self.integers(stride, stride),
            ]
            neighbours.append(self.node("Slice", [padded, *bounds], f"{name}/{row}{column}"))
        values = self.reshape(
            self.node("Concat", neighbours, f"{name}/neighbours", axis=3), -1, kernel**2 * grid.channels
        )
        weight = module.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (out, kernel * kernel * in), as the neighbours lie
        # without divisors: a norm comes before it, into which factors go
        return self.linear(Quantized(values, scale, zero_point, None), f"{name}.proj", weight, module.proj.bias)
