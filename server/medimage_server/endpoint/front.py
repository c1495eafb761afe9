"""The endpoint as its command sees it: its workers, and what is done for them beside."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket

from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.workers import Worker, endpoint_services, metrics_folder
from medimage_server.run_folder import RunFolder
from medimage_server.signals import on_hangup
from medimage_server.supervisor import Service, running


class Front:
    """Running workers; made by `endpoint_front`."""

    def __init__(self, workers: list[Service[Worker]]) -> None:
        self.workers = workers
        self._reads_again = False
        on_hangup(self._note_hangup)

    def look(self) -> None:
        """Do what is due."""
        if self._reads_again:
            self._reads_again = False
            for worker in self.workers:
                if worker.server is not None:
                    worker.server.process.send_signal(signal.SIGHUP)

    def _note_hangup(self) -> None:
        self._reads_again = True


@contextmanager
def endpoint_front(settings: EndpointSettings, n_workers: int, listener: socket, run: RunFolder) -> Iterator[Front]:
    """Workers that answer on a socket, all of them ready, for the block.

    Raises:
        LaunchError: one cannot be started.
    """
    with metrics_folder(run.path, n_workers) as metrics:
        workers = endpoint_services(settings, n_workers, listener, metrics)
        with running(workers, before_end=listener.close):
            yield Front(workers)
