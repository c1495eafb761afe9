"""Calls whose callers go, over a transport in memory that tells what became of each."""

import asyncio
import base64
import gc
import weakref
from contextlib import suppress

import numpy as np
import pytest

from medimage_client import AsyncMedImageInsight
from medimage_client.errors import InvalidInput
from medimage_client.images.encoding import encode_image
from medimage_client.wire import patience
from medimage_client.wire.patience import PatientTransport
from medimage_client.wire.transport import Call

CALL = Call("medimageinsight_image", {}, (), {})


class Calls:
    """A transport whose calls go on until they are told to end."""

    def __init__(self):
        self.begun = asyncio.Queue()
        self.second = asyncio.Event()
        self.go_on = asyncio.Event()
        self.failure = None  # of the first call, with which it does not wait longer than for the second
        self.ended = []  # by itself | cancelled
        self.is_closed = False

    async def infer(self, call, *, timeout):
        n = self.begun.qsize()
        self.begun.put_nowait(call)
        if n == 1:
            self.second.set()
        try:
            await (self.second if n == 0 and self.failure else self.go_on).wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        if n == 0 and self.failure:
            raise self.failure
        self.ended.append("by itself")
        return {}

    async def close(self):
        self.is_closed = True


@pytest.fixture
def calls():
    return Calls()


async def cancelled_call(transport, calls):
    asked = asyncio.create_task(transport.infer(CALL, timeout=10.0))
    await calls.begun.get()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_caller_goes_at_once_and_the_call_ends_by_itself(calls):
    transport = PatientTransport(calls)
    await cancelled_call(transport, calls)
    assert calls.ended == []
    calls.go_on.set()
    await transport.close()
    assert calls.ended == ["by itself"]
    assert calls.is_closed


async def test_call_that_does_not_end_is_cancelled_after_a_while(calls, monkeypatch):
    monkeypatch.setattr(patience, "LEFT_ALONE_S", 0.02)
    transport = PatientTransport(calls)
    await cancelled_call(transport, calls)
    async with asyncio.timeout(10):
        while not calls.ended:
            await asyncio.sleep(0.001)
    assert calls.ended == ["cancelled"]


async def test_closing_waits_for_no_call_that_somebody_waits_for(calls):
    transport = PatientTransport(calls)
    asked = asyncio.create_task(transport.infer(CALL, timeout=10.0))
    await calls.begun.get()
    async with asyncio.timeout(patience.LEFT_ALONE_S / 2):
        await transport.close()
    assert calls.is_closed
    calls.go_on.set()
    await asked


async def test_closing_that_is_cut_short_closes_all_the_same(calls):
    transport = PatientTransport(calls)
    await cancelled_call(transport, calls)
    closing = asyncio.create_task(transport.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert (calls.is_closed, calls.ended) == (True, [])


async def test_failed_call_holds_its_images_no_longer_than_its_error(calls):
    images = np.array([b"an image"], dtype=np.object_)
    calls.failure = InvalidInput("not an image")
    calls.second.set()
    gc.disable()
    try:
        with suppress(InvalidInput):
            await PatientTransport(calls).infer(Call("medimageinsight_image", {"image": images}, (), {}), timeout=10.0)
        calls.begun = calls.failure = None
        held = weakref.ref(images)
        del images
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("n_steps", range(8))
def test_failure_that_nobody_waits_for_is_not_told_at_the_end_of_the_program(caplog, n_steps):
    """Whether the caller goes before it, with it, or after it."""

    async def program():
        calls = Calls()
        transport = PatientTransport(calls)
        asked = asyncio.create_task(transport.infer(CALL, timeout=10.0))
        await calls.begun.get()
        calls.failure = InvalidInput("not an image")
        calls.go_on.set()
        for _ in range(n_steps):
            await asyncio.sleep(0)
        asked.cancel()
        with suppress(asyncio.CancelledError, InvalidInput):
            await asked
        await transport.close()
        return calls.ended

    assert asyncio.run(program()) == []
    gc.collect()  # which is when asyncio would tell it
    assert caplog.records == []


async def test_bad_input_leaves_the_call_of_another_to_end(calls, monkeypatch, grey):
    """Though its result is not wanted any more."""
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: calls)
    calls.failure = InvalidInput("not an image")
    image = base64.b64encode(encode_image(grey(7))).decode()
    request = {"input_data": {"columns": ["image", "text"], "data": [[image, "heart"]]}}
    async with AsyncMedImageInsight("grpc://localhost") as client:
        with pytest.raises(InvalidInput):
            await client.score(request)
        assert (calls.begun.qsize(), calls.ended) == (2, [])
        calls.go_on.set()
    assert calls.ended == ["by itself"]
