"""A thread that does one thing again and again."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic:
    """Calls `act` every `period_s` seconds in a thread of its own, until closed; an error of it is logged by its type.

    Args:
        name: of the thread, and in the log.
    """

    def __init__(self, name: str, period_s: float, act: Callable[[], None]) -> None:
        self._period_s, self._act = period_s, act
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._period_s):
            try:
                self._act()
            except Exception as error:
                log.error("%s failed: %s", self._thread.name, type(error).__name__)
