"""An ONNX file as a TensorRT plan, which Triton's tensorrt backend serves.

A plan fits the model of GPU and the version of TensorRT that built it, and no other. So it is built where it will be
served, with the TensorRT of the Triton that will serve it.
"""

import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from medimage_export.errors import ExportError, PlanError, TensorRTMissing
from medimage_export.parity import Feed, Session
from medimage_export.tensorrt_operators import check_operators
from medimage_export.tensorrt_package import TensorRTPackage
from medimage_export.tensorrt_profiles import Network, Profile, batch_profiles
from medimage_export.trtexec import Trtexec

IN_NVIDIAS_CONTAINER = (
    "neither the Python package tensorrt nor trtexec is here; from this checkout, on a GPU like the one that will "
    'serve, run: docker run --rm --gpus all -v "$PWD":/work -w /work nvcr.io/nvidia/tensorrt:YY.MM-py3 sh -c '
    "\"pip install '.[cli,export]' && medimage export medimageinsight --checkpoint DIR --precision fp16 --format "
    'tensorrt" with DIR below this folder and YY.MM as in the nvcr.io/nvidia/tritonserver image that will serve: '
    "a plan loads only in the TensorRT that built it"
)


class Toolkit(Protocol):
    """A way to TensorRT."""

    version: str

    def build(self, network: Network, plan: Path, timing_cache: Path) -> None:
        """Write a plan, and what was learnt about the GPU; PlanError with TensorRT's own reasons."""

    def open(self, plan: Path, profiles: Sequence[Profile]) -> Session:
        """Load a plan on the first GPU; PlanError with TensorRT's own reasons."""


def find_toolkit() -> Toolkit:
    """The Python package `tensorrt` if it can be used, else `trtexec` if it is on PATH.

    Raises:
        TensorRTMissing: neither is here; its line holds the command that exports in NVIDIA's container.
        PlanError: what is here cannot be used; of the package this is said only where there is no trtexec.
    """
    reason: ExportError = TensorRTMissing(IN_NVIDIAS_CONTAINER)
    try:
        return TensorRTPackage(importlib.import_module("tensorrt"))
    except PlanError as exc:
        reason = exc
    except (ImportError, OSError):  # OSError: the package is here, its libraries are not
        pass
    executable = shutil.which("trtexec")
    if executable is None:
        raise reason
    return Trtexec(executable)


def build_plan(toolkit: Toolkit, onnx_file: Path, plan: Path, *, max_batch_size: int, timing_cache: Path) -> Session:
    """Build `plan` from an ONNX file whose one dynamic axis is the batch, and open it for the parity check.

    The graph's own types are kept: the network is strongly typed and without TF32, so that what the graph holds in
    float32 is computed in float32. `max_batch_size` is that of the model's config; see `batch_profiles`.
    `timing_cache` saves most of the time of later builds on the same GPU and grows with each. It is kept beside the
    model repository, not in it: see `timing_cache_of`. `plan` appears only when it is whole.

    Raises:
        UnsupportedByTensorRT: the graph holds what the parser does not document as supported.
        PlanError: TensorRT refused, for the reasons named.
    """
    model = onnx.load(onnx_file, load_external_data=False)
    check_operators(model, onnx_file.parent)
    network = Network(onnx_file, _dims_after_batch(model), batch_profiles(max_batch_size))
    timing_cache.touch()  # fails now rather than after the build
    partial = plan.with_name(f"{plan.name}.partial")
    try:
        toolkit.build(network, partial, timing_cache)
        partial.replace(plan)
    finally:
        partial.unlink(missing_ok=True)
    return toolkit.open(plan, network.profiles)


def with_largest_profile(feeds: Mapping[str, Feed], max_batch_size: int) -> dict[str, Feed]:
    """The feeds of a parity check, and their rows in turn as a batch that only the largest profile allows."""
    smaller = batch_profiles(max_batch_size)[:-1]
    size = smaller[-1].largest + 1 if smaller else max_batch_size
    rows = {name: np.concatenate([feed[name] for feed in feeds.values()]) for name in next(iter(feeds.values()))}
    return {**feeds, "in turn": {name: np.resize(array, (size, *array.shape[1:])) for name, array in rows.items()}}


def timing_cache_of(repository: Path) -> Path:
    """Where an export into a model repository keeps its timing cache.

    Beside the repository: what is served does not hold it, and the folder that a container mounts does, so that it
    outlives the container.
    """
    return repository.resolve().parent / "tensorrt-timing.cache"


def _dims_after_batch(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inputs = {}
    for value in model.graph.input:
        batch, *dims = value.type.tensor_type.shape.dim
        if batch.HasField("dim_value") or not all(dim.HasField("dim_value") for dim in dims):
            raise PlanError(f"input {value.name} must have the batch as its one dynamic axis, in front")
        inputs[value.name] = tuple(dim.dim_value for dim in dims)
    return inputs
