"""Regions of shared memory against a server that maps files of /dev/shm as Triton does."""

import asyncio
import errno
import mmap
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from medimage_client import errors
from medimage_client.wire import shared_memory
from medimage_client.wire.error_reader import shared_memory_error, unified_error
from medimage_client.wire.shared_memory import SharedMemory

MIB = 2**20
VALUES = [b"first" * 1000, b"", b"\0last"]


class Server:
    """What a Triton does with the memory of its clients."""

    def __init__(self):
        self.mapped = {}
        self.in_use = set()
        self.unregister_calls = 0
        self.failure = None  # of the next registration
        self.gone = False

    async def register(self, name, size):
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        with (shared_memory.FOLDER / name).open("r+b") as file:
            self.mapped[name] = mmap.mmap(file.fileno(), size)

    async def unregister(self, name):
        self.unregister_calls += 1
        if self.gone:
            raise errors.TransportError("cannot reach the server: refused")
        if name in self.in_use:
            raise errors.ServerError(f"Cannot unregister shared memory region '{name}', it is currently in use.")
        self.mapped.pop(name, None)

    def read(self, region, size):
        return self.mapped[region.name][:size]


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def memory(server):
    return SharedMemory(server.register, server.unregister)


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """Of this test alone, for others run at the same time."""
    with TemporaryDirectory(dir=shared_memory.FOLDER) as name:
        folder = Path(name)
        monkeypatch.setattr(shared_memory, "FOLDER", folder)
        yield folder
        assert not list(folder.iterdir())


async def hold(memory, size):
    """The name of the region in which a request of so many bytes travelled."""
    async with memory.holding([bytes(size - 4)]) as region:
        return region.name


async def test_server_reads_the_tensor_as_tritonclient_writes_it(memory, server):
    expected = serialize_byte_tensor(np.array(VALUES, dtype=np.object_)).item()
    async with memory.holding(VALUES) as region:
        assert shared_memory.tensor_size(VALUES) == len(expected)
        assert server.read(region, len(expected)) == expected


async def test_region_has_no_name_any_more_when_it_is_used(memory, server):
    async with memory.holding(VALUES):
        assert not list(shared_memory.FOLDER.iterdir())


async def test_only_this_user_may_open_a_region(server):
    modes = []

    async def register(name, size):
        modes.append((shared_memory.FOLDER / name).stat().st_mode & 0o777)

    await hold(SharedMemory(register, server.unregister), 100)
    assert modes == [0o600]


async def test_regions_are_used_again_and_grow_in_powers_of_two(memory, server):
    first = await hold(memory, 100)
    assert await hold(memory, MIB) == first
    second = await hold(memory, MIB + 1)
    assert [len(region) for region in server.mapped.values()] == [2 * MIB]  # the first made room for it
    assert await hold(memory, 100) == second


async def test_requests_at_the_same_time_have_regions_of_their_own(memory, server):
    async with memory.holding([b"a"]) as a, memory.holding([b"b"]) as b:
        assert (server.read(a, 5), server.read(b, 5)) == (b"\1\0\0\0a", b"\1\0\0\0b")
    assert {await hold(memory, 9), await hold(memory, 9)} <= {a.name, b.name}


@pytest.mark.parametrize("failure", [errors.InvalidInput, errors.ServerError, asyncio.CancelledError])
async def test_region_of_a_failed_request_is_not_used_again_and_released(memory, server, failure):
    with pytest.raises(failure):
        async with memory.holding(VALUES) as region:
            raise failure("row 0: is wrong")
    assert region.memory.closed
    assert await hold(memory, 100) != region.name
    assert region.name not in server.mapped


async def test_region_that_the_server_still_reads_is_released_later(memory, server):
    with pytest.raises(errors.RequestTimeout):
        async with memory.holding(VALUES) as region:
            server.in_use.add(region.name)
            raise errors.RequestTimeout("no answer within 1 s")
    await hold(memory, 100)
    assert region.name in server.mapped
    closing = asyncio.create_task(memory.close())
    await asyncio.sleep(2 * shared_memory.RELEASE_POLL_S)
    assert list(server.mapped) == [region.name]
    server.in_use.clear()
    await closing
    assert server.mapped == {}


