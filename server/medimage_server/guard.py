"""`python -m medimage_server.guard RUN_FOLDER COMMAND…`: run COMMAND, and end all that it starts with it or before it.

For a server that is not ours to change. Its parent holds the other end of standard input: when that closes, the parent
has ended, however it did, and so do the server, its children at any stage of their start, and what they share in
memory. When this process is killed itself, the kernel kills the server.

What the server shares in memory is made readable by this user alone: see `keep_private`.
"""

import ctypes
import os
import platform
import resource
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medimage_server.processes import children
from medimage_server.run_folder import remove, remove_regions

END_S = 5.0  # to end in good order when nobody is left who could want an answer

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
SECCOMP_MODE_FILTER, SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 2, 0x0005_0000, 0x7FFF_0000  # linux/seccomp.h
# linux/bpf_common.h: load a word, jump if equal, return; offsets in struct seccomp_data
LOAD, JUMP_IF_EQUAL, RETURN, NUMBER_AT, ARCHITECTURE_AT = 0x20, 0x15, 0x06, 0, 4
FCHMOD = {"x86_64": (0xC000_003E, 91), "aarch64": (0xC000_00B7, 52)}  # (architecture in linux/audit.h, system call)

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the server leaves becomes ours to end
    forbid_cores()
    with suppress(OSError):  # a kernel without seccomp; the launcher looks at what came of it
        keep_private()
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: server.send_signal(number))
    is_orphan = wait(server)
    end_children()
    is_orphan = is_orphan or bool(select.select([sys.stdin], [], [], 0)[0])  # meanwhile
    if is_orphan:
        remove(folder)
    else:
        remove_regions(f"{folder.name}-")
    end_as(server.returncode)


def wait(server: subprocess.Popen[bytes]) -> bool:
    """Wait for the server's end, and bring it about when the parent has ended; whether it has."""
    ended = os.pidfd_open(server.pid)
    if ended in select.select([sys.stdin, ended], [], [])[0]:
        server.wait()
        return False
    server.terminate()
    select.select([ended], [], [], END_S)
    server.kill()
    server.wait()
    return True


def end_children() -> None:
    """Those of the server's own, and what comes to us as they end."""
    with suppress(ChildProcessError):  # there are none any more
        while True:
            for pid in children(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def end_as(code: int) -> None:
    """End as the server has, also by a signal."""
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def forbid_cores() -> None:
    """They would have images in them. 1 and not 0, which does not count where a program takes cores from the kernel."""
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def keep_private() -> None:
    """Files that this process and its children make are for this user alone, and stay so.

    Triton's Python backend makes its regions with boost, which gives them mode 0644 by fchmod whatever the umask is. To
    change that afterwards would be too late: who has a region open keeps it. So fchmod does nothing here, and says that
    it has.

    Raises:
        OSError: the kernel has no seccomp, or this is another architecture.
    """
    os.umask(0o077)
    if platform.machine() not in FCHMOD:
        raise OSError(f"no system calls known for {platform.machine()}")
    architecture, fchmod = FCHMOD[platform.machine()]
    program = assemble(
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_IF_EQUAL, 0, 3, architecture),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_IF_EQUAL, 0, 1, fchmod),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | 0),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # else the kernel takes no filter
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def assemble(*instructions: Sequence[int]) -> Program:
    return Program(len(instructions), b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))


def prctl(option: int, *arguments: Any) -> None:
    words = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    if libc.prctl(option, *words) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


if __name__ == "__main__":
    main()
