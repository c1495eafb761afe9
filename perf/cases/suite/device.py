"""What is measured on a CPU and what on a GPU: the same code, other precisions and batches."""

from dataclasses import dataclass, replace
from typing import Literal

from medimage_export.medimageinsight.encoder_writer import Precision
from perf.tables import OURS

Dtype = Literal["float32", "bfloat16", "float16"]  # PyTorch's names
SHORT: dict[Dtype, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Device:
    """Where PyTorch and ONNX Runtime compute, and what is worth measuring there."""

    name: str  # in the results' file names
    torch: str  # PyTorch's and ONNX Runtime's name of the device
    provider: str  # ONNX Runtime's
    eager: tuple[Dtype, ...]  # of PyTorch; the first one is the baseline
    precisions: tuple[Precision, ...]  # of our exports, for speed
    accuracies: tuple[Precision, ...]  # of our exports, for accuracy
    image_batches: tuple[int, ...]
    encoder_rounds: int
    path_rounds: int
    with_compilation: bool  # by torch.compile, of the image encoder
    with_openvino: bool
    plot: str  # file name


CPU = Device(
    "cpu",
    torch="cpu",
    provider="CPUExecutionProvider",
    eager=("float32", "bfloat16"),
    precisions=("fp32", "bf16", "int8"),
    accuracies=("fp32", "fp16", "bf16", "int8"),
    image_batches=(1,),
    encoder_rounds=5,
    path_rounds=3,  # seconds each
    with_compilation=True,
    with_openvino=True,
    plot="latency.png",
)
CUDA = Device(
    "cuda",
    torch="cuda",
    provider="CUDAExecutionProvider",
    eager=("float16",),
    precisions=("fp32", "fp16"),
    accuracies=("fp32", "fp16"),
    image_batches=(1, 32),
    encoder_rounds=50,
    path_rounds=20,
    with_compilation=True,
    with_openvino=False,
    plot="latency-cuda.png",
)


def without_bf16(device: Device) -> Device:
    """What is worth measuring where no bf16 is multiplied: it would be emulated, or be fp32 under another name."""
    return replace(
        device,
        eager=tuple(dtype for dtype in device.eager if dtype != "bfloat16"),
        precisions=tuple(precision for precision in device.precisions if precision != "bf16"),
        accuracies=tuple(precision for precision in device.accuracies if precision != "bf16"),
    )


def runtime_of(precision: Precision) -> str:
    """The name of what serves an export."""
    return OURS[precision == "bf16"] + precision


DEVICES = {device.name: device for device in (CPU, CUDA)}