async def test_close_does_not_wait_for_ever(memory, server, monkeypatch):
    monkeypatch.setattr(shared_memory, "RELEASE_TIME_S", 0.2)
    server.in_use.add(await hold(memory, 100))
    async with asyncio.timeout(2):
        await memory.close()
    assert len(server.mapped) == 1


async def test_close_asks_a_server_that_is_gone_once(memory, server):
    await hold(memory, 100)
    server.gone = True
    await memory.close()
    assert server.unregister_calls == 1


async def test_lost_connection_gives_up_all_regions(memory, server):
    async with memory.holding([b"a"]):
        other = await hold(memory, 100)
    with pytest.raises(errors.TransportError):
        async with memory.holding([b"a"]) as region:
            raise errors.TransportError("the server has restarted")
    assert await hold(memory, 100) not in {other, region.name}
    assert await hold(memory, 100) not in {other, region.name}


async def test_refused_registration_leaves_nothing_and_is_not_asked_for_again(memory, server):
    server.failure = errors.SharedMemoryError("the server does not take shared memory")
    with pytest.raises(errors.SharedMemoryError):
        await hold(memory, 100)
    await memory.close()
    assert server.unregister_calls == 0


async def test_registration_cut_short_leaves_no_file_and_is_taken_back(server):
    async def register(name, size):
        await server.register(name, size)
        await asyncio.Event().wait()

    memory = SharedMemory(register, server.unregister)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await hold(memory, 100)
    assert not list(shared_memory.FOLDER.iterdir())
    await memory.close()
    assert server.mapped == {}


async def test_full_memory_is_one_clear_error(memory, folder, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(errors.SharedMemoryError) as refused:
        await hold(memory, 100)
    assert str(refused.value) == (
        f"cannot reserve 1048576 bytes in {folder} (No space left on device); leave shared_memory out"
    )


async def test_machine_without_shared_memory_is_one_clear_error(memory, monkeypatch):
    monkeypatch.setattr(shared_memory, "FOLDER", Path("/nowhere"))
    with pytest.raises(errors.SharedMemoryError, match=r"in /nowhere \(No such file or directory\); leave"):
        await hold(memory, 100)


@pytest.mark.parametrize(
    ("status", "message"),  # recorded with Triton 2.51
    [
        ("StatusCode.INTERNAL", "Unable to open shared memory region: '/x'"),
        ("500", "Unable to open shared memory region: '/x'"),
        ("StatusCode.UNAVAILABLE", "This protocol is restricted, expecting header 'triton-grpc-protocol-admin'"),
        ("403", "This API is restricted, expecting header 'admin'"),
    ],
    ids=["another-machine-grpc", "another-machine-http", "restricted-grpc", "restricted-http"],
)
def test_refusal_of_the_server_is_told_from_a_lost_connection(status, message):
    error = shared_memory_error(unified_error(InferenceServerException(message, status=status)))
    assert type(error) is errors.SharedMemoryError
    assert str(error) == (
        f"the server does not take shared memory ({message}); it has to run on this machine, see the same /dev/shm and "
        "leave the shared-memory API open; else leave shared_memory out"
    )


@pytest.mark.parametrize(
    ("status", "message", "error_type"),
    [
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", errors.TransportError),
        ("StatusCode.UNAVAILABLE", "Server not ready", errors.NotReady),
        ("504", "upstream request timeout", errors.RequestTimeout),
    ],
)
def test_failure_of_the_connection_stays_one_and_is_retried(status, message, error_type):
    error = shared_memory_error(unified_error(InferenceServerException(message, status=status)))
    assert type(error) is error_type


@pytest.mark.parametrize("status", ["StatusCode.NOT_FOUND", "404"])
def test_region_that_the_server_has_lost_is_a_lost_connection_and_not_a_missing_model(status):
    error = unified_error(InferenceServerException("Unable to find shared memory region: 'x'", status=status))
    assert type(error) is errors.TransportError
