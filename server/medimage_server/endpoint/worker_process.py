"""One worker of the endpoint: `python -m medimage_server.endpoint.worker_process LISTENING_FD BEAT_FD`.

Its settings come as a line of JSON on standard input, which then stays open: its end is the end of the parent, and of
the worker, so that nothing is left behind when the parent is killed.
"""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType

import uvicorn

from medimage_server.endpoint.acceptor import Acceptor
from medimage_server.endpoint.access_log import access_log
from medimage_server.endpoint.app import endpoint_app
from medimage_server.endpoint.http_protocol import HttpProtocol
from medimage_server.endpoint.monitoring import MonitoringRoutes
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.tls import tls_context
from medimage_server.errors import LaunchError

OPEN_FILES = 4096  # more than the connections that `acceptor.py` keeps
KEEP_ALIVE_S = 20  # of an idle connection; longer than aiohttp's 15, which could use it just as it closes
MAX_HEAD_BYTES = 32 * 1024
BEAT = b"."
BEAT_EVERY_S = 0.5

logger = logging.getLogger("medimage_server.endpoint.worker_process")  # this runs as __main__


class WorkerServer(uvicorn.Server):
    """Told to end, it says that it is not ready, serves on for a while, then refuses connections and finishes.

    Args:
        beat_fd: where it gives signs of life, the first when it begins to answer.
        read_keys: is called for SIGHUP.
        make_context: of TLS, or None; called at the start and for SIGHUP. LaunchError leaves the one before in use.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        monitoring: MonitoringRoutes,
        *,
        drain_delay_s: float,
        beat_fd: int,
        read_keys: Callable[[], object],
        make_context: Callable[[], ssl.SSLContext | None],
    ) -> None:
        super().__init__(config)
        self._monitoring = monitoring
        self._drain_delay_s = drain_delay_s
        self._beat_fd = beat_fd
        self._read_keys = read_keys
        self._make_context = make_context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        assert sockets is not None
        await super().startup([])  # uvicorn would accept connections itself, and without any bound
        make_protocol = partial(
            HttpProtocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self._acceptor = Acceptor(sockets[0], make_protocol, self._make_context())
        self._accepting = self._loop.create_task(self._acceptor.accept())
        self._accepting.add_done_callback(self._accepting_has_ended)
        self._loop.add_reader(sys.stdin.fileno(), self._parent_has_ended)
        self._loop.add_signal_handler(signal.SIGHUP, self._read_again)
        os.set_blocking(self._beat_fd, False)
        self._beat()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        await super().shutdown(sockets)

    def _read_again(self) -> None:
        """Keys and certificate, from their files. Connections that are open keep the certificate that they have."""
        self._read_keys()
        try:
            self._acceptor.context = self._make_context()
        except LaunchError as error:
            logger.warning("%s; the certificate before stays in use", error)
        else:
            if self._acceptor.context:
                logger.info("the certificate was read again")

    def _accepting_has_ended(self, accepting: asyncio.Task[None]) -> None:
        if not accepting.cancelled():  # a fault of ours, and nobody could connect any more: end, and be restarted
            logger.error("no connections are accepted: %s", type(accepting.exception()).__name__)
            self.should_exit = True

    def _beat(self) -> None:
        with suppress(OSError):  # the parent does not read, or has gone
            os.write(self._beat_fd, BEAT)
        self._loop.call_later(BEAT_EVERY_S, self._beat)

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
        if not self._monitoring.is_draining:
            self._monitoring.is_draining = True
            self._loop.call_later(self._drain_delay_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def main() -> None:
    listening_fd, beat_fd = map(int, sys.argv[1:])
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    open_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files, min(most, OPEN_FILES)), most))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("medimage_server").setLevel(logging.INFO)
    # It warns of each request that is no HTTP, without a word of whose: anybody could fill the disk with its lines.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    settings = EndpointSettings.from_json(sys.stdin.readline())
    with access_log(settings.access_log) as log:
        app = endpoint_app(settings, log)
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing here depends on who the caller says to be
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=math.ceil(settings.drain_limit_s),  # uvicorn wants whole seconds
        )
        server = WorkerServer(
            config,
            app.state.monitoring,
            drain_delay_s=settings.drain_delay_s,
            beat_fd=beat_fd,
            read_keys=app.state.keys.read_again,
            make_context=partial(tls_context, settings),
        )
        server.run(sockets=[socket.socket(fileno=listening_fd)])


if __name__ == "__main__":
    main()
    os._exit(0)  # Python's own end would wait for the log's thread, and that for a disk that has stopped
