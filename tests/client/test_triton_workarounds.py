"""Calls whose callers go: over a transport in memory that tells what became of each, and over gRPC to a small server of
this process that tells a version."""

import asyncio
import base64
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from medimage_client import AsyncMedImageInsight
from medimage_client.errors import InvalidInput, ServerError, TransportError, Unavailable
from medimage_client.images.encoding import encode_image
from medimage_client.wire import triton_workarounds
from medimage_client.wire.transport import Call
from medimage_client.wire.triton import Endpoint
from medimage_client.wire.triton_workarounds import CANCELLED_CALL, CANCELLED_STREAM, DeferredTransport
from tests.waiting import WAIT_S, until

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
        self.version = None
        self.tells = "2.51.0"  # an exception is raised
        self.version_asked = 0

    async def server_version(self):
        self.version_asked += 1
        self.version = ""
        if isinstance(self.tells, Exception):
            raise self.tells
        self.version = self.tells
        return self.version

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
    transport = DeferredTransport(calls)
    await cancelled_call(transport, calls)
    assert calls.ended == []
    calls.go_on.set()
    await transport.close()
    assert calls.ended == ["by itself"]
    assert calls.is_closed


async def test_call_that_does_not_end_is_cancelled_after_a_while(calls, monkeypatch):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 0.02)
    transport = DeferredTransport(calls)
    await cancelled_call(transport, calls)
    await until(lambda: calls.ended)
    assert calls.ended == ["cancelled"]


async def test_closing_waits_for_no_call_that_somebody_waits_for(calls):
    transport = DeferredTransport(calls)
    asked = asyncio.create_task(transport.infer(CALL, timeout=10.0))
    await calls.begun.get()
    async with asyncio.timeout(triton_workarounds.CANCEL_AFTER_S / 2):
        await transport.close()
    assert calls.is_closed
    calls.go_on.set()
    await asked


async def test_closing_that_is_cut_short_closes_all_the_same(calls):
    transport = DeferredTransport(calls)
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
            await DeferredTransport(calls).infer(Call("medimageinsight_image", {"image": images}, (), {}), timeout=10.0)
        calls.begun = calls.failure = None
        held = weakref.ref(images)
        del images
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("n_steps", range(8))
def test_failure_that_nobody_waits_for_is_not_told_at_the_end_of_the_program(collect, caplog, n_steps):
    """Whether the caller goes before it, with it, or after it."""

    async def program():
        calls = Calls()
        transport = DeferredTransport(calls)
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
    collect()  # which is when asyncio would tell it
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


