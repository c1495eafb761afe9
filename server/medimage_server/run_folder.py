"""A folder in /dev/shm for one run of a command, and the removal of what a killed run left behind.

Beside it lie the regions of Triton's Python models, whose names begin with the folder's. They hold images and texts of
the last requests. A run holds a lock on its folder for as long as one of its processes lives that can remove it; what
nobody locks was left by a dead one. (A process id would not tell: containers may share /dev/shm, but not these.)
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import time

from medimage_server.errors import LaunchError

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "medimage-triton-"
LOCK, SCRATCH = "lock", "scratch"  # names in the folder; the latter a link to a folder in the temporary directory
CLIENTS_PREFIX = "medimage-client-"  # of medimage_client.wire.shared_memory, which needs a name for milliseconds
CLIENTS_AGE_S = 60.0
MIN_SHARED_MEMORY_BYTES = 256 * 2**20  # a region for each process of a model, of images in it; containers have 64 MB


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Only this user can enter it."""

    path: Path
    lock: int  # a descriptor, for processes that are to outlive the one that made the folder

    @property
    def region_prefix(self) -> str:
        """Of the names of regions in shared memory."""
        return f"{self.path.name}-"


@contextmanager
def run_folder() -> Iterator[RunFolder]:
    """A folder for the block, removed after it with its regions.

    Raises:
        LaunchError: there is no /dev/shm, or it is full.
    """
    name = PREFIX + secrets.token_hex(8)
    unlocked = SHARED_MEMORY / f".{name}"  # which `remove_dead` does not look at
    try:
        unlocked.mkdir(mode=0o700)
        lock = os.open(unlocked / LOCK, os.O_CREAT | os.O_RDWR, mode=0o600)
    except OSError as error:
        shutil.rmtree(unlocked, ignore_errors=True)
        raise LaunchError(
            f"cannot make a folder in {SHARED_MEMORY}, which Triton's Python models need: {error.strerror}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = unlocked.rename(SHARED_MEMORY / name)
        try:
            yield RunFolder(path, lock)
        finally:
            remove(path)
    finally:
        os.close(lock)


def remove(folder: Path) -> None:
    """Remove a run's folder, what it has in the temporary directory, and its regions."""
    remove_regions(f"{folder.name}-")
    with suppress(OSError):
        scratch = (folder / SCRATCH).readlink()
        if scratch.name.startswith(PREFIX):
            shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_regions(prefix: str) -> None:
    for region in regions(prefix):
        region.unlink(missing_ok=True)


def regions(prefix: str) -> list[Path]:
    return [path for path in SHARED_MEMORY.glob(f"{prefix}*") if path.is_file()]


def remove_dead() -> list[Path]:
    """Remove what dead runs and clients of this user have left; what was removed."""
    removed = []
    for folder in SHARED_MEMORY.glob(f"{PREFIX}*"):
        if is_ours(folder) and folder.is_dir() and is_dead(folder):
            remove(folder)
            removed.append(folder)
    for region in (*regions(PREFIX), *regions(CLIENTS_PREFIX)):
        if is_ours(region) and is_forgotten(region):
            region.unlink(missing_ok=True)
            removed.append(region)
    return removed


def is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def is_dead(folder: Path) -> bool:
    """Whether no process of the run holds its lock."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True  # it was about to be removed
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def is_forgotten(region: Path) -> bool:
    """Whether a region belongs to no folder, as of earlier versions, and no process that we can see has mapped it."""
    name = region.name
    if any(name.startswith(f"{folder.name}-") for folder in SHARED_MEMORY.glob(f"{PREFIX}*") if folder.is_dir()):
        return False
    with suppress(FileNotFoundError):
        return time() - region.stat().st_mtime > CLIENTS_AGE_S and not is_mapped(region)
    return False


def is_mapped(region: Path) -> bool:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is another user's
            if os.fsencode(region) in maps.read_bytes():
                return True
    return False


def shared_memory_warning() -> str | None:
    """A line for the operator, if /dev/shm is small."""
    status = os.statvfs(SHARED_MEMORY)
    size, free = status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail
    if min(size, free) >= MIN_SHARED_MEMORY_BYTES:
        return None
    return (
        f"{SHARED_MEMORY} has {size >> 20} MB, {free >> 20} of them free; large images need "
        f"{MIN_SHARED_MEMORY_BYTES >> 20}: in a container set --shm-size, else requests may fail with 503"
    )
