"""Answers in the place of workers while there is none: a caller who is not answered would wait for minutes.

The parent holds the listening socket, from the beginning, so that nobody else takes the port while Triton starts.
Connections rest in it until a worker takes them, which is right for the second in which one is started again, and wrong
where that takes long.
"""

import asyncio
import socket
import ssl
import uuid
from contextlib import suppress
from http import HTTPStatus
from threading import Event, Thread
from typing import Self

from medimage_server.endpoint.json_response import error_body
from medimage_server.endpoint.refusal import RECOVERY_S
from medimage_server.endpoint.settings import EndpointSettings

MAX_CALLERS = 256  # at once; more are told by the end of their connection
HEAD_S = 0.5  # for the head of a request, which nobody reads
BODY_S = 0.5  # to read what comes of a body, which would break the connection before the answer is read
HANDSHAKE_S = 2.0
MESSAGE = "the endpoint is being started; try again"


class Reception:
    """Open or closed; a context in which it is open first and closed last.

    Args:
        listener: of the endpoint.
        settings: with the certificate, if there is one.
    """

    def __init__(self, listener: socket.socket, settings: EndpointSettings) -> None:
        self.listener = listener
        self._settings = settings
        self._thread: Thread | None = None
        self._n_callers = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        if self._thread is None:
            is_open = Event()
            self._thread = Thread(target=lambda: asyncio.run(self._receive(is_open)), daemon=True)
            self._thread.start()
            is_open.wait()

    def close(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._thread = None

    async def _receive(self, is_open: Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        context = self._context()
        try:
            server = await asyncio.start_server(
                self._answer,
                sock=self.listener.dup(),
                ssl=context,
                ssl_handshake_timeout=None if context is None else HANDSHAKE_S,
            )
        finally:
            is_open.set()
        async with server:
            await self._closing.wait()

    def _context(self) -> ssl.SSLContext | None:
        """None also where the certificate has gone: what is told then is at least the end of the connection."""
        if self._settings.tls_certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._settings.tls_certificate, self._settings.tls_key)
        except (OSError, ssl.SSLError):
            return None
        return context

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._n_callers += 1
        try:
            if self._n_callers > MAX_CALLERS:
                return
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(HEAD_S):
                    await reader.readuntil(b"\r\n\r\n")
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(BODY_S):
                    writer.write(refusal())
                    if writer.can_write_eof():
                        writer.write_eof()
                    while await reader.read(2**16):
                        pass
        finally:
            self._n_callers -= 1
            writer.close()


def refusal() -> bytes:
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
