"""The layers that both encoders are made of, as ONNX nodes in each precision.

    fp32  every number is float32
    fp16  weights and activations are float16; what needs more range or digits is cast to float32 in the graph itself,
          because TensorRT 11 and onnxruntime take the types as they are written
    int8  linear layers multiply 8-bit integers (per output channel for weights, per tensor with a calibrated range for
          activations) but for those that are left out, all else is float32; needs onnxruntime on a CPU
    bf16  written in float32, for OpenVINO to round; without spare columns, which are for onnxruntime's fp32 product

Shapes: T rows (tokens of the whole batch), C channels.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn.functional import pad

from medimage_export.medimageinsight.quantization import Quantization, quantize_channels
from medimage_export.onnx_writer import MICROSOFT, OnnxWriter

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Operators = Literal["onnxruntime", "standard"]  # standard: ONNX's own alone, for TensorRT

# 17 brought LayerNormalization and 20 Gelu, each one node. onnxruntime has a Gelu of its own, and up to 1.24 its CUDA
# provider has no Pad of 19 or later: windows would be padded on the CPU, between copies.
OPSETS: Mapping[Operators, int] = {"onnxruntime": 18, "standard": 20}
CACHE_PAGE = 4096  # bytes; lines that far apart fall on one set of the L1 cache of today's x86 cores
SPARE_COLUMNS = 16  # of float32: one cache line
SPARE_VALUE = 16.0  # see EncoderWriter.spare_columns


class Quantized(NamedTuple):
    """An activation in 8 bits."""

    values: str  # names of tensors
    scale: str
    zero_point: str  # the integer that stands for zero
    divisors: Tensor | None  # of its channels, by which the weights that read it must be larger


class EncoderWriter(OnnxWriter):
    """A graph of either encoder.

    Args:
        integer_layers: how the input of each layer is quantized that is to be in 8 bits, by its name; for int8.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: Precision,
        operators: Operators,
        integer_layers: Mapping[str, Quantization] | None = None,
    ) -> None:
        super().__init__(path, opset=OPSETS[operators])
        self.precision = precision
        self.operators = operators
        self.integer_layers = integer_layers or {}

    def vector(self, name: str, values: Tensor | np.ndarray) -> str:
        """A small parameter, in the type of the activations."""
        dtype = np.float16 if self.precision == "fp16" else np.float32
        return self.constant(name, np.asarray(values).astype(dtype))

    def matrix(self, name: str, values: Tensor) -> str:
        """A large parameter, in the type of the activations."""
        return self.weight(name, (values.half() if self.precision == "fp16" else values).numpy())

    def integers(self, *values: int) -> str:
        """A constant list of int64."""
        return self.constant(f"[{','.join(map(str, values))}]", np.array(values, np.int64))

    def reshape(self, x: str, *dims: int) -> str:
        return self.node("Reshape", [x, self.integers(*dims)], f"{x}/{'x'.join(map(str, dims))}")

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", [x], f"{x}/{''.join(map(str, axes))}", perm=axes)

    def to_float32(self, x: str) -> str:
        return self.node("Cast", [x], f"{x}/fp32", to=TensorProto.FLOAT) if self.precision == "fp16" else x

    def from_float32(self, x: str) -> str:
        return self.node("Cast", [x], f"{x}/fp16", to=TensorProto.FLOAT16) if self.precision == "fp16" else x

    def add(self, x: str, y: str) -> str:
        return self.node("Add", [x, y], f"{y}/added")

    def layer_norm(self, x: str, name: str, norm: nn.LayerNorm) -> str:
        """Over the last axis; its statistics are float32 in every precision, which is the operator's default."""
        parameters = [self.vector(f"{name}.weight", norm.weight), self.vector(f"{name}.bias", norm.bias)]
        return self.node("LayerNormalization", [x, *parameters], name, axis=-1, epsilon=norm.eps)

    def gelu(self, x: str) -> str:
        return self.node("Gelu", [x], f"{x}/gelu", domain=MICROSOFT if self.operators == "onnxruntime" else "")

    def quantized(self, x: str, layer: str) -> Quantized:
        """`x` in 8 bits, as the input of `layer`."""
        found = self.integer_layers[layer]
        if found.divisors is not None:
            factors = self.vector(f"{layer}.input_factors", 1 / found.divisors)
            x = self.node("Mul", [x, factors], f"{x}/divided")
        quantized = Quantized(
            f"{x}/int8",
            self.constant(f"{layer}.input_scale", np.array(found.range.scale)),
            self.constant(f"{layer}.input_zero_point", np.array(found.range.zero_point)),
            found.divisors,
        )
        self.node("QuantizeLinear", [x, quantized.scale, quantized.zero_point], quantized.values)
        return quantized

    def activation(self, x: str, layer: str, width: int) -> str | Quantized:
        """(T, width) as the linear layers that read it take it: its 8 bits, or as wide as is fast."""
        if layer in self.integer_layers:
            return self.quantized(x, layer)
        if not (spare := self.spare_columns(width)):
            return x
        value = self.constant("spare_value", np.array(SPARE_VALUE, np.float32))
        return self.node("Pad", [x, self.integers(0, 0, 0, spare), value], f"{x}/wide")

    def linear(self, x: str | Quantized, name: str, weight: Tensor, bias: Tensor | None) -> str:
        """(T, in) as `activation` gives it -> (T, out); `weight` (out, in) as PyTorch has it."""
        if isinstance(x, Quantized):
            return self._integer_product(x, name, weight, bias)
        if spare := self.spare_columns(weight.shape[1]):
            wide = pad(weight, (0, spare))
            if bias is not None:  # in the first spare column
                wide[:, weight.shape[1]] = bias / SPARE_VALUE
            return self.node("MatMul", [x, self.matrix(f"{name}.weight", wide.T)], f"{name}/out")
        inputs = [x, self.matrix(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.vector(f"{name}.bias", bias))
        return self.node("Gemm", inputs, f"{name}/out", transB=1)

    def mlp(
        self, x: str, first: tuple[str, nn.Linear], act: Callable[[str], str], second: tuple[str, nn.Linear]
    ) -> str:
        """Two linear layers, by name and module, and between them `act`, of which act(SPARE_VALUE) must be itself."""
        (name1, fc1), (name2, fc2) = first, second
        # from the first product, which is cheaper than a Pad
        spare = 0 if name2 in self.integer_layers else self.spare_columns(fc2.in_features)
        weight, bias = pad(fc1.weight, (0, 0, 0, spare)), pad(fc1.bias, (0, spare), value=SPARE_VALUE)
        hidden = act(self.linear(self.activation(x, name1, fc1.in_features), name1, weight, bias))
        return self.linear(self.activation(hidden, name2, fc2.in_features + spare), name2, fc2.weight, fc2.bias)

    def attention(self, q: str, k: str, v: str, name: str, heads: int, key_mask: str = "") -> str:
        """q, already scaled, k and v, each (B, tokens, C) -> (B, tokens of q, C).

        Args:
            key_mask: hides keys. int32 (B, tokens), 0 for a hidden one; with standard operators float32
                (B, 1, 1, tokens), to be added to the scores.
        """
        if self.operators == "onnxruntime":
            inputs = [q, k, v, "", key_mask] if key_mask else [q, k, v]
            return self.node(
                "MultiHeadAttention", inputs, f"{name}/attended", domain=MICROSOFT, num_heads=heads, scale=1.0
            )
        q, k, v = (self.reshape(x, 0, 0, heads, -1) for x in (q, k, v))
        q, k, v = self.transpose(q, 0, 2, 1, 3), self.transpose(k, 0, 2, 3, 1), self.transpose(v, 0, 2, 1, 3)
        scores = self.node("MatMul", [q, k], f"{name}/scores")
        if key_mask:
            scores = self.node("Add", [self.to_float32(scores), key_mask], f"{name}/masked_scores")
        weights = self.node("Softmax", [scores], f"{name}/weights", axis=-1)
        mixed = self.node("MatMul", [self.from_float32(weights) if key_mask else weights, v], f"{name}/mixed")
        return self.reshape(self.transpose(mixed, 0, 2, 1, 3), 0, 0, -1)

    def unit_vectors(self, x: str, norm: nn.LayerNorm, projection: Tensor, output: str) -> None:
        """(B, C) float32 -> the graph's output `output` (B, E) float32, in float32 throughout: a few numbers a row."""
        parameters = [self.constant(f"{output}.norm.{name}", p.numpy()) for name, p in norm.named_parameters()]
        x = self.node("LayerNormalization", [x, *parameters], f"{output}/normed", axis=-1, epsilon=norm.eps)
        x = self.node("MatMul", [x, self.weight(f"{output}.projection", projection.numpy())], f"{output}/projected")
        length = self.node("ReduceL2", [x, self.integers(-1)], f"{output}/length", keepdims=1)
        self.node("Div", [x, length], self.output(output, TensorProto.FLOAT, ["batch", projection.shape[1]]))

    def scaling_factor(self, logit_scale: Tensor, like: str) -> None:
        """The graph's output scaling_factor (B, 1), one for each row of `like`."""
        batch = self.node("Shape", [like], "batch_size", start=0, end=1)
        shape = self.node("Concat", [batch, self.integers(1)], "scaling_factor_shape", axis=0)
        value = self.constant("logit_scale", logit_scale.numpy().reshape(1, 1))
        self.node("Expand", [value, shape], self.output("scaling_factor", TensorProto.FLOAT, ["batch", 1]))

    def spare_columns(self, width: int) -> int:
        """How many columns of SPARE_VALUE keep the rows of a matrix from lying whole pages apart.

        onnxruntime's fp32 product reads twelve rows at a time. Where they lie a multiple of CACHE_PAGE apart they push
        each other out of the L1 cache: 80 GFLOP/s a core instead of 110, measured at 900 x 1024 x 1024 (Cascade Lake).

        The padding carries the bias, which then needs no node of its own:

                                           ┌──────────────────┐
                                           │                  │
            ┌─────────────────┬─────────┐  │     weight.T     │ in
            │        x        │ 16 … 16 │  │                  │
            └─────────────────┴─────────┘  ├──────────────────┤
                    in           spare     │    bias / 16     │ 1
                                           │        0         │ spare - 1
                                           └──────────────────┘

        The product is x @ weight.T + 16 * bias / 16, and to divide by 16 is exact. Between the layers of an MLP the
        first one gives the columns of 16 itself, from weights of 0 and a bias of 16: GELU(16) and QuickGELU(16) are 16
        in float32.
        """
        aliasing = width * np.dtype(np.float32).itemsize % CACHE_PAGE == 0
        return SPARE_COLUMNS if aliasing and self.precision != "fp16" and self.operators == "onnxruntime" else 0

    def _integer_product(self, x: Quantized, name: str, weight: Tensor, bias: Tensor | None) -> str:
        integers, scales = quantize_channels(weight if x.divisors is None else weight * x.divisors)
        inputs = [
            x.values,
            self.weight(f"{name}.weight", integers.T.numpy()),
            x.scale,
            self.constant(f"{name}.weight_scale", scales.numpy()),
            x.zero_point,
            # neither left out nor shared: onnxruntime would then not see to CPUs without VNNI
            self.constant(f"{name}.weight_zero_point", np.array(0, np.int8)),
        ]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias.numpy()))
        return self.node("MatMulIntegerToFloat", inputs, f"{name}/out", domain=MICROSOFT)
