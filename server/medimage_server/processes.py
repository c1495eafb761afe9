"""What the system knows of processes."""

import os
import platform
import signal
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

ENDED = ("Z", "X")  # states in proc_pid_stat(5)
WAIT4 = {"x86_64": "61", "aarch64": "260"}  # the number of this system call


def exit_of(process: Popen[bytes]) -> str | None:
    """How a process has ended, None while it runs."""
    code = process.poll()
    return None if code is None else f"ended by itself with exit code {code}"


def children(pid: int, *, ended: bool = False) -> list[int]:
    """Process ids of the running children of a process, or of those whose end it has not taken notice of."""
    return [
        child
        for child in map(int, filter(str.isdecimal, os.listdir("/proc")))
        if (found := state_and_parent(child)) and found[1] == pid and (found[0] in ENDED) == ended
    ]


def awaited_by(pid: int) -> list[int]:
    """The children for whose end a thread of a process waits, as far as the system lets us see."""
    awaited = []
    with suppress(OSError):  # it has ended itself, or we may not look
        for thread in Path(f"/proc/{pid}/task").iterdir():
            number, *arguments = (thread / "syscall").read_text().split()  # proc_pid_syscall(5)
            if number == WAIT4.get(platform.machine()):
                awaited.append(int(arguments[0], 16))
    return awaited


def parent_of(pid: int) -> int | None:
    """None if this process has ended, even if its parent has not taken notice, or is none that we may look at."""
    found = state_and_parent(pid)
    return found[1] if found and found[0] not in ENDED else None


def state_and_parent(pid: int) -> tuple[str, int] | None:
    try:
        # proc_pid_stat(5): pid (name) state parent …; a name may hold anything
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return state, int(parent)


def end_group(process: Popen[bytes]) -> None:
    """Kill a process that leads a group, and all of the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
