"""What the system knows of processes."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from subprocess import Popen


def exit_of(process: Popen[bytes]) -> str | None:
    """How a process has ended, None while it runs."""
    code = process.poll()
    return None if code is None else f"ended by itself with exit code {code}"


def children(pid: int) -> list[int]:
    """Process ids of the running children of a process."""
    return [child for child in map(int, filter(str.isdecimal, os.listdir("/proc"))) if parent_of(child) == pid]


def parent_of(pid: int) -> int | None:
    """None if this process has ended, even if its parent has not taken notice, or is none that we may look at."""
    try:
        # proc_pid_stat(5): pid (name) state parent …; a name may hold anything
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return None if state in ("Z", "X") else int(parent)


def end_group(process: Popen[bytes]) -> None:
    """Kill a process that leads a group, and all of the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
