"""A stand-in for the Python package tensorrt 10: its plan is the ONNX file, and onnxruntime runs it on the CPU.

Only what an export calls is here, with the names, the order and the failures of the bindings; `calls` is what it saw.
"""

import ctypes
import sys
from contextlib import nullcontext
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import torch

NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}


def install(monkeypatch):
    """The stand-in as the installed package, which is returned, and a PyTorch whose GPU is host memory."""
    module = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(cuda_stream=1, synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    return module


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class ILogger:
    """Without this __init__ the bindings crash when the logger is used."""

    Severity = Severity

    def __init__(self):
        self.is_initialised = True


class ParserError(SimpleNamespace):
    def node_operator(self):
        return self.operator

    def node_name(self):
        return self.name

    def desc(self):
        return self.description


class FakeTensorRT:
    """The module. Set `parser_errors` or `build_error` to make it fail, `mismatch` to refuse every saved cache,
    and `refused` to the name of a call that a plan is to refuse.
    """

    __version__ = "10.15.1"
    __spec__ = ModuleSpec("tensorrt", loader=None)  # PyTorch looks for it
    ILogger = ILogger
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})
    MemoryPoolType = IntEnum("MemoryPoolType", {"WORKSPACE": 0})
    BuilderFlag = IntEnum("BuilderFlag", {"TF32": 7})

    def __init__(self):
        self.parser_errors, self.build_error, self.mismatch = [], None, False
        self.refused = None
        self.network_flags, self.cleared_flags, self.limits, self.profiles, self.caches = None, [], {}, [], []

    def Builder(self, logger):
        assert logger.is_initialised
        return SimpleNamespace(
            create_network=self._create_network,
            create_builder_config=lambda: Config(self),
            create_optimization_profile=Profile,
            build_serialized_network=lambda network, config: self._build(logger, network),
        )

    def OnnxParser(self, network, logger):
        def parse_from_file(path):
            network.path = path
            return not self.parser_errors

        return SimpleNamespace(
            parse_from_file=parse_from_file,
            num_errors=len(self.parser_errors),
            get_error=self.parser_errors.__getitem__,
        )

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine(self, logger, bytes(plan)) if plan else None)

    def nptype(self, type_):
        return type_

    def _create_network(self, flags):
        self.network_flags = flags
        return SimpleNamespace()

    def _build(self, logger, network):
        logger.log(Severity.WARNING, "nothing that matters")
        if self.build_error:
            logger.log(Severity.ERROR, self.build_error)
            return None
        return memoryview(onnx.load(network.path).SerializeToString())  # with the weights that lie beside the file


class Config:
    def __init__(self, tensorrt):
        self.tensorrt = tensorrt
        self.cache = b"default"

    def set_memory_pool_limit(self, pool, size):
        self.tensorrt.limits[pool] = size

    def clear_flag(self, flag):
        self.tensorrt.cleared_flags.append(flag)

    def add_optimization_profile(self, profile):
        self.tensorrt.profiles.append(profile.shapes)

    def create_timing_cache(self, content):
        return bytes(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        if ignore_mismatch or (cache and self.tensorrt.mismatch):
            return False
        self.tensorrt.caches.append(cache)
        self.cache = cache
        return True

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: memoryview(self.cache + b" and more"))


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, smallest, tuned, largest):
        self.shapes[name] = (smallest, tuned, largest)


class Engine:
    def __init__(self, tensorrt, logger, plan):
        self.tensorrt, self.logger = tensorrt, logger
        self.session = onnxruntime.InferenceSession(plan)
        self.names = [node.name for node in (*self.session.get_inputs(), *self.session.get_outputs())]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def create_execution_context(self):
        return Context(self) if self.allows("create_execution_context") else None

    def allows(self, call):
        if self.tensorrt.refused == call:
            self.logger.log(Severity.ERROR, f"{call} was refused")
        return self.tensorrt.refused != call

    def get_tensor_dtype(self, name):
        return NUMPY_TYPES[next(node.type for node in self.session.get_outputs() if node.name == name)]


class Context:
    """Runs on the addresses that it is given, in host memory; every input and output must have one."""

    def __init__(self, engine):
        self.session, self.allows = engine.session, engine.allows
        self.profiles, self.shapes, self.addresses = [], {}, {}

    def set_optimization_profile_async(self, index, stream):
        self.profiles.append(index)
        return self.allows("set_optimization_profile_async")

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self.allows("set_input_shape")

    def get_tensor_shape(self, name):
        (node,) = [node for node in self.session.get_outputs() if node.name == name]
        (batch, *_), *_ = self.shapes.values()
        return (batch, *node.shape[1:])

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self.allows("set_tensor_address")

    def execute_async_v3(self, stream):
        feed = {}
        for node in self.session.get_inputs():
            array = np.empty(self.shapes[node.name], NUMPY_TYPES[node.type])
            ctypes.memmove(array.ctypes.data, self.addresses[node.name], array.nbytes)
            feed[node.name] = array
        names = [node.name for node in self.session.get_outputs()]
        for name, array in zip(names, self.session.run(names, feed), strict=True):
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)
        return self.allows("execute_async_v3")
