"""What the numbers were measured on, and what a process needed."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click
import onnxruntime
import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("medimage-triton", "numpy", "pillow", "tritonclient", "nvidia-pytriton")


def peak_memory(pid: int) -> int:
    """Bytes that a process and its descendants had resident at their highest, each at its own time; Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return own + sum(peak_memory(child) for child in children(pid))


class Memory(NamedTuple):
    """Bytes that processes have resident now."""

    rss: int  # counts what several share once for each
    pss: int  # counts it once altogether


def memory(pid: int) -> Memory:
    """Of a process and its descendants; Linux only."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss:", "Pss:"))}
    every = [Memory(kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024), *map(memory, children(pid))]
    return Memory(sum(each.rss for each in every), sum(each.pss for each in every))


def children(pid: int) -> list[int]:
    """Processes that a process started, from any of its threads; Linux only."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for found in lists for child in found]


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": cpu.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "packages": {package: installed_version(package) for package in PACKAGES},
        "commit": commit.stdout.strip(),
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # nvidia-pytriton in NVIDIA's container, which has its own Triton
        return None


def exported(repository: Path) -> dict[str, object]:
    """Which weights a repository holds, in which format and precision, by the manifest of `medimage export`."""
    manifest = json.loads((repository / "medimageinsight" / "1" / "manifest.json").read_text(encoding="utf-8"))
    return {
        "weights": manifest["checkpoint"]["weights"],
        "format": manifest["format"],
        "precision": manifest["precision"],
    }


def exported_for_onnxruntime(repository: Path) -> dict[str, object]:
    """What `exported` tells of a repository that onnxruntime serves.

    Raises:
        ClickException: another runtime does.
    """
    found = exported(repository)
    if found["format"] != "onnx":
        raise click.ClickException(f"{repository} holds {found['format']} plans; export it with --format onnx")
    if found["precision"] == "bf16":
        raise click.ClickException(f"{repository} holds bf16, which OpenVINO computes: only onnxruntime is measured")
    return found
