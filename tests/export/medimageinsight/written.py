"""What an encoder's ONNX file answers, and what it holds."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from medimage_export.medimageinsight.calibration import observe, quantize
from medimage_export.medimageinsight.davit import DaViT
from medimage_export.medimageinsight.integer_layers import integer_layers
from medimage_export.medimageinsight.quantization import Quantization
from medimage_export.medimageinsight.text_transformer import TextTransformer
from medimage_export.parity import Feed, cpu_session

PRODUCTS = ("Conv", "Gemm", "MatMul", "MatMulIntegerToFloat")


def run(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs, by onnxruntime on the CPU."""
    return cpu_session(path).run(None, feed)


def run_rows_alone(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of each row of a batch by itself."""
    session = cpu_session(path)
    rows = range(len(next(iter(feed.values()))))
    return np.concatenate([session.run(None, {name: x[i : i + 1] for name, x in feed.items()})[0] for i in rows])


def pytorch(reference: nn.Module, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the PyTorch modules for the same feed."""
    with torch.inference_mode():
        return [output.numpy() for output in reference(*(torch.from_numpy(array) for array in feed.values()))]


def constants(path: Path) -> dict[str, np.ndarray]:
    """Every number in the file, weights included."""
    graph = onnx.load(path).graph
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                found[f"{node.name} {attribute.name}"] = numpy_helper.to_array(attribute.t)
    return found


def weights_of_products(path: Path) -> Iterator[np.ndarray]:
    """The weight of each convolution and of each matrix product that has one."""
    found = constants(path)
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type in PRODUCTS and node.input[1] in found:
            yield found[node.input[1]]


def beyond_float16(path: Path) -> list[str]:
    """Names of floating-point constants that float16 has no finite number for."""
    with np.errstate(over="ignore"):
        return [
            name
            for name, array in constants(path).items()
            if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float16)).all()
        ]


def all_in_8_bits(
    encoder: DaViT | TextTransformer, reference: nn.Module, feeds: Sequence[Feed]
) -> dict[str, Quantization]:
    """How each layer of an encoder is quantized; migrates its outliers."""
    layers = list(integer_layers(encoder))
    seen, _ = observe(layers, reference, feeds)
    return {layer.name: quantize(layer, seen[layer.name]) for layer in layers}
