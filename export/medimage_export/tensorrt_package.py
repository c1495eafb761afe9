"""Plans through the Python package `tensorrt`, version 10 or later."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medimage_export.errors import PlanError
from medimage_export.tensorrt_profiles import Network, Profile, profile_for

OLDEST = 10  # strongly typed networks with int64 and Gelu
# For what kernels need beside weights and activations. Unlimited, the builder may choose kernels that take the whole
# card, and the plan then does not load beside the other models; 4 GiB leave room on a card of 16.
WORKSPACE_BYTES = 4 * 2**30


class TensorRTPackage:
    """Builds and runs plans in this process.

    Args:
        tensorrt: the imported module.

    Raises:
        PlanError: it is too old, or PyTorch cannot use the GPU, so that no plan could be checked.
    """

    def __init__(self, tensorrt: Any) -> None:
        if int(tensorrt.__version__.partition(".")[0]) < OLDEST:
            raise PlanError(f"tensorrt {tensorrt.__version__} is too old; {OLDEST} or later is needed")
        if not torch.cuda.is_available():
            raise PlanError(
                "the check of a plan needs a PyTorch that finds the GPU; this one was built for the CPU, "
                "or no GPU is visible"
            )
        self.tensorrt = tensorrt
        self.version: str = tensorrt.__version__
        self.errors: list[str] = []
        self.logger = _error_logger(tensorrt, self.errors)
        self.runtime = tensorrt.Runtime(self.logger)  # here, because it must outlive the engines that it loads

    def build(self, network: Network, plan: Path, timing_cache: Path) -> None:
        trt = self.tensorrt
        self.errors.clear()
        builder = trt.Builder(self.logger)
        # TensorRT 11 has no other networks, and accepts the flag without effect
        definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(definition, self.logger)
        if not parser.parse_from_file(str(network.path)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            reasons = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
            raise PlanError(f"TensorRT cannot parse the network: {_one_line(reasons)}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.clear_flag(trt.BuilderFlag.TF32)
        for sizes in network.profiles:
            profile = builder.create_optimization_profile()
            for name, dims in network.inputs.items():
                shapes = [(size, *dims) for size in (sizes.smallest, sizes.tuned, sizes.largest)]
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        _use_timing_cache(config, timing_cache.read_bytes())
        serialized = builder.build_serialized_network(definition, config)
        if serialized is None:
            raise PlanError(f"TensorRT cannot build the plan: {_one_line(self.errors)}")
        plan.write_bytes(serialized)
        timing_cache.write_bytes(config.get_timing_cache().serialize())

    def open(self, plan: Path, profiles: Sequence[Profile]) -> "PlanSession":
        self.errors.clear()
        engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise PlanError(f"TensorRT cannot load the plan: {_one_line(self.errors)}")
        return PlanSession(self.tensorrt, engine, profiles, self.errors)


class PlanSession:
    """A plan on the first GPU, fed from host memory and read into it; PyTorch manages the GPU's memory.

    Args:
        errors: where the logger of `engine` appends what TensorRT says of a failure.

    Raises:
        PlanError: the plan cannot be made ready to run; most often the GPU's memory is full.
    """

    def __init__(self, tensorrt: Any, engine: Any, profiles: Sequence[Profile], errors: list[str]) -> None:
        self.tensorrt = tensorrt
        self.engine = engine
        self.profiles = profiles
        self.errors = errors
        self.context = engine.create_execution_context()
        if self.context is None:
            raise PlanError(f"TensorRT cannot make the plan ready to run: {_one_line(errors)}")
        self.stream = torch.cuda.Stream()

    def run(self, output_names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run one batch.

        Raises:
            PlanError: no profile allows the batch, or the run failed.
        """
        batch = len(next(iter(feed.values())))
        index = profile_for(batch, self.profiles)
        self.errors.clear()
        with torch.cuda.stream(self.stream):
            chosen = self.context.set_optimization_profile_async(index, self.stream.cuda_stream)
            self._check(chosen, f"use profile {index}")
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feed.items()}
            for name, tensor in tensors.items():
                shape = tuple(tensor.shape)
                self._check(self.context.set_input_shape(name, shape), f"take {name} of shape {shape}")
            for name in (self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)):
                if name not in tensors:  # an output, asked for or not; its shape follows from the inputs'
                    tensors[name] = self._output(name)
            for name, tensor in tensors.items():
                self._check(self.context.set_tensor_address(name, tensor.data_ptr()), f"use the memory of {name}")
            self._check(self.context.execute_async_v3(self.stream.cuda_stream), f"run a batch of {batch}")
        self.stream.synchronize()
        return [tensors[name].cpu().numpy() for name in output_names]

    def _check(self, done: bool, task: str) -> None:
        if not done:
            raise PlanError(f"TensorRT cannot {task}: {_one_line(self.errors)}")

    def _output(self, name: str) -> torch.Tensor:
        dtype = np.dtype(self.tensorrt.nptype(self.engine.get_tensor_dtype(name)))
        return torch.from_numpy(np.empty(tuple(self.context.get_tensor_shape(name)), dtype)).cuda()


def _use_timing_cache(config: Any, content: bytes) -> None:
    """Start from a saved timing cache, or from an empty one if it is of another GPU or version of TensorRT."""
    saved = config.create_timing_cache(content)
    if saved is None or not config.set_timing_cache(saved, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _error_logger(tensorrt: Any, errors: list[str]) -> Any:
    """A logger that appends TensorRT's errors to a list; nowhere else does TensorRT say why a build failed."""
    severe = (tensorrt.ILogger.Severity.INTERNAL_ERROR, tensorrt.ILogger.Severity.ERROR)

    class ErrorLogger(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)  # the bindings want this in place of super()

        def log(self, severity: object, message: str) -> None:
            if severity in severe:
                errors.append(message)

    return ErrorLogger()


def _one_line(reasons: Sequence[str]) -> str:
    return "; ".join(" ".join(reason.split()) for reason in reasons) or "it gave no reason"
