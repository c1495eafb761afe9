"""How many KV slots fit in the memory of this machine, of the container around it, or of a GPU."""

import logging
from pathlib import Path

from medimage_server import cuda_memory

log = logging.getLogger(__name__)

FREE_FRACTION = 0.8  # of what is free; the rest is for prompts, activations and the other models' batches
# On a GPU, for the image encoders and full batches of them: 7.6 GB of image_encoder in fp32 and 2.1 GB of
# cxr_image_encoder in fp16, as counted in their configs.
ENCODERS_BYTES = 10_000_000_000

MEMINFO = Path("/proc/meminfo")
# limit and usage in bytes: cgroup v2, then v1; a container sees its own at the root
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def free_bytes() -> int:
    """What may still be allocated: MemAvailable, or what the cgroup leaves, whichever is less."""
    rooms = [limit - usage for limit, usage in (_cgroup(*files) for files in CGROUPS) if limit is not None]
    return max(0, min([_available(), *rooms]))


def fit_slots(wanted: int, slot_bytes: int, max_length: int) -> int:
    """As many of the wanted slots as fit in FREE_FRACTION of the free memory; fewer than wanted is one line in the log.

    Args:
        slot_bytes: KV cache of one slot.
        max_length: tokens of one slot, for the messages.

    Raises:
        ValueError: not even one fits; says what to lower.
    """
    free = free_bytes()
    return _fit(wanted, slot_bytes, max_length, free=free, usable=FREE_FRACTION * free, where="")


def fit_slots_on_gpu(wanted: int, slot_bytes: int, max_length: int, *, device_id: int, weight_bytes: int) -> int:
    """As many as fit on a GPU beside the image encoders, whether those are there already or not; see `fit_slots`.

    The first slot may take the place of the encoders, all but what FREE_FRACTION leaves.

    Args:
        weight_bytes: what the decoder itself has taken.

    Raises:
        OSError: this machine has no CUDA driver.
        ValueError: see `fit_slots`.
    """
    free, total = cuda_memory.free_and_total(device_id)
    others = total - free - weight_bytes
    usable = max(free - max(0, ENCODERS_BYTES - others), min(slot_bytes, FREE_FRACTION * free))
    return _fit(wanted, slot_bytes, max_length, free=free, usable=usable, where=f" on GPU {device_id}")


def _fit(wanted: int, slot_bytes: int, max_length: int, *, free: int, usable: float, where: str) -> int:
    fitting = min(wanted, int(usable) // slot_bytes)
    need = f"{wanted} slots of {max_length} tokens need {gigabytes(wanted * slot_bytes)} of KV cache"
    if fitting < 1:
        raise ValueError(
            f"{need}, and not even one ({gigabytes(slot_bytes)}) fits in the {gigabytes(free)} that are free{where}: "
            "lower the parameter max_length, or give the server more memory"
        )
    if fitting < wanted:
        log.warning("%s, %s are free%s: %d slots", need, gigabytes(free), where, fitting)
    return fitting


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def _available() -> int:
    for line in MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024  # /proc/meminfo says kB and means KiB
    raise RuntimeError(f"{MEMINFO} has no MemAvailable; Linux 3.14 or later has it")


def _cgroup(limit: Path, usage: Path) -> tuple[int | None, int]:
    """Limit, None where there is none, and usage without the page cache, which the kernel gives back on demand."""
    if not limit.is_file() or not limit.read_text().strip().isdecimal():  # v2 writes "max" for no limit
        return None, 0
    statistics = dict(line.split() for line in (limit.parent / "memory.stat").read_text().splitlines())
    page_cache = int(statistics.get("total_inactive_file") or statistics.get("inactive_file") or 0)
    return int(limit.read_text()), int(usage.read_text()) - page_cache
