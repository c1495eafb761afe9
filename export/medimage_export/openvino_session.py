"""OpenVINO on the CPU, which computes a graph of fp32 in bf16: what serves `--precision bf16`, and so what is checked.

The server has the same rules in `medimage_server.openvino_session`.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medimage_export.cpu import BF16_INSTRUCTIONS, instructions
from medimage_export.errors import OpenVINOMissing


def check_bf16() -> str:
    """The version of the OpenVINO that computes bf16 here.

    Raises:
        OpenVINOMissing: the CPU has no instructions for it, or the package is not installed.
    """
    if BF16_INSTRUCTIONS.keys().isdisjoint(instructions()):
        raise OpenVINOMissing(f"bf16 needs {' or '.join(BF16_INSTRUCTIONS.values())}, which this CPU does not have")
    return str(load_openvino().__version__)


def load_openvino() -> Any:
    """The package, without the telemetry that pip installs beside it.

    Raises:
        OpenVINOMissing: it is not installed, or cannot be loaded.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # so that importing it fails
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as exc:  # OSError: the package is here, a library that it needs is not
        raise OpenVINOMissing(
            "bf16 needs the package openvino, which is missing (pip install 'medimage-triton[openvino]')"
        ) from exc


class OpenVINOSession:
    """An ONNX file in OpenVINO, opened as the server opens it.

    Args:
        precision: OpenVINO's name of it, bf16 or f32.

    Raises:
        OpenVINOMissing: the package is not installed, or OpenVINO does not compute the precision on this CPU.
    """

    def __init__(self, path: Path, precision: str = "bf16") -> None:
        model = load_openvino().Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        found = model.get_property("INFERENCE_PRECISION_HINT").to_string()
        if found != precision:  # a hint is no more than that
            raise OpenVINOMissing(f"OpenVINO computes {found} on this CPU instead of {precision}")
        self.request = model.create_infer_request()

    def run(self, output_names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of one batch, in the order of their names."""
        outputs = self.request.infer(dict(feed))
        return [outputs[name] for name in output_names]
