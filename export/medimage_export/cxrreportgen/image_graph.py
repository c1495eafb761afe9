"""The image encoder as an ONNX graph, written node by node: the numbers of `image_encoder.ImageEncoder`.

What differs from a trace of the PyTorch module, and changes no number beyond rounding: tokens are a matrix, so that a
linear layer is one Gemm with its bias; the scale of the scores is in the query's weights, and the factors of
`LayerScale` are in the weights before them; attention is one node.

Shapes: B images, N tokens, C channels.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto
from torch import Tensor, nn

from medimage_export.cxrreportgen.config import VisionConfig
from medimage_export.cxrreportgen.image_encoder import Attention, Block, ImageEncoder
from medimage_export.medimageinsight.encoder_writer import EncoderWriter


def write_vision_encoder(encoder: ImageEncoder, path: Path, *, precision: Literal["fp32", "fp16"]) -> None:
    """pixels uint8 (B, size, size), grey -> image_tokens fp32 (B, tokens_per_image, H).

    Weights go to `<path>.data`. They are read without gradients.
    """
    config, tower = encoder.config.vision, encoder.vision_tower
    with VisionEncoderWriter(path, precision=precision, operators="onnxruntime") as graph:
        pixels = graph.input("pixels", TensorProto.UINT8, ["batch", config.image_size, config.image_size])
        batch = graph.node("Shape", [pixels], "batch_size", start=0, end=1)
        x = graph.embeddings(graph.normalised(pixels, config), batch, encoder)
        for i, block in enumerate(tower.encoder.layer[: config.blocks_used]):
            x = graph.block(x, f"vision_tower.encoder.layer.{i}", block, config)
        if config.final_norm:
            x = graph.layer_norm(x, "vision_tower.layernorm", tower.layernorm)
        if config.drop_cls:
            x = graph.reshape(x, -1, 1 + config.grid**2, config.hidden_size)
            bounds = [graph.integers(1), graph.integers(1 + config.grid**2), graph.integers(1)]
            x = graph.reshape(graph.node("Slice", [x, *bounds], "patches"), -1, config.hidden_size)
        x = graph.projected(x, encoder.multi_modal_projector.layers)
        x = graph.to_float32(graph.reshape(x, -1, config.tokens_per_image, encoder.config.decoder.hidden_size))
        graph.of_any_shape(x, batch, encoder.OUTPUTS[0])


class VisionEncoderWriter(EncoderWriter):
    """The layers of the ViT, named as in the checkpoint; each takes and gives tokens as a matrix, (B * N, C)."""

    def normalised(self, pixels: str, config: VisionConfig) -> str:
        """(B, size, size), 0 to 255 -> (B, 3, size, size)."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (config.image_mean, config.image_std))
        grey = self.node("Unsqueeze", [pixels, self.integers(1)], "pixels/channel")
        x = self.node("Cast", [grey], "pixels/float", to=TensorProto.FLOAT)
        x = self.node("Mul", [x, self.constant("scale", 1 / (255 * std))], "scaled")
        return self.from_float32(self.node("Sub", [x, self.constant("shift", mean / std)], "normalised"))

    def embeddings(self, x: str, batch: str, encoder: ImageEncoder) -> str:
        """(B, 3, size, size) -> the CLS token and the patches of each image, with their positions."""
        name, module = "vision_tower.embeddings", encoder.vision_tower.embeddings
        config, conv = encoder.config.vision, module.patch_embeddings.projection
        C = config.hidden_size
        parameters = [self.matrix(f"{name}.projection.weight", conv.weight), self.vector(f"{name}.bias", conv.bias)]
        patch = [config.patch_size] * 2
        x = self.node("Conv", [x, *parameters], f"{name}.projection", kernel_shape=patch, strides=patch)
        patches = self.transpose(self.reshape(x, 0, C, -1), 0, 2, 1)
        shape = self.node("Concat", [batch, self.integers(1, C)], f"{name}.cls_shape", axis=0)
        cls = self.node("Expand", [self.vector(f"{name}.cls_token", module.cls_token), shape], f"{name}.cls")
        tokens = self.node("Concat", [cls, patches], f"{name}.tokens", axis=1)
        positions = self.matrix(f"{name}.position_embeddings", module.position_embeddings)
        return self.reshape(self.node("Add", [tokens, positions], name), -1, C)

    def block(self, x: str, name: str, module: Block, config: VisionConfig) -> str:
        """Attention and MLP, each a residual."""
        normed = self.layer_norm(x, f"{name}.norm1", module.norm1)
        x = self.add(x, self.self_attention(normed, f"{name}.attention", module, config))
        normed = self.layer_norm(x, f"{name}.norm2", module.norm2)
        fc1, fc2 = (f"{name}.mlp.fc1", module.mlp.fc1), (f"{name}.mlp.fc2", scaled(module.mlp.fc2, module.layer_scale2))
        return self.add(x, self.mlp(normed, fc1, self.gelu, fc2))

    def self_attention(self, x: str, name: str, block: Block, config: VisionConfig) -> str:
        module: Attention = block.attention
        C, tokens, q_scale = config.hidden_size, 1 + config.grid**2, (config.hidden_size // config.num_heads) ** -0.5
        x = self.activation(x, name, C)
        projections = (
            ("query", module.attention.query, q_scale),
            ("key", module.attention.key, 1.0),
            ("value", module.attention.value, 1.0),
        )
        q, k, v = (
            self.reshape(self.linear(x, f"{name}.{part}", layer.weight * by, layer.bias * by), -1, tokens, C)
            for part, layer, by in projections
        )
        attended = self.reshape(self.attention(q, k, v, name, config.num_heads), -1, C)
        dense = scaled(module.output.dense, block.layer_scale1)
        return self.linear(self.activation(attended, f"{name}.dense", C), f"{name}.dense", dense.weight, dense.bias)

    def projected(self, x: str, layers: nn.Sequential) -> str:
        """Linear layers with GELU between them."""
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Linear):
                name = f"multi_modal_projector.{i}"
                x = self.linear(self.activation(x, name, layer.in_features), name, layer.weight, layer.bias)
            else:
                x = self.gelu(x)
        return x

    def of_any_shape(self, x: str, batch: str, output: str) -> None:
        """`x` as the graph's output, each dim of which is dynamic.

        One committed config serves checkpoints of any size with -1, and Triton's onnxruntime backend takes -1 in a
        config only where the graph has it. So the output gets the shape that it has anyway from a sum with 0 * batch,
        which no shape inference sees through.
        """
        nothing = self.node("Mul", [batch, self.integers(0)], "nothing")
        shape = self.node("Add", [self.node("Shape", [x], "known_shape"), nothing], "shape")
        dims = ["batch", f"{output}.1", f"{output}.2"]
        self.node("Reshape", [x, shape], self.output(output, TensorProto.FLOAT, dims))


def scaled(linear: nn.Linear, scale: nn.Module) -> nn.Linear:
    """`scale(linear(x))` as one layer; `scale` is a `LayerScale` or nothing."""
    weight: Tensor = scale(linear.weight.T).T
    both = nn.Linear(linear.in_features, linear.out_features, device="meta")
    both.weight, both.bias = (nn.Parameter(p, requires_grad=False) for p in (weight, scale(linear.bias)))
    return both
