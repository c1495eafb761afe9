"""Serve an ONNX model the way Triton's native onnxruntime backend does, for a Triton that has none.

`backends/onnxruntime/model.py` hands in the model's config and the tensors of one execute call. Tensors come and go in
host memory, so there is nothing that IO binding would save: onnxruntime copies them to a GPU and back itself.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from medimage_server import cuda
from medimage_server.errors import InferenceFailed, InvalidInput
from medimage_server.onnx_settings import ModelLoadError, configured_session, rows_at_once
from medimage_server.openvino_session import OpenVINOSession

log = logging.getLogger(__name__)

# Without bfloat16: NumPy has no such type, and so neither Triton's Python API nor onnxruntime has an array of it.
TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}

Tensors = dict[str, npt.NDArray[Any]]
Answer = Tensors | InvalidInput | InferenceFailed


class Signature(NamedTuple):
    """Name, Triton data type and full shape of a tensor; -1 stands for any length."""

    name: str
    data_type: str
    shape: tuple[int, ...]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether an array of that shape fits."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )


class OnnxModel:
    """One instance of an ONNX model behind a Triton model config.

    Args:
        config: the model config as Triton passes it to a Python model (proto field names, JSON types).
        version_directory: holds the exported file named by `default_model_filename`.
        kind: instance kind that Triton chose, "CPU" or "GPU"; KIND_AUTO arrives here already resolved.
        device_id: the CUDA device of a GPU instance.

    Raises:
        ModelLoadError: the file is missing, its tensors are not those of the config, or a setting is not valid.
    """

    def __init__(self, config: Mapping[str, Any], version_directory: Path, *, kind: str, device_id: int) -> None:
        self.name: str = config["name"]
        self.can_batch: bool = config["max_batch_size"] > 0
        self.inputs = _signatures(config["input"], can_batch=self.can_batch)
        self.outputs = _signatures(config["output"], can_batch=self.can_batch)
        self._rows_at_once = rows_at_once(config, kind=kind)
        path = version_directory / (config["default_model_filename"] or "model.onnx")
        if not path.is_file():
            raise ModelLoadError(f"{self.name} has no exported weights ({path.name}): run `medimage export`")
        try:
            self.session = configured_session(config, path, kind=kind, device_id=device_id)
        except ModelLoadError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ModelLoadError(f"{self.name}: cannot load {path.name}: {_first_line(error)}") from error
        self._cuda_device = device_id if cuda.is_used_by(self.session) else None
        self._check_agrees_with(self.session)

    def run(self, requests: Sequence[Tensors]) -> list[Answer]:
        """Answer each request with its outputs or its error, in order.

        Requests that fit run as one batch. If that fails, each runs alone, so that one request with values that
        the model refuses, or of another length than its neighbours, takes none of them down.
        """
        answers: list[Answer | None] = [self._misfit(request) for request in requests]
        fitting = [index for index, answer in enumerate(answers) if answer is None]
        results = self._run_together([requests[index] for index in fitting])
        for index, result in zip(fitting, results, strict=True):
            answers[index] = result
        return [answer for answer in answers if answer is not None]

    def _run_together(self, requests: Sequence[Tensors]) -> list[Answer]:
        if len(requests) < 2 or not self.can_batch:
            return [self._run_alone(request) for request in requests]
        try:
            batch = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
            outputs = self._infer(batch)
        except (ValueError, InvalidInput, InferenceFailed):  # ValueError: lengths differ where the config says -1
            return [self._run_alone(request) for request in requests]
        ends = np.cumsum([_rows(request) for request in requests])[:-1]
        pieces = {name: np.split(values, ends) for name, values in outputs.items()}
        return [{name: piece[index] for name, piece in pieces.items()} for index in range(len(requests))]

    def _run_alone(self, request: Tensors) -> Answer:
        try:
            return self._infer(request)
        except (InvalidInput, InferenceFailed) as error:
            return error

    def _infer(self, tensors: Tensors) -> Tensors:
        rows, most = _rows(tensors), self._rows_at_once
        if not 0 < most < rows:
            return self._infer_at_once(tensors)
        pieces = [
            self._infer_at_once({name: values[start : start + most] for name, values in tensors.items()})
            for start in range(0, rows, most)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _infer_at_once(self, tensors: Tensors) -> Tensors:
        names = [output.name for output in self.outputs]
        feed = {name: _as_text(name, values) if values.dtype == object else values for name, values in tensors.items()}
        try:
            return dict(zip(names, self.session.run(names, feed), strict=True))
        except InvalidArgument as error:  # for instance a token id outside the vocabulary
            raise InvalidInput(f"{self.name} cannot take the values of {', '.join(tensors)}") from error
        except Exception as error:
            log.error("%s failed on %d rows: %s", self.name, _rows(tensors), type(error).__name__)
            if self._cuda_device is not None:
                cuda.give_up_if_lost(self.name, self._cuda_device)
            raise InferenceFailed(
                f"internal error: {self.name} failed; the server's log has the kind of failure"
            ) from error

    def _misfit(self, request: Tensors) -> InvalidInput | None:
        for expected in self.inputs:
            if expected.name not in request:
                return InvalidInput(f"input {expected.name} is missing")
            shape = request[expected.name].shape
            if not expected.accepts(shape):
                return InvalidInput(
                    f"input {expected.name} has shape {list(shape)}; expected {list(expected.shape)}, -1 being any"
                )
        rows = {request[expected.name].shape[0] for expected in self.inputs} if self.can_batch else {1}
        return InvalidInput(f"inputs differ in their number of rows: {sorted(rows)}") if len(rows) > 1 else None

    def _check_agrees_with(self, session: ort.InferenceSession | OpenVINOSession) -> None:
        graph_inputs = {node.name: node for node in session.get_inputs()}
        graph_outputs = {node.name: node for node in session.get_outputs()}
        unfed = sorted(graph_inputs.keys() - {tensor.name for tensor in self.inputs})
        if unfed:
            raise ModelLoadError(f"{self.name}: model.onnx needs inputs {unfed} that config.pbtxt does not declare")
        for tensor, nodes in [(t, graph_inputs) for t in self.inputs] + [(t, graph_outputs) for t in self.outputs]:
            if tensor.name not in nodes:
                raise ModelLoadError(
                    f"{self.name}: model.onnx has no tensor {tensor.name}; it has {sorted(nodes)}, see config.pbtxt"
                )
            node = nodes[tensor.name]
            found = Signature(
                tensor.name,
                TRITON_TYPES.get(node.type, node.type),
                tuple(length if isinstance(length, int) else -1 for length in node.shape),
            )
            if found.data_type != tensor.data_type or not found.accepts(tensor.shape):
                raise ModelLoadError(
                    f"{self.name}: tensor {tensor.name} is {found.data_type} {list(found.shape)} in model.onnx, "
                    f"but {tensor.data_type} {list(tensor.shape)} by config.pbtxt"
                )


def _signatures(tensors: Sequence[Mapping[str, Any]], *, can_batch: bool) -> list[Signature]:
    batch = (-1,) if can_batch else ()
    return [
        Signature(tensor["name"], tensor["data_type"], (*batch, *(int(length) for length in tensor["dims"])))
        for tensor in tensors
    ]


def _as_text(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Triton's bytes as the str that onnxruntime takes; of bytes it would silently make their Python notation."""
    try:
        return np.array([value.decode("utf-8") for value in values.flat], dtype=object).reshape(values.shape)
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name} is not valid UTF-8") from None  # the original error holds the text


def _rows(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
