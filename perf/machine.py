"""What the numbers were measured on, and what a process needed."""

import os
import platform
import subprocess
from pathlib import Path

import onnxruntime
import torch

ROOT = Path(__file__).parents[1]


def peak_memory(pid: int) -> int:
    """Bytes that a process and its descendants had resident at their highest, each at its own time; Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(peak_memory(int(child)) for child in children)


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": cpu.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "commit": commit.stdout.strip(),
    }
