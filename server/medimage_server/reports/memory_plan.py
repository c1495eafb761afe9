"""What reports on a CPU will take of the memory, known from the exported files before they are loaded."""

from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf carries no types

from medimage_server import cuda_memory
from medimage_server.exported import exported_json
from medimage_server.image_requests import positive
from medimage_server.model_repository import ServedModels
from medimage_server.reports import memory
from medimage_server.reports.memory import FREE_FRACTION, gigabytes
from medimage_server.reports.settings import GenerationSettings

MODEL = "cxrreportgen_stream"
GPU_PRECISION = "fp16"  # see `placement`, which this does not import: whoever plans needs no onnxruntime
# What a CPU holds of the weights, as a multiple of their file: ONNX Runtime 1.31 computes fp16 in fp32 there, and packs
# int4 for its kernels. Measured with two layers of Phi-3-mini's size: 2.03 and 1.21.
IN_MEMORY = {GPU_PRECISION: 2.0, "int4": 1.2}


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of everything, and how many slots of the decoder they allow."""

    precision: str  # of the decoder
    decoder: int
    encoders: int  # all ONNX models beside it
    slot: int  # KV cache of one report
    max_length: int  # tokens of a slot
    wanted: int  # slots
    free: int

    @property
    def _fitting(self) -> int:
        """As `memory.fit_slots` has it."""
        return max(0, int(FREE_FRACTION * (self.free - self.decoder - self.encoders)) // self.slot)

    @property
    def slots(self) -> int:
        """Those that fit; at least one, of which the decoder has the last word."""
        return max(1, min(self.wanted, self._fitting))

    @property
    def line(self) -> str:
        """For the operator."""
        total = self.decoder + self.encoders + self.wanted * self.slot
        taken = (
            f"reports take up to {gigabytes(total)} of memory: {gigabytes(self.decoder)} for the decoder in "
            f"{self.precision}, {gigabytes(self.encoders)} for the encoders, and {gigabytes(self.slot)} for each of "
            f"{self.wanted} slots ({self.max_length} tokens)"
        )
        free = f"{gigabytes(self.free)} are free"
        if self._fitting >= self.wanted:
            return f"{taken}; {free}"
        if not self._fitting:
            return f"{taken}; {free}, too little for one slot: lower max_length, or give the server more memory"
        return (
            f"{taken}; {free}, which leaves {self._fitting} of the slots: other reports wait "
            "(lower the parameter max_length for more, or give the server more memory)"
        )

    def configs(self, served: ServedModels) -> dict[str, Message]:
        """The configs to serve with in place of those in the repository: none if all slots fit."""
        if self.slots == self.wanted:
            return {}
        config = type(served.configs[MODEL])()
        config.CopyFrom(served.configs[MODEL])
        config.parameters["slots"].string_value = str(self.slots)
        return {MODEL: config}


def plan_memory(served: ServedModels) -> MemoryPlan | None:
    """The plan, where reports are served on the CPU.

    None also of an export that does not tell its KV cache, and of one with a fault, which its model names when it
    loads: the decoder then takes as many slots as fit when it is there.
    """
    if MODEL not in served.names:
        return None
    folder = _version_folder(served.repository / MODEL)
    try:
        parameters = {name: value.string_value for name, value in served.configs[MODEL].parameters.items()}
        wanted, max_length = positive(parameters, "slots"), int(parameters["max_length"])
        with exported_json(folder / "manifest.json", "cxrreportgen") as manifest:
            precision, kv_bytes = str(manifest["precision"]), int(manifest["kv_bytes_per_token"])
        max_length = max_length or GenerationSettings.read(folder / "generation.json").max_length
        weights = (folder / "decoder.onnx.data").stat().st_size
    except (OSError, LookupError, ValueError):
        return None
    if precision == GPU_PRECISION and cuda_memory.device_count():
        return None
    return MemoryPlan(
        precision=precision,
        decoder=int(weights * IN_MEMORY.get(precision, 1.0)),
        encoders=sum(_onnx_bytes(served.repository / name) for name in served.names if name != MODEL),
        slot=kv_bytes * max_length,
        max_length=max_length,
        wanted=wanted,
        free=memory.free_bytes(),
    )


def _onnx_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in _version_folder(model).glob("*.onnx*"))


def _version_folder(model: Path) -> Path:
    """The latest, which is what is served."""
    return max(model.glob("[0-9]*"), key=lambda folder: int(folder.name), default=model)
