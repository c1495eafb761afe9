"""One worker of the endpoint: `python -m medimage_server.endpoint.worker LISTENING_FD READY_FD`.

Its settings come as a line of JSON on standard input, which then stays open: its end is the end of the parent, and of
the worker, so that nothing is left behind when the parent is killed.
"""

import asyncio
import logging
import math
import os
import socket
import sys
from types import FrameType

import uvicorn

from medimage_server.endpoint.access_log import access_log
from medimage_server.endpoint.app import endpoint
from medimage_server.endpoint.connection import Connection
from medimage_server.endpoint.operation import Operation
from medimage_server.endpoint.settings import EndpointSettings

MAX_CONNECTIONS = 1000  # of a worker; file descriptors have a bound, too
BACKLOG = 512
KEEP_ALIVE_S = 20  # of an idle connection; longer than aiohttp's 15, which could use it just as it closes
MAX_HEAD_BYTES = 32 * 1024
READY = b"ready"


class Server(uvicorn.Server):
    """Told to end, it says that it is not ready, serves on for a while, then refuses connections and finishes."""

    def __init__(self, config: uvicorn.Config, operation: Operation, *, drain_delay_s: float, ready_fd: int) -> None:
        super().__init__(config)
        self._operation = operation
        self._drain_delay_s = drain_delay_s
        self._ready_fd = ready_fd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._loop.add_reader(sys.stdin.fileno(), self._parent_has_ended)
        os.write(self._ready_fd, READY)
        os.close(self._ready_fd)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started:
            # The signal may have interrupted the loop as it orders its timers, and one more would break them. Asked
            # again it goes on: a parent who cannot wait kills.
            self._loop.call_soon_threadsafe(self._drain)
        else:
            self.should_exit = True

    def _parent_has_ended(self) -> None:
        self._loop.remove_reader(sys.stdin.fileno())
        self._drain()

    def _drain(self) -> None:
        if not self._operation.is_draining:
            self._operation.is_draining = True
            self._loop.call_later(self._drain_delay_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def main() -> None:
    listening_fd, ready_fd = map(int, sys.argv[1:])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("medimage_server").setLevel(logging.INFO)
    settings = EndpointSettings.from_json(sys.stdin.readline())
    with access_log(settings.access_log) as log:
        app = endpoint(settings, log)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here depends on who the caller says to be
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=math.ceil(settings.drain_limit_s),  # uvicorn wants whole seconds
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        server = Server(config, app.state.operation, drain_delay_s=settings.drain_delay_s, ready_fd=ready_fd)
        server.run(sockets=[socket.socket(fileno=listening_fd)])


if __name__ == "__main__":
    main()
    os._exit(0)  # Python's own end would wait for the log's thread, and that for a disk that has stopped
