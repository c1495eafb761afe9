"""HTTP connections that make no progress are ended: callers that dawdle over a request's head, or do not read."""

import asyncio
import socket
import uuid
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medimage_server.endpoint.responses import error_body

CHECK_EVERY_S = 4.0  # so that one without progress lasts 4 to 8 s
# Of an answer that the kernel takes before it can be sent. Its own bound is megabytes, of which it takes more only when
# a third is read: a reader of 300 kB/s then seems to stand still for longer than that.
MAX_UNSENT_BYTES = 128 * 1024


class HttpProtocol(H11Protocol):
    """uvicorn's connection over h11 (which, unlike httptools, bounds the size of a head).

    uvicorn has a time limit for idle connections alone, not for one that has sent half a head or that lets an answer
    lie. A body that does not come is the application's business (`body.py`), as is an answer that is being made.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        connected: socket.socket = transport.get_extra_info("socket")
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        self._waited_for: tuple[str, object] | None = None
        self._n_drained = 0
        self._next_check = self.loop.call_later(CHECK_EVERY_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_check.cancel()
        if accepted := self.app_state.get("accepted"):  # of `acceptor.py`
            accepted.leave()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._n_drained += 1
        super().resume_writing()

    def _check(self) -> None:
        """Compare what the connection waits for with what it waited for at the last check."""
        waits_for = self._waits_for()
        if waits_for is None or waits_for != self._waited_for:
            self._waited_for = waits_for
            self._next_check = self.loop.call_later(CHECK_EVERY_S, self._check)
        elif waits_for[0] == "head":
            self.send_400_response("The head of the request has not come in time.")
        else:
            self.transport.abort()

    def _waits_for(self) -> tuple[str, object] | None:
        """None while it is at work, or idle after an answer, for which uvicorn has a time limit."""
        if unsent_bytes := self.transport.get_write_buffer_size():
            return "reader", (unsent_bytes, self._n_drained)  # as many may be unsent of another part of the answer
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        if self.conn.their_state is h11.SEND_BODY:  # of a request that was answered before
            return "rest of body", self.cycle
        if self.conn.trailing_data[0]:
            return "head", self.cycle
        if self.cycle is None:
            return "first byte", None
        # Any byte ends uvicorn's time limit, also the last of a body that was answered before.
        return ("rest of body", self.cycle) if self.timeout_keep_alive_task is None else None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the form of all refusals, unless an answer is under way; then close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else h11 would raise
            request_id = str(uuid.uuid4())
            body = error_body(HTTPStatus.BAD_REQUEST, msg, request_id)
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": request_id,
            }
            response = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
