"""Which batch sizes a TensorRT plan is built for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medimage_export.errors import PlanError

TUNED_BATCHES = (1, 8)  # where the config allows more, and its largest


@dataclass(frozen=True)
class Profile:
    """The batch sizes that one set of kernels may run, and the one that it is tuned for."""

    smallest: int
    tuned: int
    largest: int


@dataclass(frozen=True)
class Network:
    """What a plan is built from: an ONNX file, and the profiles that its inputs get."""

    path: Path
    inputs: Mapping[str, tuple[int, ...]]  # dims after the batch
    profiles: Sequence[Profile]


def batch_profiles(max_batch_size: int) -> list[Profile]:
    """One profile tuned for a batch of 1, one for 8 and one for the config's `max_batch_size`, as far as these differ.

    With one profile, a lone request and a full batch would share kernels. Of several, Triton runs each batch in the one
    that allows it and is tuned for the nearest size, provided that `instance_group.profile` of the config names them
    all; and it does not load the model unless one allows `max_batch_size`. Each has an execution context with memory
    for its largest batch, so none allows more than it is tuned for. All allow 1: Triton captures the CUDA graph of
    batch 1 in each, and logs an error where it cannot. The first allows nothing else, so its shapes are fixed.

    Source: tensorrt_backend, GetMostOptimizedProfile and SetCudaGraphShape in src/instance_state.cc,
    GetMaxSupportedBatchSize in src/model_state.cc.
    """
    small = [size for size in TUNED_BATCHES if size < max_batch_size]
    return [Profile(1, size, size) for size in (*small, max_batch_size)]


def profile_for(batch: int, profiles: Sequence[Profile]) -> int:
    """Index of the first profile that allows a batch of this size.

    Raises:
        PlanError: none does.
    """
    for index, profile in enumerate(profiles):
        if profile.smallest <= batch <= profile.largest:
            return index
    raise PlanError(f"no profile of the plan allows a batch of {batch}; the largest is {profiles[-1].largest}")
