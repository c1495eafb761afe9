"""The floor: the arithmetic of an encoder, as published, at the machine's own matrix rate.

The rate is measured with matrix products at the shapes of the image encoder's MLPs, where most of the work is, and the
best of them counts.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from perf.cases.suite.device import Device, Precision

# 2 operations per multiply-add, one image of 480 x 480: the count that is published. torch.utils.flop_counter finds 625
# in the PyTorch module. Our own graph does 581, because it pads windows after qkv: its own floor is 6 % lower.
IMAGE_GFLOP = 615.0
# one text of 10 tokens, by torch.utils.flop_counter; 31.4 at the full 77, which the baselines compute
TEXT_GFLOP = 4.04
# tokens x width x MLP width of the four stages
SHAPES = ((14400, 256, 1024), (3600, 512, 2048), (900, 1024, 4096), (225, 2048, 8192))
MIN_SECONDS = 0.5


def matrix_rates(device: Device, shapes: Sequence[tuple[int, int, int]] = ()) -> dict[str, float]:
    """Best rate over the shapes, or SHAPES, of each precision, in GFLOP/s (for int8, 10^9 operations a second)."""
    images = max(device.image_batches)
    products = [(images * tokens, width, mlp_width) for tokens, width, mlp_width in shapes or SHAPES]
    return {
        precision: max(_rate(product, shape) for shape in products for product in _products(shape, precision, device))
        for precision in device.precisions
    }


def _rate(product: Callable[[], object], shape: tuple[int, int, int]) -> float:
    """GFLOP/s of the fastest repetition."""
    product()
    best, ends = float("inf"), time.perf_counter() + MIN_SECONDS
    while time.perf_counter() < ends:
        started = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - started)
    return 2 * shape[0] * shape[1] * shape[2] / best / 1e9


def _products(shape: tuple[int, int, int], precision: Precision, device: Device) -> Iterator[Callable[[], object]]:
    """The product by each library that could run it at this precision."""
    if precision != "int8":
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        yield _torch_product(shape, dtype, device.torch)
    if device.torch == "cpu" and precision in ("fp32", "int8"):  # the others ONNX Runtime computes in fp32 there
        yield _onnx_product(shape, precision)


def _torch_product(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> Callable[[], object]:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)

    def product() -> None:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    return product


def _onnx_product(shape: tuple[int, int, int], precision: Precision) -> Callable[[], object]:
    """MatMul or MatMulInteger with constant weights, which ONNX Runtime packs once."""
    rows, inner, columns = shape
    random = np.random.default_rng(0)
    if precision == "fp32":
        operator, left_type, result_type = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT
        left = random.standard_normal((rows, inner), dtype=np.float32)
        right = random.standard_normal((inner, columns), dtype=np.float32)
    else:
        operator, left_type, result_type = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
        left = random.integers(0, 256, (rows, inner), dtype=np.uint8)
        right = random.integers(-64, 64, (inner, columns), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["result"])],
        "product",
        [helper.make_tensor_value_info("left", left_type, (rows, inner))],
        [helper.make_tensor_value_info("result", result_type, (rows, columns))],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})
