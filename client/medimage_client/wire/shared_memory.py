"""Large inputs through shared memory instead of a socket, to a Triton on this machine: `shared_memory=True`.

A request then names a region of memory, and the server reads the image where the client put it. What that saves grows
with the image; `perf/cases/client_transport.py` measures it. Answers are at most 16 KB and travel as ever.

A region is a file in /dev/shm that has a name only until the server has mapped it: whatever happens to the client, no
file is left. It holds one tensor of one request at a time, and is used again after a good answer. After anything else
it is given up: a request that was cancelled or timed out may still be read. The server lets go of a region when it is
told to and no request uses it (Triton 24.09 or later; an earlier one must not be told while one does, so use none);
otherwise, as after the death of the client, when it ends.

Python's and tritonclient's own shared memory keep the name to the end, need a process to clean up after a crash, and
die of SIGBUS where /dev/shm is full, as it soon is in a container.
"""

import asyncio
import mmap
import os
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from medimage_client.errors import MedImageError, SharedMemoryError, TransportError

FOLDER = Path("/dev/shm")  # where Linux has what shm_open opens
LENGTH_BYTES = 4  # before each value of a BYTES tensor, little-endian
MIN_REGION_BYTES = 2**20
RELEASE_TIME_S = 5.0  # to let the server finish with regions when the client is closed
RELEASE_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Region:
    name: str  # on the server
    memory: mmap.mmap = field(repr=False)

    def write(self, values: Sequence[bytes]) -> None:
        """A BYTES tensor as Triton reads it; takes `tensor_size(values)` bytes."""
        end = 0
        for value in values:
            for part in (struct.pack("<I", len(value)), value):
                start, end = end, end + len(part)
                self.memory[start:end] = part


def tensor_size(values: Sequence[bytes]) -> int:
    return sum(LENGTH_BYTES + len(value) for value in values)


class SharedMemory:
    """The regions of one connection.

    Args:
        register: make the server map the region (name, number of bytes) of that name in /dev/shm.
        unregister: make the server let go of a region, which it refuses while a request uses it.
    """

    def __init__(
        self, register: Callable[[str, int], Awaitable[None]], unregister: Callable[[str], Awaitable[None]]
    ) -> None:
        self._register = register
        self._unregister = unregister
        self._free: list[Region] = []
        self._given_up: set[str] = set()  # names of regions that the server may still have mapped

    @asynccontextmanager
    async def holding(self, values: Sequence[bytes]) -> AsyncIterator[Region]:
        """A region with this tensor in it, for one request, whose failure has to pass through here.

        Raises:
            SharedMemoryError: there is no room for it, or the server refused it.
            MedImageError: of `register`.
        """
        region = self._take(tensor_size(values)) or await self._create(tensor_size(values))
        try:
            region.write(values)
            yield region
        except BaseException as error:
            self._give_up(region)
            if isinstance(error, TransportError):  # the server may have restarted, and know none of them
                self._give_up_free()
            raise
        self._free.append(region)

    async def close(self) -> None:
        """Make the server let go of all regions; waits a little for those of requests that it still answers."""
        self._give_up_free()
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_TIME_S):
                while await self._release():
                    await asyncio.sleep(RELEASE_POLL_S)

    def _take(self, size: int) -> Region | None:
        """The smallest free region that is large enough; if none is, the largest makes room for a new one."""
        self._free.sort(key=lambda region: len(region.memory))
        for i, region in enumerate(self._free):
            if len(region.memory) >= size:
                return self._free.pop(i)
        if self._free:
            self._give_up(self._free.pop())
        return None

    def _give_up(self, region: Region) -> None:
        region.memory.close()
        self._given_up.add(region.name)

    def _give_up_free(self) -> None:
        while self._free:
            self._give_up(self._free.pop())

    async def _create(self, size: int) -> Region:
        await self._release()
        name = f"medimage-client-{secrets.token_hex(16)}"
        size = max(MIN_REGION_BYTES, 1 << (size - 1).bit_length())  # a power of two, so that it soon suits all requests
        file = FOLDER / name
        try:
            region = Region(name, allocate(file, size))
            try:
                await self._register(name, size)
            except SharedMemoryError:  # the server has not mapped it
                region.memory.close()
                raise
            except BaseException:
                self._give_up(region)
                raise
        finally:
            file.unlink(missing_ok=True)
        return region

    async def _release(self) -> bool:
        """Unregister what was given up; whether the server is there and still uses some of it."""
        for name in sorted(self._given_up):
            try:
                await self._unregister(name)
            except TransportError:
                return False
            except MedImageError:
                continue
            self._given_up.discard(name)
        return bool(self._given_up)


def allocate(file: Path, size: int) -> mmap.mmap:
    """A new file of /dev/shm, mapped, its memory reserved.

    Raises:
        SharedMemoryError: there is no /dev/shm, or not so much room in it.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SharedMemoryError(
            f"cannot reserve {size} bytes in {FOLDER} ({error.strerror}); leave shared_memory out"
        ) from None
