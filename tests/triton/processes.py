"""What the system knows of processes: their children, programs, shared memory and open ports."""

import re
from contextlib import suppress
from pathlib import Path

MAPPED_IPV4 = "0000000000000000FFFF0000"  # ::ffff:a.b.c.d, an IPv4 address
LISTENING = "0A"  # in /proc/net/tcp, see include/net/tcp_states.h


def descendants(pid):
    """Those that run meanwhile; none of a process that has ended."""
    children = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [pid for child in children for pid in descendants(child)]


def executable(pid):
    """Name of the program's file; empty of one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/exe").readlink().name
    return ""


def command_line(pid):
    """Empty of one that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def is_running(pid):
    """False also for one that has ended and whose parent has not noticed."""
    try:
        return not re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


def resident_bytes(pid):
    return int(re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]) * 1024


def shared_memory(pid):
    """The files of /dev/shm that a process has mapped."""
    mapped = {line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    return {Path(path) for path in mapped if path.startswith("/dev/shm/")}


def listening_addresses(pid):
    """(address in hexadecimal as the kernel has it, port) of each port that a process has open; IPv6 is longer."""
    inodes = {re.sub(r"\D", "", str(link.readlink())) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return {
        (address.removeprefix(MAPPED_IPV4), int(port, 16))
        for _, local, _, state, *rest in rows
        for address, port in [local.split(":")]
        if state == LISTENING and rest[5] in inodes
    }
