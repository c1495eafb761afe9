"""The text decoder as an ONNX graph for cached, batched generation, written tensor by tensor.

One node of onnxruntime's GroupQueryAttention per layer does rotary embedding, KV cache and attention. Past and present
keys may be the same buffer, which is how the server keeps one buffer per slot. The graph is built by hand because a
trace of PyTorch has no such node, and onnxruntime-genai's builder (0.18) drops Llama's linear RoPE scaling and Phi-3's
sliding window, and refuses longrope with an unchanged context.

Inputs (B rows, S new tokens, H hidden size, L the length of the KV buffers):

    inputs_embeds          T (B, S, H)
    position_ids           int64 (B, S)        row of the rope tables for each token, see `rope_tables`
    seqlens_k              int32 (B)           a row's tokens so far and new, minus one
    total_sequence_length  int32 ()            the most tokens of any row
    past_key_values.{i}.key, .value            T (B, kv_heads, L, head_dim)

Outputs: logits float32 (B, vocabulary) after each row's last valid token, and present.{i}.key, .value like the past.
T is float16 with precision fp16, else float32.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor

from medimage_export.cxrreportgen.checkpoint import DECODER, Tensors
from medimage_export.cxrreportgen.config import DecoderConfig
from medimage_export.cxrreportgen.int4 import BLOCK_SIZE, HEAD_BITS, WEIGHT_BITS, quantize_blockwise
from medimage_export.onnx_writer import MICROSOFT, OnnxWriter

Precision = Literal["fp32", "fp16", "int4"]
OPSET = 23  # brought RMSNormalization
INT8_ACTIVATIONS = 4  # accuracy_level of MatMulNBits: products of 8-bit integers, which CPUs have instructions for


def write_decoder(
    config: DecoderConfig,
    tensors: Tensors,
    path: Path,
    precision: Precision,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Write `path`, with the weights beside it in `<path>.data`; no more than one weight is in memory at a time."""
    with DecoderWriter(path, precision) as graph:
        _build(graph, config, tensors, progress)


def rope_tables(config: DecoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, (rows, head_dim / 2) float32; a token's row is its position.

    With longrope there are twice `max_length` rows: those of the long factors follow those of the short ones.
    """
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = (1.0 / config.rope_theta**pairs).astype(np.float32)
    positions = np.arange(config.max_length, dtype=np.float32)[:, None]
    if config.rope_type != "longrope":
        factor = config.rope_factor if config.rope_type == "linear" else 1.0
        angles = positions * (frequencies / np.float32(factor))
        return np.cos(angles), np.sin(angles)
    angles = np.concatenate(
        [
            positions * (frequencies / np.array(factors, np.float32))
            for factors in (config.short_factor, config.long_factor)
        ]
    )
    original = config.original_max_position_embeddings
    scale = config.max_position_embeddings / original
    magnitude = np.float32(np.sqrt(1 + np.log(scale) / np.log(original)) if scale > 1 else 1.0)
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


class DecoderWriter(OnnxWriter):
    """The decoder's linear layers in each precision, and its floats in the graph's type."""

    def __init__(self, path: Path, precision: Precision) -> None:
        super().__init__(path, opset=OPSET)
        self.precision = precision
        self.type = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT

    def parameter(self, name: str, values: Tensor | np.ndarray) -> str:
        """A weight, in the graph's type."""
        return self.weight(name, np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(self.type)))

    def linear(self, x: str, name: str, weight: Tensor, *, bits: int = WEIGHT_BITS) -> str:
        """x @ weight.T, `weight` (out, in) as PyTorch has it."""
        if self.precision != "int4":
            return self.node("MatMul", [x, self.parameter(f"{name}.weight", weight.T)], f"{name}.out")
        packed, scales = quantize_blockwise(weight, bits=bits, block_size=BLOCK_SIZE)
        return self.node(
            "MatMulNBits",
            [x, self.weight(f"{name}.weight", packed.numpy()), self.weight(f"{name}.scales", scales.numpy())],
            f"{name}.out",
            domain=MICROSOFT,
            N=weight.shape[0],
            K=weight.shape[1],
            bits=bits,
            block_size=BLOCK_SIZE,
            accuracy_level=INT8_ACTIVATIONS,
        )


