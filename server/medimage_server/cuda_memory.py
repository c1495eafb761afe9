"""CUDA devices and their memory, of the driver: what is free, and blocks outside onnxruntime's arenas.

onnxruntime's Python API gives device memory from an arena of its own, which grows by powers of two: a KV cache of 26 GB
took 35 GB of it. The driver's library, unlike the runtime's, has the same name with every CUDA.
"""

import ctypes
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray

LIBRARY = "libcuda.so.1"
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY of cuda.h


class DeviceMemory:
    """A block of zeros on a device, freed with this object.

    Args:
        n_bytes: more than none.

    Raises:
        OSError: this machine has no CUDA driver.
        MemoryError: the block does not fit.
    """

    def __init__(self, n_bytes: int, device_id: int) -> None:
        address = ctypes.c_uint64()
        with _context(device_id):
            _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(n_bytes))
            self.address = int(address.value)
            weakref.finalize(self, _free, self.address, device_id).atexit = False  # the driver may be gone by then
            _call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(n_bytes))


def device_count() -> int:
    """How many CUDA devices this process sees; 0 also without a driver."""
    count = ctypes.c_int()
    try:
        _call("cuInit", ctypes.c_uint(0))
        _call("cuDeviceGetCount", ctypes.byref(count))
    except OSError:
        return 0
    return count.value


def free_and_total(device_id: int) -> tuple[int, int]:
    """Bytes of a device that nobody has taken, and that it has.

    Raises:
        OSError: this machine has no CUDA driver.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _context(device_id):
        _call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def pinned(shape: tuple[int, ...], device_id: int) -> NDArray[np.float32]:
    """An array in pinned memory of the host, into which a device copies without a detour; not initialised.

    Raises:
        OSError, MemoryError: the driver does not give it.
    """
    address = ctypes.c_void_p()
    n = math.prod(shape)
    with _context(device_id):
        _call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(4 * n), ctypes.c_uint(0))
    assert address.value
    buffer = (ctypes.c_float * n).from_address(address.value)
    weakref.finalize(buffer, _free_pinned, address.value, device_id).atexit = False  # see above
    return np.ctypeslib.as_array(buffer).reshape(shape)


@contextmanager
def _context(device_id: int) -> Iterator[None]:
    """Make the context that onnxruntime, too, has on a device the one of this thread."""
    _call("cuCtxPushCurrent_v2", _primary_context(device_id))
    try:
        yield
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@cache
def _primary_context(device_id: int) -> ctypes.c_void_p:
    """It is never released, for memory goes with it."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", ctypes.c_uint(0))
    _call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(device_id))
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    return context


def _call(function: str, *arguments: object) -> None:
    if error := getattr(_driver(), function)(*arguments):
        kind = MemoryError if error == OUT_OF_MEMORY else OSError
        raise kind(f"{function} of the CUDA driver failed with error {error}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)


def _free(address: int, device_id: int) -> None:
    with _context(device_id):
        _call("cuMemFree_v2", ctypes.c_uint64(address))


def _free_pinned(address: int, device_id: int) -> None:
    with _context(device_id):
        _call("cuMemFreeHost", ctypes.c_void_p(address))
