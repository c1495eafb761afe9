"""A stand-in for `triton_python_backend_utils`, the Python API that there is only inside Triton's python backend."""

import importlib.util
import json
import sys
import threading
from types import SimpleNamespace

COMPLETE_FINAL = 1


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"

    def __init__(self, message, code):
        self.message, self.code = message, code


class TritonModelException(Exception):
    pass


class ResponseSender:
    """Collects what is sent; `fail` is raised by each send, and `answered` is set with the last response."""

    def __init__(self):
        self.sent, self.cancelled, self.fail = [], False, None
        self.answered = threading.Event()

    def send(self, response=None, flags=0):
        assert not self.answered.is_set()
        if response is not None and not self.fail:
            self.sent.append(response)
        if flags == COMPLETE_FINAL:
            self.answered.set()
        if self.fail:
            raise self.fail

    def is_cancelled(self):
        assert not self.answered.is_set()  # Triton has freed by then what this looks at
        return self.cancelled


class Request:
    """A request with its input arrays by name, and its parameters."""

    def __init__(self, inputs, parameters=None):
        self._inputs = [Tensor(name, array) for name, array in inputs.items()]
        self._parameters = parameters or {}
        self.sender, self.cancelled = ResponseSender(), False

    def is_cancelled(self):
        return self.cancelled

    def get_response_sender(self):
        return self.sender

    def inputs(self):
        return self._inputs

    def parameters(self):
        return json.dumps(self._parameters)  # Triton gives a JSON text, "{}" when there are none

    def request_id(self):
        return "request-7"


class InferenceResponse:
    """A response with its output arrays by name, or its error."""

    def __init__(self, output_tensors=(), error=None):
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


def get_input_tensor_by_name(request, name):
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def install(monkeypatch):
    """Let adapters import the stand-in; returns the list of lines that they log."""
    lines = []
    module = SimpleNamespace(
        InferenceResponse=InferenceResponse,
        Logger=SimpleNamespace(log_error=lines.append),
        Tensor=Tensor,
        TritonError=TritonError,
        TritonModelException=TritonModelException,
        get_input_tensor_by_name=get_input_tensor_by_name,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return lines


def load_adapter(path):
    """The TritonPythonModel of a model.py, not yet initialised."""
    spec = importlib.util.spec_from_file_location("adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel()