def _build(graph: DecoderWriter, config: DecoderConfig, tensors: Tensors, progress: Callable[[str], None]) -> None:
    T, H, kv_shape = graph.type, config.hidden_size, ["batch", config.num_kv_heads, "max_length", config.head_dim]
    hidden = graph.input("inputs_embeds", T, ["batch", "sequence", H])
    positions = graph.input("position_ids", TensorProto.INT64, ["batch", "sequence"])
    seqlens = graph.input("seqlens_k", TensorProto.INT32, ["batch"])
    total = graph.input("total_sequence_length", TensorProto.INT32, [])
    cos, sin = (graph.parameter(name, table) for name, table in zip(("cos", "sin"), rope_tables(config), strict=True))

    graph.output("logits", TensorProto.FLOAT, ["batch", config.vocab_size])

    def read(name: str) -> Tensor:
        return tensors.read(DECODER + name).float()

    def norm_weight(name: str) -> str:
        return graph.parameter(name, read(name))

    normed = graph.node(
        "RMSNormalization",
        [hidden, norm_weight("model.layers.0.input_layernorm.weight")],
        "normed.0",
        epsilon=config.rms_norm_eps,
    )
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        progress(f"layer {i + 1} of {config.num_layers}")
        qkv = graph.linear(normed, f"{layer}qkv_proj", _fused(read, f"{layer}self_attn.", ("q", "k", "v"), config))
        past, present = f"past_key_values.{i}.", f"present.{i}."
        attention = graph.node(
            "GroupQueryAttention",
            [
                qkv, "", "",
                graph.input(f"{past}key", T, kv_shape), graph.input(f"{past}value", T, kv_shape),
                seqlens, total, cos, sin, positions,
            ],
            [
                f"{layer}attention",
                graph.output(f"{present}key", T, kv_shape), graph.output(f"{present}value", T, kv_shape),
            ],
            domain=MICROSOFT,
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            do_rotary=1,
            local_window_size=config.sliding_window or -1,  # both count the token itself
        )  # fmt: skip
        attended = graph.linear(attention, f"{layer}o_proj", read(f"{layer}self_attn.o_proj.weight"))
        normed, hidden = _add_and_norm(
            graph, attended, hidden, norm_weight(f"{layer}post_attention_layernorm.weight"), f"{layer}mlp_in", config
        )
        gate_up = graph.linear(normed, f"{layer}gate_up_proj", _fused(read, f"{layer}mlp.", ("gate", "up"), config))
        gate, up = f"{layer}gate", f"{layer}up"
        graph.node("Split", [gate_up], [gate, up], axis=-1, num_outputs=2)
        sigmoid = graph.node("Sigmoid", [gate], f"{layer}sigmoid")
        silu = graph.node("Mul", [gate, sigmoid], f"{layer}silu")
        gated = graph.node("Mul", [silu, up], f"{layer}gated")
        mlp = graph.linear(gated, f"{layer}down_proj", read(f"{layer}mlp.down_proj.weight"))
        if i + 1 < config.num_layers:
            following = f"model.layers.{i + 1}.input_layernorm.weight"
            normed, hidden = _add_and_norm(graph, mlp, hidden, norm_weight(following), f"{layer}out", config)
        else:
            hidden = graph.node("Add", [mlp, hidden], f"{layer}out")

    last = _last_tokens(graph, hidden, seqlens)
    normed = graph.node(
        "RMSNormalization", [last, norm_weight("model.norm.weight")], "normed", epsilon=config.rms_norm_eps
    )
    progress("head")
    logits = graph.linear(normed, "lm_head", read("lm_head.weight"), bits=HEAD_BITS)
    graph.node("Cast", [logits], "logits", to=TensorProto.FLOAT)


def _fused(read: Callable[[str], Tensor], prefix: str, parts: tuple[str, ...], config: DecoderConfig) -> Tensor:
    """One matrix for what the same input is multiplied with; Phi-3's checkpoints have it fused in this order."""
    if config.model_type == "phi3":
        return read(f"{prefix}{''.join(parts) if len(parts) == 3 else '_'.join(parts)}_proj.weight")
    return torch.cat([read(f"{prefix}{part}_proj.weight") for part in parts])


def _add_and_norm(
    graph: DecoderWriter, x: str, skip: str, weight: str, name: str, config: DecoderConfig
) -> tuple[str, str]:
    """RMS norm of x + skip, and x + skip."""
    normed, added = f"{name}.normed", f"{name}.sum"
    graph.node(
        "SkipSimplifiedLayerNormalization",
        [x, skip, weight],
        [normed, "", "", added],
        domain=MICROSOFT,
        epsilon=config.rms_norm_eps,
    )
    return normed, added


def _last_tokens(graph: DecoderWriter, hidden: str, seqlens: str) -> str:
    """(B, S, H) -> (B, H): the last valid token of each row.

    That is the last one, but for a first prefill with padding on the right, where it is token seqlens_k. Where there is
    a past, seqlens_k is beyond S - 1.
    """
    axis = graph.constant("sequence_axis", np.array(1, np.int64))
    one = graph.constant("one", np.array(1, np.int64))
    shape = graph.node("Shape", [hidden], "hidden_shape")
    length = graph.node("Gather", [shape, axis], "sequence_length", axis=0)
    end = graph.node("Sub", [length, one], "last_index")
    valid = graph.node("Cast", [seqlens], "seqlens_int64", to=TensorProto.INT64)
    index = graph.node("Min", [valid, end], "last_valid")
    column = graph.node("Unsqueeze", [index, graph.constant("axis_1", np.array([1], np.int64))], "last_valid_column")
    return graph.node("GatherND", [hidden, column], "last_hidden", batch_dims=1)
