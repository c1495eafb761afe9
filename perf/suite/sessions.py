"""An exported encoder in ONNX Runtime, without Triton around it."""

from pathlib import Path

import numpy as np
import onnxruntime

from medimage_export.node_by_node import NodeByNode
from perf.suite.baselines import Encode
from perf.suite.device import Device


def session(repository: Path, model: str, device: Device) -> Encode:
    """Arrays in host memory to the model's first output there; inputs and outputs are bound on the device."""
    ort = onnxruntime.InferenceSession(repository / model / "1" / "model.onnx", providers=[device.provider])
    if ort.get_providers()[0] != device.provider:  # it only warns, and a CPU's time would be taken for a GPU's
        raise RuntimeError(f"onnxruntime runs {model} without {device.provider}: install onnxruntime-gpu and its CUDA")
    inputs = [tensor.name for tensor in ort.get_inputs()]
    outputs = [tensor.name for tensor in ort.get_outputs()]

    def encode(*arrays: np.ndarray) -> np.ndarray:
        binding = ort.io_binding()
        for name, array in zip(inputs, arrays, strict=True):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device.torch, 0))
        for name in outputs:
            binding.bind_output(name, device.torch)
        ort.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    return encode


def rounded(repository: Path, model: str) -> Encode:
    """The same in float16 on a CPU, slowly, rounding where a GPU would; a session there would compute in float32."""
    path = repository / model / "1" / "model.onnx"
    graph, names = NodeByNode(path), onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = [tensor.name for tensor in names.get_inputs()]
    output = names.get_outputs()[0].name
    return lambda *arrays: graph.run([output], dict(zip(inputs, arrays, strict=True)))[0]
