"""Where the decoder of a GPU instance runs, and what onnxruntime has to be told for it."""

import logging
import os
from pathlib import Path

import onnxruntime as ort

from medimage_server import cuda, cuda_memory, versions
from medimage_server.exported import exported_json

log = logging.getLogger(__name__)

# GroupQueryAttention has CUDA kernels for 16 bits alone. A decoder in fp32, or in int4, whose activations are fp32,
# would run it on the CPU, and copy the KV cache from the GPU and back in each step.
GPU_PRECISION = "fp16"
FIRST_VERSION = (1, 24)  # of onnxruntime whose CUDA kernel takes position_ids


def placed(decoder: Path, kind: str) -> str:
    """The kind for a decoder's session: "GPU" where the instance may have one and the precision is one for CUDA.

    Args:
        decoder: the exported file; the manifest beside it has the precision.
        kind: of the Triton instance, "CPU" or "GPU"; "MODEL" leaves the choice to us: the first GPU, if there is one.

    Raises:
        FileNotFoundError, ValueError: there is no manifest, or it is not as it should be.
        ValueError: this onnxruntime is too old for the decoder on a GPU.
    """
    if kind == "MODEL":
        kind = "GPU" if cuda_memory.device_count() else "CPU"
    if kind != "GPU" or cuda.PROVIDER not in ort.get_available_providers():
        return kind
    with exported_json(decoder.with_name("manifest.json"), "cxrreportgen") as manifest:
        precision = str(manifest["precision"])
    if precision != GPU_PRECISION:
        log.warning(
            "%s: %s has no attention on CUDA, so the CPU is used (for the GPU, export it with --precision %s)",
            decoder.name,
            precision,
            GPU_PRECISION,
        )
        return "CPU"
    if versions.is_before(ort.__version__, FIRST_VERSION):
        first = versions.name(FIRST_VERSION)
        raise ValueError(f"{decoder}: needs onnxruntime {first} or later on a GPU; this is {ort.__version__}")
    return kind


def heed_positions() -> None:
    """Have CUDA sessions of this process, from now on, take the rope row of a token from its position id.

    onnxruntime's fast decoding takes it from the length of the sequence. That is the same row unless the model has long
    rope, whose second set of factors lies further down in the table.
    """
    os.environ["ORT_DISABLE_FLASH_DECODE"] = "1"  # read when the session is made; its provider options have no such one
