"""Connections that make no progress, on real sockets of this machine, with uvicorn in the test's event loop."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from time import perf_counter

import pytest
import uvicorn

from medimage_server.endpoint import http_protocol

CHECK_EVERY_S = 0.1
KEEP_ALIVE_S = 0.4  # uvicorn's, for idle connections
WAIT_S = 10.0
PART_BYTES = 2**16  # of an answer
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


class Application:
    """Answers the length of the body, or `answer`, after `seconds`; `reads` the body before that, or not at all."""

    def __init__(self):
        self.reads = True
        self.answer = None
        self.seconds = 0.0
        self.n_requests = 0

    async def __call__(self, scope, receive, send):
        self.n_requests += 1
        n_bytes, more = 0, self.reads
        while more:
            message = await receive()
            n_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
        await asyncio.sleep(self.seconds)
        body = str(n_bytes).encode() if self.answer is None else self.answer
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        for n in range(0, len(body), PART_BYTES):
            await send({"type": "http.response.body", "body": body[n:][:PART_BYTES], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def application():
    return Application()


@pytest.fixture
async def connect(application, monkeypatch):
    """Opens connections to the server, (reader, writer)."""
    monkeypatch.setattr(http_protocol, "CHECK_EVERY_S", CHECK_EVERY_S)
    async with serving(application) as connect:
        yield connect


@asynccontextmanager
async def serving(application):
    config = uvicorn.Config(
        application,
        http=http_protocol.HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.001)
    writers = []

    async def connect(receive_buffer_bytes=8192):
        opened = socket.socket()
        if receive_buffer_bytes is not None:  # else the kernel's own, of megabytes
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=opened, limit=2**15)
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()
    server.should_exit = True
    await running


async def rest(reader):
    """All until the end of the connection, and the seconds that it took; nothing is left out by a reset."""
    start, received = perf_counter(), bytearray()
    async with asyncio.timeout(WAIT_S):
        try:
            while part := await reader.read(65536):
                received += part
        except ConnectionError:
            pass
    return bytes(received), perf_counter() - start


async def test_requests_are_answered_one_after_the_other(connect, application):
    reader, writer = await connect()
    for n in (3, 5):
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % n + b"x" * n)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(1) == b"%d" % n
    assert application.n_requests == 2


async def test_half_a_head_is_told_and_the_connection_ended(connect, application):
    reader, writer = await connect()
    writer.write(HEAD)
    received, seconds = await rest(reader)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["message"] == "The head of the request has not come in time."
    assert CHECK_EVERY_S <= seconds < 20 * CHECK_EVERY_S
    assert application.n_requests == 0


async def test_head_that_trickles_is_ended_too(connect):
    reader, writer = await connect()

    async def trickle():
        for byte in HEAD * 50:
            writer.write(bytes([byte]))
            await asyncio.sleep(CHECK_EVERY_S / 10)

    trickling = asyncio.create_task(trickle())
    received, seconds = await rest(reader)
    trickling.cancel()
    assert received.startswith(b"HTTP/1.1 400 ")
    assert seconds < 20 * CHECK_EVERY_S


async def test_connection_without_a_byte_is_ended_without_a_word(connect):
    reader, _ = await connect()
    received, seconds = await rest(reader)
    assert received == b""
    assert CHECK_EVERY_S <= seconds < 20 * CHECK_EVERY_S


async def test_connection_that_idles_after_an_answer_has_the_time_of_idle_ones(connect):
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 0\r\n\r\n")
    received, seconds = await rest(reader)
    assert received.endswith(b"\r\n\r\n0")
    assert 0.9 * KEEP_ALIVE_S <= seconds < KEEP_ALIVE_S + 2


async def test_half_a_second_head_after_an_answer_is_told(connect):
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 0\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n0")
    writer.write(HEAD)
    received, _ = await rest(reader)
    assert received.startswith(b"HTTP/1.1 400 ")


async def test_answer_that_is_not_read_is_given_up(connect, application):
    application.answer = b"x" * 2**25  # more than the kernel takes
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 0\r\n\r\n")
    await asyncio.sleep(6 * CHECK_EVERY_S)
    received, seconds = await rest(reader)
    assert 0 < len(received) < len(application.answer)
    assert seconds < WAIT_S


async def test_answer_that_is_read_slowly_is_sent_to_its_end(connect, application):
    application.answer = b"x" * 2**24  # more than the kernel takes
    reader, writer = await connect(receive_buffer_bytes=None)
    writer.write(HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n")
    n_bytes = 0
    while part := await reader.read(2**16):
        n_bytes += len(part)
        await asyncio.sleep(len(part) / 12e6)  # as 300 kB/s are to the real CHECK_EVERY_S
    assert n_bytes > len(application.answer)


async def test_answer_that_takes_long_to_make_is_waited_for(connect, application):
    application.seconds = 6 * CHECK_EVERY_S
    reader, writer = await connect()
    writer.write(HEAD + b"connection: close\r\ncontent-length: 3\r\n\r\nabc")
    assert (await rest(reader))[0].endswith(b"\r\n\r\n3")


async def test_body_that_does_not_come_is_left_to_the_application(connect, application):
    reader, writer = await connect()
    writer.write(HEAD + b"connection: close\r\ncontent-length: 3\r\n\r\na")
    await asyncio.sleep(6 * CHECK_EVERY_S)
    writer.write(b"bc")
    assert (await rest(reader))[0].endswith(b"\r\n\r\n3")


@pytest.mark.parametrize(
    "head, parts",
    [
        (b"content-length: 9\r\n\r\n", [b"x"]),
        (b"content-length: 2\r\n\r\n", [b"x", b"x"]),  # after which it says nothing more
        (b"content-length: 999\r\n\r\n", [b"x"] * 500),
        (b"transfer-encoding: chunked\r\n\r\n", [b"1", b"\r\nx\r\n"] * 250),
    ],
)
async def test_body_that_still_comes_after_its_answer_holds_no_connection(connect, application, head, parts):
    application.reads = False
    reader, writer = await connect()
    writer.write(HEAD + head)
    await reader.readuntil(b"\r\n\r\n0")

    async def drip():
        for part in parts:
            writer.write(part)
            await asyncio.sleep(CHECK_EVERY_S)

    dripping = asyncio.create_task(drip())
    _, seconds = await rest(reader)
    dripping.cancel()
    assert seconds < 20 * CHECK_EVERY_S
    assert application.n_requests == 1


async def test_body_that_ends_after_its_answer_leaves_the_connection_for_the_next_request(connect, application):
    application.reads = False
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 2\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n0")
    writer.write(b"xx" + HEAD + b"connection: close\r\n\r\n")
    assert (await rest(reader))[0].endswith(b"\r\n\r\n0")
    assert application.n_requests == 2


async def test_caller_that_goes_leaves_no_check_behind(connect):
    for sent in (b"", HEAD, HEAD + b"content-length: 3\r\n\r\na"):
        _, writer = await connect()
        writer.write(sent)
        await asyncio.sleep(0.01)
        writer.close()
    await asyncio.sleep(3 * CHECK_EVERY_S)  # a check of a closed connection would be an error of the loop
