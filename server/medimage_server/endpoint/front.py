"""The endpoint as its command sees it: its workers, and what is done for them beside."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from medimage_server.endpoint.reception import Reception
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.workers import Worker, endpoint_services
from medimage_server.run_folder import RunFolder
from medimage_server.signals import Hangups
from medimage_server.supervisor import Service, running

ABSENCE_S = 1.5  # of every worker, after which callers are answered in their place; a new start mostly takes less


class Front:
    """Running workers; made by `endpoint_front`."""

    def __init__(self, workers: list[Service[Worker]], reception: Reception, hangups: Hangups) -> None:
        self.workers = workers
        self._reception = reception
        self._hangups = hangups
        self._served_at = monotonic()

    def look(self) -> None:
        """Do what is due: see that callers are answered, and that a hangup reaches all workers."""
        servers = [worker.server for worker in self.workers if worker.server is not None and worker.is_ready]
        if any([server.is_alive() for server in servers]):
            self._served_at = monotonic()
            self._reception.close()
        elif monotonic() - self._served_at > ABSENCE_S:
            self._reception.open()
        if self._hangups.came():
            for server in servers:
                server.process.send_signal(signal.SIGHUP)


@contextmanager
def endpoint_front(
    settings: EndpointSettings, reception: Reception, run: RunFolder, hangups: Hangups
) -> Iterator[Front]:
    """Workers that answer on the reception's socket, all of them ready, for the block.

    Raises:
        LaunchError: one cannot be started.
    """
    workers = endpoint_services(settings, reception.listener, run.path)

    def end_reception() -> None:
        reception.close()
        reception.listener.close()

    with running(workers, before_end=end_reception):
        reception.close()  # before anyone is told that it is ready
        yield Front(workers, reception, hangups)
