"""The endpoint as its command sees it: its workers, and what is done for them beside."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket

from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.workers import Worker, endpoint_services, metrics_folder
from medimage_server.run_folder import RunFolder
from medimage_server.signals import Hangups
from medimage_server.supervisor import Service, running


class Front:
    """Running workers; made by `endpoint_front`."""

    def __init__(self, workers: list[Service[Worker]], hangups: Hangups) -> None:
        self.workers = workers
        self._hangups = hangups

    def look(self) -> None:
        """Do what is due."""
        if self._hangups.came():
            for worker in self.workers:
                if worker.server is not None:
                    worker.server.process.send_signal(signal.SIGHUP)


@contextmanager
def endpoint_front(
    settings: EndpointSettings, n_workers: int, listener: socket, run: RunFolder, hangups: Hangups
) -> Iterator[Front]:
    """Workers that answer on a socket, all of them ready, for the block.

    Raises:
        LaunchError: one cannot be started.
    """
    with metrics_folder(run.path, n_workers) as metrics:
        workers = endpoint_services(settings, n_workers, listener, metrics)
        with running(workers, before_end=listener.close):
            yield Front(workers, hangups)
