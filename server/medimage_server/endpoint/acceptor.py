"""Accepts connections within bounds, so that a caller who holds many of them open keeps nobody out.

A connection is unauthenticated until `authorize` has let a request on it pass. Unauthenticated ones have bounds, for
each address and for all; beyond them the oldest is closed. So a new connection is always accepted, and a caller with a
key, or a probe, needs it for milliseconds only. TLS handshakes are counted like the rest.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import takewhile
from time import monotonic
from typing import Any

from starlette.types import Scope

from medimage_server.endpoint.responses import Refusal

# Of one worker. Unauthenticated ones of one address leave half of the places to other addresses; both bounds are far
# more than can be at work (`worker_max_requests`), and with the authenticated ones below the usual limit of open files.
MAX_UNAUTHENTICATED = 800
MAX_UNAUTHENTICATED_PER_ADDRESS = 400
MAX_AUTHENTICATED = 1000
UNAUTHENTICATED_IDLE_S = 5  # between two requests
NEWCOMER_S = 2.0  # for its handshake and request, before it counts as idle
HANDSHAKE_S = 5.0
TLS_END_S = 2.0  # for the other side to answer the end of TLS, which uvloop would wait 30 s for
BACKLOG = 512
PAUSE_S = 0.1  # after a failed accept, of which the reason is mostly that there are too many open files

LOOPBACK = ip_network("127.0.0.0/8")

logger = logging.getLogger(__name__)


class AcceptedConnection:
    """One connection, from its accept on."""

    def __init__(self, acceptor: "Acceptor", sock: socket.socket, address: str) -> None:
        self.address = address
        self.accepted_at = monotonic()
        self._acceptor = acceptor
        self._sock = sock
        self._protocol: Any = None  # uvicorn's, once there is one
        self.handshake: asyncio.Task[None] | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether a request of it is being answered."""
        cycle = getattr(self._protocol, "cycle", None)
        return cycle is not None and not cycle.response_complete

    def attach(self, protocol: Any) -> Any:
        """Put itself into the app's state of the protocol, which tells of its end."""
        protocol.app_state = {**protocol.app_state, "accepted": self}
        protocol.timeout_keep_alive = UNAUTHENTICATED_IDLE_S
        self._protocol = protocol
        return protocol

    def mark_authenticated(self) -> None:
        """A request on it was authorized.

        Raises:
            Refusal: 503, there are too many of these.
        """
        self._acceptor.mark_authenticated(self)
        self._protocol.timeout_keep_alive = self._protocol.config.timeout_keep_alive

    def leave(self) -> None:
        self._acceptor.forget(self)

    def abandon(self) -> None:
        """Its handshake has failed. An event loop may have told the protocol of its beginning, and now of no end."""
        if self._protocol is not None and self._protocol in self._protocol.connections:
            self._protocol.connection_lost(None)
        self.leave()
        with suppress(OSError):
            self._sock.close()

    def end(self) -> None:
        """Close the connection at once."""
        if self.handshake is not None:
            self.handshake.cancel()
        transport = getattr(self._protocol, "transport", None)
        if transport is not None:
            transport.abort()
        elif self._protocol is None:
            self._sock.close()
        self.leave()


class Acceptor:
    """Accepts connections from a listening socket.

    Args:
        make_protocol: of one connection.
        context: of the handshakes to come, if TLS is spoken; it may be replaced.
    """

    def __init__(
        self, listener: socket.socket, make_protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self.context = context
        self._unauthenticated: dict[AcceptedConnection, None] = {}  # in the order in which they came
        self._authenticated: dict[AcceptedConnection, None] = {}

    async def accept(self) -> None:
        """Accept whoever comes, until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        fault: str | None = None
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._listener)
                except OSError as error:
                    if error.strerror != fault:  # else it would be told ten times a second
                        logger.warning("cannot accept a connection: %s", error.strerror)
                    fault = error.strerror
                    if self._unauthenticated:
                        end_oldest(list(self._unauthenticated))
                    else:
                        self._end_idle_authenticated()
                    await asyncio.sleep(PAUSE_S)
                    continue
                fault = None
                connection = AcceptedConnection(self, sock, network_of(address[0]))
                self._unauthenticated[connection] = None
                self._make_room(connection)
                connection.handshake = loop.create_task(self._hand_over(connection, sock))
        finally:
            for connection in [c for c in self._unauthenticated if c.handshake is not None and not c.handshake.done()]:
                connection.end()

    def mark_authenticated(self, connection: AcceptedConnection) -> None:
        """See `AcceptedConnection.mark_authenticated`."""
        if connection in self._authenticated:
            return
        if len(self._authenticated) >= MAX_AUTHENTICATED and not self._end_idle_authenticated():
            message = "too many connections; try again"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, {"retry-after": "1", "connection": "close"})
        self._unauthenticated.pop(connection, None)
        self._authenticated[connection] = None

    def _end_idle_authenticated(self) -> bool:
        """End an idle one, so that no caller with a key keeps the others out; whether there was one."""
        idle = next((one for one in self._authenticated if not one.is_at_work), None)
        if idle is not None:
            idle.end()
        return idle is not None

    def forget(self, connection: AcceptedConnection) -> None:
        self._unauthenticated.pop(connection, None)
        self._authenticated.pop(connection, None)

    async def _hand_over(self, connection: AcceptedConnection, sock: socket.socket) -> None:
        """Make its TLS handshake, if there is one, and hand it to a protocol."""
        loop = asyncio.get_running_loop()
        handshake_s, end_s = (None, None) if self.context is None else (HANDSHAKE_S, TLS_END_S)
        try:
            await loop.connect_accepted_socket(
                lambda: connection.attach(self._make_protocol()),
                sock,
                ssl=self.context,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=end_s,
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError):  # it speaks no TLS, or has gone, or had to
            connection.abandon()

    def _make_room(self, newest: AcceptedConnection) -> None:
        neighbours = [connection for connection in self._unauthenticated if connection.address == newest.address]
        if len(neighbours) > MAX_UNAUTHENTICATED_PER_ADDRESS:
            end_oldest(neighbours)
        elif len(self._unauthenticated) > MAX_UNAUTHENTICATED:
            end_oldest(list(self._unauthenticated))


def end_oldest(connections: list[AcceptedConnection]) -> None:
    """End the oldest that is idle, or the oldest if none is.

    One that has just come does not count as idle: else a caller who keeps all places at work, as with bodies that
    trickle, would have each newcomer ended.
    """
    latest = monotonic() - NEWCOMER_S
    settled = takewhile(lambda connection: connection.accepted_at < latest, connections)
    next((connection for connection in settled if not connection.is_at_work), connections[0]).end()


def mark_authenticated(scope: Scope) -> None:
    """The request of this scope was let pass: so its connection counts as authenticated from now on."""
    accepted = scope["state"].get("accepted")
    if accepted is not None:  # None where another server runs the application
        accepted.mark_authenticated()


def network_of(host: str) -> str:
    """What counts as one address: this machine, an IPv4 address, or the /64 that one IPv6 customer has."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return "loopback" if address.is_loopback else str(ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "loopback" if address in LOOPBACK else str(address)
