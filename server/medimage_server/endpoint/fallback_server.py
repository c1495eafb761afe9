"""Answers callers while there is no worker; without an answer they would wait for minutes.

The parent holds the listening socket, from the beginning, so that nobody else takes the port while Triton starts.
Connections rest in it until a worker takes them, which is right for the second in which one is started again, and wrong
where that takes long.
"""

import asyncio
import socket
import ssl
import uuid
from contextlib import ExitStack, suppress
from http import HTTPStatus
from threading import Thread
from typing import Self

from medimage_server.endpoint.responses import RECOVERY_S, error_body
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.tls import tls_context
from medimage_server.errors import LaunchError

MAX_CALLERS = 256  # at once, from their accept on; more are told by the end of their connection
HEAD_S = 0.5  # for the head of a request, which nobody reads
BODY_S = 0.5  # to read what comes of a body, which would break the connection before the answer is read
HANDSHAKE_S = 1.0
PAUSE_S = 0.1  # after a failed accept: the command needs descriptors itself, to start workers
MESSAGE = "the endpoint is being started; try again"


class FallbackServer:
    """Open or closed; a context in which it is open first and closed last.

    Args:
        listener: of the endpoint.
        settings: with the certificate, if there is one.
    """

    def __init__(self, listener: socket.socket, settings: EndpointSettings) -> None:
        self.listener = listener
        self._settings = settings
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Answer from now on; nothing if no descriptor or thread is left for it, and then it may be asked again."""
        if self._thread is not None:
            return
        with ExitStack() as held, suppress(OSError, RuntimeError):
            listener = held.enter_context(self.listener.dup())
            listener.setblocking(False)
            runner = held.enter_context(asyncio.Runner(loop_factory=asyncio.new_event_loop))
            self._loop, self._closing = runner.get_loop(), asyncio.Event()
            until_closed = ExitStack()
            thread = Thread(target=self._run, args=(runner, listener, until_closed), daemon=True)
            thread.start()
            until_closed.push(held.pop_all())
            self._thread = thread

    def close(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._thread = None

    def _run(self, runner: asyncio.Runner, listener: socket.socket, held: ExitStack) -> None:
        with held:
            runner.run(self._receive(listener))

    async def _receive(self, listener: socket.socket) -> None:
        accepting = self._loop.create_task(self._accept(listener, self._context()))
        await self._closing.wait()
        accepting.cancel()
        await asyncio.wait([accepting])

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        """asyncio's own server would count callers after their handshake alone."""
        callers: set[asyncio.Task[None]] = set()  # else nobody would hold them
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(PAUSE_S)
                continue
            if len(callers) >= MAX_CALLERS:
                sock.close()
                continue
            caller = self._loop.create_task(self._receive_one(sock, context))
            callers.add(caller)
            caller.add_done_callback(callers.discard)

    async def _receive_one(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        handshake_s = None if context is None else HANDSHAKE_S
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=context, ssl_handshake_timeout=handshake_s
            )
        except (OSError, asyncio.CancelledError):
            sock.close()
            return
        await self._answer(reader, asyncio.StreamWriter(transport, protocol, reader, self._loop))

    def _context(self) -> ssl.SSLContext | None:
        """None also where the certificate has gone: what is told then is at least the end of the connection."""
        try:
            return tls_context(self._settings)
        except LaunchError:
            return None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(HEAD_S):
                    await reader.readuntil(b"\r\n\r\n")
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(BODY_S):
                    writer.write(unavailable_response())
                    if writer.can_write_eof():
                        writer.write_eof()
                    while await reader.read(2**16):
                        pass
        finally:
            writer.transport.abort()  # the answer has gone, and TLS would wait for an end from the other side


def unavailable_response() -> bytes:
    """503, as a worker would tell it."""
    request_id = str(uuid.uuid4())
    body = error_body(HTTPStatus.SERVICE_UNAVAILABLE, MESSAGE, request_id)
    head = [
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"retry-after: {RECOVERY_S}",
        "connection: close",
        f"x-request-id: {request_id}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