@pytest.mark.parametrize(
    ("version", "call_is_faulty", "stream_is_faulty"),
    [
        *[(None, True, True), ("", True, True), ("not a version", True, True), ("3", True, True)],
        *[("2.9.0", True, True), ("2.51.0", True, True), ("2.56.1", True, True), ("2.57.0dev", True, True)],
        *[("2.57.0", False, True), ("2.58.1", False, True), ("2.59.0", False, False), ("2.60.0", False, False)],
        *[("2.100.0", False, False), ("3.0.0", False, False), ("1.99.0", True, True)],
    ],
)
def test_version_tells_which_faults_a_triton_has(version, call_is_faulty, stream_is_faulty):
    assert (CANCELLED_CALL.is_in(version), CANCELLED_STREAM.is_in(version)) == (call_is_faulty, stream_is_faulty)


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Tells a version, None for none, as it answers calls: when it is let."""

    def __init__(self, version):
        self.version = version
        self.version_asked = 0
        self.may_tell, self.may_answer, self.has_begun = Event(), Event(), Event()
        self.may_tell.set()
        self.may_answer.set()
        self.ended = []  # by itself | cancelled

    def ServerMetadata(self, request, context):
        self.version_asked += 1
        assert self.may_tell.wait(WAIT_S)
        if self.version is None:
            context.abort(grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'key'")
        return service_pb2.ServerMetadataResponse(name="triton", version=self.version)

    def ModelInfer(self, request, context):
        left = Event()
        context.add_callback(left.set)  # at its end, which comes first where the client cancels
        self.has_begun.set()
        while not self.may_answer.wait(0.005) and not left.is_set():
            pass
        self.ended.append("cancelled" if left.is_set() else "by itself")
        return service_pb2.ModelInferResponse()

    def ModelStreamInfer(self, requests, context):
        next(requests)
        left = Event()
        context.add_callback(left.set)
        try:
            yield service_pb2.ModelStreamInferResponse(error_message="internal error")
            left.wait(0.2)
        finally:  # gRPC does not go on with a stream that was cancelled before it took this from us
            self.ended.append("cancelled" if left.is_set() else "by itself")


@pytest.fixture
def serve():
    """Start a server with this behaviour, at the port of an earlier one if it is told; returns it and its port."""
    servers = []

    def serve(triton, port=0):
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        servers.append(server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        return server, port

    yield serve
    for server in servers:
        server.stop(grace=None).wait()


async def abandon_a_call(transport, triton):
    """Returns when its caller has gone and Triton has it."""
    triton.may_answer.clear()
    triton.has_begun.clear()
    asked = asyncio.create_task(transport.infer(CALL, timeout=WAIT_S))
    await until(triton.has_begun.is_set)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


VERSIONS = [("2.51.0", "by itself"), ("2.60.0", "cancelled"), (None, "by itself")]


@pytest.mark.parametrize(("version", "ended"), VERSIONS)
async def test_call_is_cancelled_with_its_caller_where_triton_bears_it(serve, monkeypatch, version, ended):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 2 * WAIT_S)
    triton = Triton(version)
    _, port = serve(triton)
    connection = Endpoint.parse(f"grpc://127.0.0.1:{port}").connect(shared_memory=False)
    transport = DeferredTransport(connection)
    for _ in range(3):
        await transport.infer(CALL, timeout=WAIT_S)
    await until(lambda: connection.version is not None)
    await abandon_a_call(transport, triton)
    if ended == "cancelled":
        await until(lambda: len(triton.ended) == 4)
    triton.may_answer.set()
    await until(lambda: len(triton.ended) == 4)
    await transport.close()
    assert triton.ended[3] == ended
    assert triton.version_asked == 1


async def test_first_call_waits_for_no_version_and_counts_as_one_to_a_faulty_triton(serve, monkeypatch):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 2 * WAIT_S)
    triton = Triton("2.60.0")
    triton.may_tell.clear()
    _, port = serve(triton)
    transport = DeferredTransport(Endpoint.parse(f"grpc://127.0.0.1:{port}").connect(shared_memory=False))
    await transport.infer(CALL, timeout=WAIT_S)
    await abandon_a_call(transport, triton)
    triton.may_answer.set()
    await until(lambda: len(triton.ended) == 2)
    assert triton.ended == ["by itself", "by itself"]
    await asyncio.wait_for(transport.close(), WAIT_S)  # though no version has come
    triton.may_tell.set()


@pytest.mark.parametrize(("before", "after"), [("2.60.0", "2.51.0"), ("2.51.0", "2.60.0"), (None, "2.60.0")])
async def test_version_is_asked_for_again_after_a_lost_connection(serve, before, after):
    old, new = Triton(before), Triton(after)
    server, port = serve(old)
    connection = Endpoint.parse(f"grpc://127.0.0.1:{port}").connect(shared_memory=False)
    transport = DeferredTransport(connection)
    await transport.infer(CALL, timeout=WAIT_S)
    await until(lambda: connection.version is not None)
    server.stop(grace=None).wait()
    with pytest.raises(TransportError):
        await transport.infer(CALL, timeout=WAIT_S)
    serve(new, port)
    async with asyncio.timeout(WAIT_S):
        while connection.version != after:
            with suppress(TransportError):
                await transport.infer(CALL, timeout=WAIT_S)
            await asyncio.sleep(0.05)  # gRPC lets a second pass before it tries again
    asked = new.version_asked  # more than once where a call still failed as the server came
    for _ in range(3):
        await transport.infer(CALL, timeout=WAIT_S)
    await transport.close()
    assert new.version_asked == asked


async def test_server_that_does_not_tell_is_asked_once(calls):
    calls.tells = ServerError("restricted")
    calls.go_on.set()
    transport = DeferredTransport(calls)
    for _ in range(3):
        await transport.infer(CALL, timeout=WAIT_S)
        await asyncio.sleep(0)
    assert calls.version_asked == 1
    await transport.close()


@pytest.mark.parametrize(("version", "ended"), VERSIONS)
async def test_stream_that_fails_is_left_at_once_where_triton_bears_it(serve, version, ended):
    triton = Triton(version)
    _, port = serve(triton)
    connection = Endpoint.parse(f"grpc://127.0.0.1:{port}").connect(shared_memory=False)
    with suppress(ServerError, Unavailable):
        await connection.server_version()
    with pytest.raises(ServerError, match="internal error"):
        async for _ in DeferredTransport(connection).stream(CALL, timeout=WAIT_S):
            pass
    await until(lambda: triton.ended)
    assert triton.ended == [ended]
    await connection.close()
