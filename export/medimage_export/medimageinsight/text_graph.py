"""The text encoder as an ONNX graph, written node by node: the numbers of `text_transformer.TextTransformer`.

Most texts are far shorter than the context of 77 tokens, and only the state at the end of a text is read. So:

- With onnxruntime's operators the graph first cuts the batch to its longest text. What is cut off is hidden as a key in
  every layer and read by nobody, so the answer is the same. For TensorRT, whose shapes are fixed, it stays.
- The last layer computes keys and values of all tokens, and everything else for the ends of the texts alone.
- Sums of the residual stream and LayerNorm are float32 in every precision: the norm's eps of 1e-12 is 0 in float16.

Shapes: B texts, T tokens, D width; tokens are a matrix (B * T, D) between attentions.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto
from torch import nn

from medimage_export.medimageinsight.config import TextConfig
from medimage_export.medimageinsight.encoder_writer import EncoderWriter, Operators, Precision
from medimage_export.medimageinsight.quantization import Quantization
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.medimageinsight.text_transformer import (
    MASKED_SCORE,
    ResidualAttentionBlock,
    SelfAttention,
    TextTransformer,
)


def write_text_encoder(
    model: UniCL,
    path: Path,
    *,
    precision: Precision,
    operators: Operators = "onnxruntime",
    integer_layers: Mapping[str, Quantization] | None = None,
) -> None:
    """input_ids, attention_mask int64 (B, T) -> text_features fp32 (B, E) unit vectors, scaling_factor fp32 (B, 1).

    Weights go to `<path>.data`; `integer_layers` are those of int8, see `int8`.
    """
    encoder = model.lang_encoder
    with TextEncoderWriter(path, precision=precision, operators=operators, integer_layers=integer_layers) as graph:
        x = graph.embedded_tokens(encoder, model.config.text)
        for i, block in enumerate(encoder.resblocks):
            x = graph.block(x, f"resblocks.{i}", block, ends_alone=i == len(encoder.resblocks) - 1)
        graph.unit_vectors(x, encoder.ln_final, model.lang_projection, "text_features")
        graph.scaling_factor(model.logit_scale, "input_ids")


class TextEncoderWriter(EncoderWriter):
    """The layers of the text transformer; they name their nodes as the checkpoint does."""

    def embedded_tokens(self, encoder: TextTransformer, config: TextConfig) -> str:
        """The graph's inputs -> tokens with their positions (B * T, D) float32."""
        shape = ["batch", config.context_length]
        ids, mask = (self.input(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask"))
        # The first end-of-text token, which has the highest id. Earlier ones are made higher still: runtimes differ in
        # which of equals ArgMax gives. int32, since onnxruntime has no int64 ArgMax.
        places = self.constant("places", np.arange(config.context_length, dtype=np.int64))
        ranks = self.node(
            "Sub", [self.node("Mul", [ids, self.integers(config.context_length)], "ids/spread"), places], "ranks"
        )
        ranks = self.node("Cast", [ranks], "ranks/int32", to=TensorProto.INT32)
        self.ends = self.node("ArgMax", [ranks], "ends", axis=1, keepdims=1)  # (B, 1)
        positions = self.matrix("positional_embedding", encoder.positional_embedding)
        if self.operators == "onnxruntime":
            ids, mask, positions = self._cut_to_longest(ids, mask, positions, places)
        self.tokens_shape = self.node(  # B, T, D
            "Concat",
            [self.node("Shape", [ids], "ids/shape"), self.integers(config.width)],
            "tokens_shape",
            axis=0,
        )
        self.key_mask = self._key_mask(mask)
        table = self.matrix("token_embedding.weight", encoder.token_embedding.weight)
        x = self.node("Add", [self.node("Gather", [table, ids], "embedded"), positions], "positioned")
        return self.reshape(self.to_float32(x), -1, config.width)

    def _cut_to_longest(self, ids: str, mask: str, positions: str, places: str) -> tuple[str, str, str]:
        """Without the tokens that are, in all texts of the batch, behind the end and hidden by the mask."""
        shown = self.node("Mul", [mask, places], "places_shown")
        last = [self.node("ReduceMax", [x], f"{x}/last", keepdims=1) for x in (shown, self.ends)]  # (1, 1)
        last = self.node("Reshape", [self.node("Max", last, "last"), self.integers(1)], "last/1")
        length = self.node("Add", [last, self.integers(1)], "length")
        start = self.integers(0)
        ids, mask = (self.node("Slice", [x, start, length, self.integers(1)], f"{x}/cut") for x in (ids, mask))
        return ids, mask, self.node("Slice", [positions, start, length, start], "positions/cut")

    def _key_mask(self, mask: str) -> str:
        """As `attention` takes it."""
        if self.operators == "onnxruntime":
            return self.node("Cast", [mask], "key_mask", to=TensorProto.INT32)
        shown = self.node("Cast", [mask], "shown", to=TensorProto.FLOAT)
        hidden = self.node("Sub", [self.constant("1", np.array(1, np.float32)), shown], "hidden")
        scores = self.node(
            "Mul", [hidden, self.constant("masked_score", np.array(MASKED_SCORE, np.float32))], "key_mask"
        )
        return self.node("Unsqueeze", [scores, self.integers(1, 2)], "key_mask/4d")  # (B, 1, 1, T)

    def block(self, x: str, name: str, module: ResidualAttentionBlock, *, ends_alone: bool) -> str:
        """Attention and MLP, each a residual; tokens -> tokens, or with `ends_alone` the ends of the texts (B, D)."""
        normed = self.norm(x, f"{name}.ln_1", module.ln_1)
        if ends_alone:
            x = self.at_ends(x)
        x = self.add(x, self.self_attention(normed, f"{name}.attn", module.attn, ends_alone=ends_alone))
        normed, mlp = self.norm(x, f"{name}.ln_2", module.ln_2), module.mlp
        hidden = self.mlp(normed, (f"{name}.mlp.c_fc", mlp.c_fc), self.quick_gelu, (f"{name}.mlp.c_proj", mlp.c_proj))
        return self.add(x, self.to_float32(hidden))

    def self_attention(self, normed: str, name: str, module: SelfAttention, *, ends_alone: bool) -> str:
        """Of all tokens, or of the ends of the texts alone, to all tokens; float32 as the residual stream."""
        D, heads = module.out_proj.in_features, module.heads
        scale = (D // heads) ** -0.5
        tokens = self.activation(normed, name, D)
        queries = self.activation(self.at_ends(normed), name, D) if ends_alone else tokens
        (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias) = (
            parameter.split(D) for parameter in (module.in_proj_weight, module.in_proj_bias)
        )
        q = self.linear(queries, f"{name}.q", q_weight * scale, q_bias * scale)
        k = self.linear(tokens, f"{name}.k", k_weight, k_bias)
        v = self.linear(tokens, f"{name}.v", v_weight, v_bias)
        q = self.reshape(q, -1, 1, D) if ends_alone else self.by_text(q)
        attended = self.attention(q, self.by_text(k), self.by_text(v), name, heads, self.key_mask)
        attended = self.activation(self.reshape(attended, -1, D), f"{name}.out_proj", D)
        return self.to_float32(self.linear(attended, f"{name}.out_proj", module.out_proj.weight, module.out_proj.bias))

    def norm(self, x: str, name: str, module: nn.LayerNorm) -> str:
        """LayerNorm in float32, its result in the type of the activations."""
        parameters = [self.constant(f"{name}.{key}", value.numpy()) for key, value in module.named_parameters()]
        return self.from_float32(self.node("LayerNormalization", [x, *parameters], name, axis=-1, epsilon=module.eps))

    def quick_gelu(self, x: str) -> str:
        """x * sigmoid(1.702 x), which onnxruntime makes one node."""
        factor = self.vector("quick_gelu", np.array(1.702))
        gate = self.node("Sigmoid", [self.node("Mul", [x, factor], f"{x}/scaled")], f"{x}/gate")
        return self.node("Mul", [x, gate], f"{x}/gelu")

    def by_text(self, x: str) -> str:
        """(B * T, D) -> (B, T, D)."""
        return self.node("Reshape", [x, self.tokens_shape], f"{x}/by_text")

    def at_ends(self, x: str) -> str:
        """(B * T, D) -> (B, D), the rows of the end-of-text tokens."""
        return self.node("GatherND", [self.by_text(x), self.ends], f"{x}/ends", batch_dims=1)
