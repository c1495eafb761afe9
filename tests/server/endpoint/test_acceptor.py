"""Who holds connections open keeps nobody out: real sockets, with uvicorn's protocol in the test's event loop."""

import asyncio
import errno
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from functools import partial
from shutil import which

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from medimage_server.endpoint import acceptor as module
from medimage_server.endpoint import http_protocol
from medimage_server.endpoint.acceptor import Acceptor, mark_authenticated, network_of
from medimage_server.endpoint.http_protocol import HttpProtocol
from medimage_server.endpoint.responses import Refusal
from tests.waiting import until

WAIT_S = 10.0
KEEP_ALIVE_S = 20
GET = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"


async def application(scope, receive, send):
    """Authenticates who asks for /pass; answers /slow after a message of the body."""
    status = 200
    if scope["path"] == "/pass":
        try:
            mark_authenticated(scope)
        except Refusal as refusal:
            status = refusal.status
    if scope["path"] == "/slow":
        await receive()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def opened(context=None):
    """An acceptor; gives a function that connects to it."""
    config = uvicorn.Config(application, lifespan="off", log_config=None, timeout_keep_alive=KEEP_ALIVE_S, ws="none")
    config.load()
    make = partial(HttpProtocol, config=config, server_state=ServerState(), app_state={})
    writers = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        accepting = asyncio.create_task(Acceptor(listener, make, context).accept())

        async def connect(**options):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
            writers.append(writer)
            return reader, writer

        try:
            yield connect
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            for writer in writers:
                writer.close()


