"""OpenVINO for the CPU accelerator of that name in a model config: bf16 where the CPU multiplies bf16, or fp32.

Triton's native onnxruntime backend, where it was built with OpenVINO, takes the same accelerator; it reads no
parameters, and OpenVINO then chooses bf16 itself on CPUs that have it. Here OpenVINO is asked without onnxruntime in
between, because its plug-in for that (onnxruntime-ep-openvino 1.8) offers no device on CPUs other than Intel's.

Export has the same rules in `medimage_export.openvino_session`, so that it checks what is served.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

PRECISIONS = {"bf16": "bf16", "fp32": "f32"}  # the parameter `precision` -> OpenVINO's name
# Linux' names. Without them OpenVINO emulates bf16 where there is AVX-512, and elsewhere computes fp32 without a word.
# AVX-NE-CONVERT, with which it takes bf16, too, only converts: the products are of fp32.
BF16_INSTRUCTIONS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
ONNX_TYPES = {"u8": "tensor(uint8)", "i32": "tensor(int32)", "i64": "tensor(int64)", "f32": "tensor(float)"}


class OpenVINOMissing(Exception):
    """OpenVINO cannot be had here in the precision asked for; str() says what is missing."""


class Node(NamedTuple):
    """An input or output as onnxruntime's sessions describe theirs; -1 stands for any length."""

    name: str
    type: str
    shape: list[int]


class OpenVINOSession:
    """An ONNX file in OpenVINO on the CPU, with what is used of onnxruntime's InferenceSession.

    Args:
        precision: a key of PRECISIONS; None leaves the choice to OpenVINO.
        threads: 0 for one on each core.

    Raises:
        OpenVINOMissing: this machine has no OpenVINO, or no instructions for the precision.
        RuntimeError: OpenVINO cannot load the file.
    """

    def __init__(self, path: Path, precision: str | None, *, threads: int = 0) -> None:
        if precision == "bf16" and not has_bf16():
            raise OpenVINOMissing(f"this CPU has neither {' nor '.join(BF16_INSTRUCTIONS.values())}")
        # No CPU_DENORMALS_OPTIMIZATION: it changes the arithmetic of the calling thread for good. onnxruntime needs the
        # like for blank images; here they take no longer without it.
        properties: dict[str, object] = {"INFERENCE_NUM_THREADS": threads}
        if precision is not None:
            properties["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
        core = load_openvino().Core()
        try:
            self._model = core.compile_model(str(path), "CPU", properties)
        except RuntimeError as error:  # the lines before the last one are places in OpenVINO's sources
            raise RuntimeError(f"OpenVINO: {str(error).strip().splitlines()[-1]}") from error
        self.precision: str = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision is not None and self.precision != PRECISIONS[precision]:  # a hint is no more than that
            raise OpenVINOMissing(f"OpenVINO computes {self.precision} here instead of {precision}")
        self._request = self._model.create_infer_request()

    def run(self, names: Sequence[str], feed: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """The outputs of one batch, in the order of their names.

        An index outside a table is no error, as it is in onnxruntime: OpenVINO takes zeros for what is not there.

        Raises:
            RuntimeError: OpenVINO cannot take the batch.
        """
        outputs = self._request.infer(dict(feed))
        return [outputs[name] for name in names]

    def get_inputs(self) -> list[Node]:
        return [_node(tensor) for tensor in self._model.inputs]

    def get_outputs(self) -> list[Node]:
        return [_node(tensor) for tensor in self._model.outputs]


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16; false where Linux does not say."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not BF16_INSTRUCTIONS.keys().isdisjoint(flags)


def load_openvino() -> Any:
    """The package, without the telemetry that pip installs beside it.

    Raises:
        OpenVINOMissing: it is not installed, or cannot be loaded.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # so that importing it fails
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:  # OSError: the package is here, a library that it needs is not
        raise OpenVINOMissing("the package openvino is missing (pip install 'medimage-triton[openvino]')") from error


def _node(tensor: Any) -> Node:
    kind = tensor.element_type.get_type_name()
    shape = [length.get_length() if length.is_static else -1 for length in tensor.partial_shape]
    return Node(tensor.any_name, ONNX_TYPES.get(kind, kind), shape)
