"""Takes connections in, so that who holds many of them open keeps nobody out.

A connection is a stranger's until a request on it was let pass by `authorize`. Strangers have bounds, for each address
and for all, and when there are too many the one that has been here longest goes: so a new connection is always let in,
and a caller with a key, or a probe, needs it for milliseconds alone. Handshakes of TLS are counted like the rest.
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

from medimage_server.endpoint.refusal import Refusal

# Of one worker. Strangers of one address leave half of the places to other addresses; both bounds are far more than
# can be at work (`worker_max_requests`), and with the guests below the usual limit of open files.
MAX_STRANGERS = 800
MAX_STRANGERS_OF_ADDRESS = 400
MAX_GUESTS = 1000
STRANGER_IDLE_S = 5  # between two requests
NEWCOMER_S = 2.0  # that it has for its handshake and request, before it counts as one that only waits
HANDSHAKE_S = 5.0
GOODBYE_S = 2.0  # for the other side to answer the end of TLS, which uvloop would wait 30 s for
BACKLOG = 512
PAUSE_S = 0.1  # after a failed accept, of which the reason is mostly that there are too many open files

LOOPBACK = ip_network("127.0.0.0/8")

logger = logging.getLogger(__name__)


class Visitor:
    """One connection, from its accept on."""

    def __init__(self, door: "Door", sock: socket.socket, address: str) -> None:
        self.address = address
        self.came_at = monotonic()
        self._door = door
        self._sock = sock
        self._protocol: Any = None  # uvicorn's, once there is one
        self.arrival: asyncio.Task[None] | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether a request of it is being answered."""
        cycle = getattr(self._protocol, "cycle", None)
        return cycle is not None and not cycle.response_complete

    def meet(self, protocol: Any) -> Any:
        """Become known to a protocol, which finds this object in its app's state."""
        protocol.app_state = {**protocol.app_state, "visitor": self}
        protocol.timeout_keep_alive = STRANGER_IDLE_S
        self._protocol = protocol
        return protocol

    def welcome(self) -> None:
        """It has shown that it may ask.

        Raises:
            Refusal: 503, there are too many who may.
        """
        self._door.welcome(self)
        self._protocol.timeout_keep_alive = self._protocol.config.timeout_keep_alive

    def leave(self) -> None:
        self._door.forget(self)

    def end(self) -> None:
        """Close the connection at once."""
        if self.arrival is not None:
            self.arrival.cancel()
        transport = getattr(self._protocol, "transport", None)
        if transport is not None:
            transport.abort()
        else:
            self._sock.close()
        self.leave()


class Door:
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
        self._strangers: dict[Visitor, None] = {}  # in the order in which they came
        self._guests: dict[Visitor, None] = {}

    async def receive(self) -> None:
        """Take in whoever comes, until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        fault: str | None = None
        try:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._listener)
                except OSError as error:
                    if error.strerror != fault:  # else it would be told ten times a second
                        logger.warning("cannot take a connection in: %s", error.strerror)
                    fault = error.strerror
                    if self._strangers:
                        end_longest(list(self._strangers))
                    else:
                        self._end_idle_guest()
                    await asyncio.sleep(PAUSE_S)
                    continue
                fault = None
                visitor = Visitor(self, sock, network_of(address[0]))
                self._strangers[visitor] = None
                self._make_room(visitor)
                visitor.arrival = loop.create_task(self._introduce(visitor, sock))
        finally:
            for visitor in [v for v in self._strangers if v.arrival is not None and not v.arrival.done()]:
                visitor.end()

    def welcome(self, visitor: Visitor) -> None:
        """See `Visitor.welcome`."""
        if visitor in self._guests:
            return
        if len(self._guests) >= MAX_GUESTS and not self._end_idle_guest():
            message = "too many connections; try again"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, {"retry-after": "1", "connection": "close"})
        self._strangers.pop(visitor, None)
        self._guests[visitor] = None

    def _end_idle_guest(self) -> bool:
        """End a guest that only waits, so that no caller with a key keeps the others out; whether there was one."""
        idle = next((guest for guest in self._guests if not guest.is_at_work), None)
        if idle is not None:
            idle.end()
        return idle is not None

    def forget(self, visitor: Visitor) -> None:
        self._strangers.pop(visitor, None)
        self._guests.pop(visitor, None)

    async def _introduce(self, visitor: Visitor, sock: socket.socket) -> None:
        """Make its handshake, if there is one, and hand it to a protocol."""
        loop = asyncio.get_running_loop()
        handshake_s, goodbye_s = (None, None) if self.context is None else (HANDSHAKE_S, GOODBYE_S)
        try:
            await loop.connect_accepted_socket(
                lambda: visitor.meet(self._make_protocol()),
                sock,
                ssl=self.context,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=goodbye_s,
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError):  # it speaks no TLS, or has gone, or had to
            visitor.leave()
            with suppress(OSError):
                sock.close()

    def _make_room(self, newest: Visitor) -> None:
        neighbours = [visitor for visitor in self._strangers if visitor.address == newest.address]
        if len(neighbours) > MAX_STRANGERS_OF_ADDRESS:
            end_longest(neighbours)
        elif len(self._strangers) > MAX_STRANGERS:
            end_longest(list(self._strangers))


def end_longest(visitors: list[Visitor]) -> None:
    """End the first, who has been here longest, or the first of those that only wait if there are such.

    Newcomers are not: else who keeps all places at work, as with bodies that trickle, would have each of them ended.
    """
    latest = monotonic() - NEWCOMER_S
    settled = takewhile(lambda visitor: visitor.came_at < latest, visitors)
    next((visitor for visitor in settled if not visitor.is_at_work), visitors[0]).end()


def welcome(scope: Scope) -> None:
    """The request of this scope was let pass: its connection is no stranger's any more."""
    visitor = scope["state"].get("visitor")
    if visitor is not None:  # None where another server runs the application
        visitor.welcome()


def network_of(host: str) -> str:
    """What counts as one address: this machine, an IPv4 address, or the /64 that one IPv6 customer has."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return "loopback" if address.is_loopback else str(ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "loopback" if address in LOOPBACK else str(address)