async def ask(connection, path=b"live"):
    """The status of an answer; 0 of a connection that has ended."""
    reader, writer = connection
    writer.write(GET % path)
    try:
        async with asyncio.timeout(WAIT_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    return int(head.split()[1])


async def has_ended(connection):
    reader, _ = connection
    try:
        async with asyncio.timeout(WAIT_S):
            return await reader.read() == b""
    except ConnectionError:
        return True


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNAUTHENTICATED_PER_ADDRESS", 3)


# uvloop drops a socket that it has accepted for who is cancelled; it is closed as garbage
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_accepting_that_ends_at_any_moment_leaves_no_connection_to_wait_for(run):
    """uvicorn waits for those of its list before it ends."""

    async def connections_left(steps):
        config = uvicorn.Config(application, lifespan="off", log_config=None, ws="none")
        config.load()
        state = ServerState()
        make = partial(HttpProtocol, config=config, server_state=state, app_state={})
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            accepting = asyncio.create_task(Acceptor(listener, make, None).accept())
            for _ in range(steps):
                await asyncio.sleep(0)
            accepting.cancel()
            await asyncio.wait([accepting])
            for connection in list(state.connections):  # as uvicorn's shutdown
                connection.shutdown()
            with suppress(TimeoutError):
                await until(lambda: not state.connections, within=1.0)
            return len(state.connections)

    async def of_each_moment():
        return [await connections_left(steps) for steps in range(12)]

    assert run(of_each_moment()) == [0] * 12


async def test_newest_is_accepted_and_the_oldest_unauthenticated_one_goes(few):
    async with opened() as connect:
        silent = [await connect() for _ in range(5)]
        assert await ask(await connect()) == 200
        assert await ask(silent[-1]) == 200
        for connection in silent[:3]:
            assert await has_ended(connection)


async def test_authenticated_one_stays_whoever_comes(few):
    async with opened() as connect:
        known = await connect()
        assert await ask(known, b"pass") == 200
        for _ in range(10):
            await connect()
        assert await ask(await connect()) == 200
        assert await ask(known, b"pass") == 200


async def test_one_that_waits_goes_before_one_that_is_answered(few, monkeypatch):
    monkeypatch.setattr(module, "NEWCOMER_S", 0.0)
    async with opened() as connect:
        at_work = await connect()
        at_work[1].write(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n")
        idle = [await connect() for _ in range(4)]
        assert await ask(await connect()) == 200
        assert await has_ended(idle[0])
        at_work[1].write(b"x")
        assert (await at_work[0].readline()).startswith(b"HTTP/1.1 200 ")


async def test_unauthenticated_ones_that_are_all_at_work_keep_no_newcomer_out(few):
    async with opened() as connect:
        at_work = [await connect() for _ in range(3)]
        for _, writer in at_work:
            writer.write(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n")
        newcomer = await connect()
        await connect()  # comes before the other has asked
        assert await ask(newcomer) == 200
        assert await ask(await connect()) == 200
        assert await has_ended(at_work[0])


async def test_all_unauthenticated_ones_together_have_a_bound(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNAUTHENTICATED", 3)
    addresses = iter(range(100))
    monkeypatch.setattr(module, "network_of", lambda host: str(next(addresses)))
    async with opened() as connect:
        silent = [await connect() for _ in range(4)]
        assert await ask(silent[-1]) == 200
        assert await has_ended(silent[0])


async def test_authenticated_ones_have_a_bound_and_are_told(monkeypatch):
    monkeypatch.setattr(module, "MAX_AUTHENTICATED", 2)
    async with opened() as connect:
        authenticated = [await connect() for _ in range(3)]
        assert [await ask(known, b"pass") for known in authenticated[:2]] == [200, 200]
        for reader, writer in authenticated[:2]:  # at work, so that none can give way
            writer.write(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        assert await ask(authenticated[2], b"pass") == 503


async def test_idle_authenticated_one_gives_way_to_another(monkeypatch):
    monkeypatch.setattr(module, "MAX_AUTHENTICATED", 2)
    async with opened() as connect:
        authenticated = [await connect() for _ in range(3)]
        assert [await ask(known, b"pass") for known in authenticated] == [200, 200, 200]
        assert await has_ended(authenticated[0])
        assert await ask(authenticated[1], b"pass") == 200


async def test_unauthenticated_one_may_be_idle_for_less_long(monkeypatch):
    monkeypatch.setattr(module, "UNAUTHENTICATED_IDLE_S", 0.2)
    async with opened() as connect:
        known, unknown = await connect(), await connect()
        assert [await ask(known, b"pass"), await ask(unknown)] == [200, 200]
        assert await has_ended(unknown)
        assert await ask(known) == 200


async def test_failed_accept_is_tried_again(monkeypatch, caplog):
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [OSError(errno.EMFILE, "Too many open files")] * 2

    async def sock_accept(listener):
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", sock_accept)
    async with opened() as connect:
        assert await ask(await connect()) == 200
    told = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert told == ["cannot accept a connection: Too many open files"]


async def test_unauthenticated_one_goes_where_there_is_no_descriptor_for_one_more(monkeypatch):
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, []

    async def sock_accept(listener):
        if failures:
            raise failures.pop()
        taken = await accept(listener)
        failures.append(OSError(errno.EMFILE, "Too many open files"))
        return taken

    monkeypatch.setattr(http_protocol, "CHECK_EVERY_S", 10 * WAIT_S)  # after which a silent one would go anyway
    async with opened() as connect:
        known = await connect()
        assert await ask(known, b"pass") == 200
        monkeypatch.setattr(loop, "sock_accept", sock_accept)
        unknown = await connect()  # by the accept that was waiting
        await connect()
        assert await has_ended(unknown)
        assert await ask(known) == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days=1", "-subj=/CN=localhost"]
    command += [f"-keyout={folder / 'key'}", f"-out={folder / 'pem'}"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem", folder / "key")
    return context


async def test_silent_handshakes_are_counted_and_end(certificate, few, monkeypatch):
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.5)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with opened(certificate) as connect:
        silent = [await connect() for _ in range(5)]
        assert await ask(await connect(ssl=trusting)) == 200
        assert await has_ended(silent[0])  # at once, as the oldest
        assert await has_ended(silent[-1])  # after the time for a handshake
        plain = await connect()
        assert await ask(plain) == 0
        assert await ask(await connect(ssl=trusting)) == 200


async def test_end_of_tls_that_is_not_answered_is_cut(certificate, monkeypatch):
    monkeypatch.setattr(module, "UNAUTHENTICATED_IDLE_S", 0.1)
    monkeypatch.setattr(module, "TLS_END_S", 0.2)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    async with opened(certificate) as connect:
        reader, writer = await connect()

        async def step(function, *arguments):
            while True:
                with suppress(ssl.SSLWantReadError):
                    result = function(*arguments)
                    writer.write(outgoing.read())
                    return result
                writer.write(outgoing.read())
                incoming.write(await reader.read(2**16))

        await step(tls.do_handshake)
        await step(tls.write, GET % b"live")
        assert (await step(tls.read, 100)).startswith(b"HTTP/1.1 200 ")
        async with asyncio.timeout(WAIT_S):  # from here on what comes is read, but not answered
            with suppress(ConnectionError):
                while await reader.read(2**16):
                    pass


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("127.0.0.1", "loopback"),
        ("127.1.2.3", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.9", "loopback"),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_what_counts_as_one_address(host, network):
    assert network_of(host) == network
