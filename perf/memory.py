"""Memory of processes, from Linux's /proc."""

from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """Bytes that processes have resident now."""

    rss: int  # counts what several share once for each
    pss: int  # counts it once altogether


def memory(pid: int) -> Memory:
    """Of a process and its descendants."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss:", "Pss:"))}
    every = [Memory(kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024), *map(memory, children(pid))]
    return Memory(sum(each.rss for each in every), sum(each.pss for each in every))


def peak_memory(pid: int) -> int:
    """Bytes that a process and its descendants had resident at their highest, each at its own time."""
    return own_peak(pid) + sum(map(peak_memory, children(pid)))


def own_peak(pid: int | str = "self") -> int:
    """The same of one process alone; not getrusage(), which counts what the parent had when it forked."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def children(pid: int) -> list[int]:
    """Processes that a process started, from any of its threads."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for found in lists for child in found]
