"""An exported encoder in ONNX Runtime, without Triton around it."""

from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from google.protobuf import json_format
from onnx import TensorProto, helper

from medimage_export.node_by_node import NodeByNode
from medimage_server.model_repository import read_configs
from medimage_server.onnx_settings import configured_session
from medimage_server.openvino_session import OpenVINOSession
from perf.cases.suite.baselines import Encode
from perf.cases.suite.device import Device


def check_present(device: Device) -> None:
    """Stop where PyTorch or ONNX Runtime cannot compute on the device, before minutes are spent on the rest.

    Raises:
        ClickException: says what is missing.
    """
    if device.torch == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: PyTorch finds no GPU here (torch.cuda.is_available() is False)")
    if device.provider not in onnxruntime.get_available_providers():
        raise click.ClickException(
            f"--device {device.name}: this onnxruntime has no {device.provider}; `make perf-gpu` puts onnxruntime-gpu "
            "in its place"
        )
    if device.torch == "cuda":
        onnxruntime.preload_dlls()  # as the server does
    identity = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,))] for name in "xy"),
    )
    model = helper.make_model(identity, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = onnxruntime.InferenceSession(model.SerializeToString(), providers=[device.provider]).get_providers()
    if found[0] != device.provider:  # it is built in, but its libraries are not there
        raise click.ClickException(
            f"--device {device.name}: onnxruntime could not load {device.provider}; what it lacks is in its line above"
        )


def session(repository: Path, model: str, device: Device) -> Encode:
    """Arrays in host memory to the model's first output there; with onnxruntime they are bound on the device.

    With the session and provider options of the model's config, as it is served: bf16 by OpenVINO.

    Raises:
        RuntimeError: onnxruntime computes on the CPU in place of the device.
    """
    config = json_format.MessageToDict(read_configs(repository)[0][model], preserving_proto_field_name=True)
    kind = "GPU" if device.torch == "cuda" else "CPU"
    ort = configured_session(config, repository / model / "1" / "model.onnx", kind=kind, device_id=0)
    inputs = [tensor.name for tensor in ort.get_inputs()]
    outputs = [tensor.name for tensor in ort.get_outputs()]
    if isinstance(ort, OpenVINOSession):
        return lambda *arrays: ort.run(outputs[:1], dict(zip(inputs, arrays, strict=True)))[0]
    if ort.get_providers()[0] != device.provider:  # that only warns, and a CPU's time would be taken for a GPU's
        raise RuntimeError(f"onnxruntime runs {model} without {device.provider}: install onnxruntime-gpu and its CUDA")

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
