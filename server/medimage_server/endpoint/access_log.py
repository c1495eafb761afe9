"""One line of JSON for each request: never an image, a text, a vector, a key, or a path that a caller made up.

Lines are written by a thread, so that neither a slow nor a full disk holds up or fails a request; what it cannot write
is counted as lost.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from queue import Full, Queue
from time import monotonic

import orjson

from medimage_server.endpoint.metrics import LOST_LOG_LINES
from medimage_server.endpoint.private_files import open_private

STDOUT = "-"
MAX_WAITING_LINES = 10_000  # for a disk that has stopped; 4 MB
LAST_LINES_S = 3.0  # to write them at the end; lines of a disk that takes longer are lost


@dataclass(slots=True, kw_only=True)
class LogEntry:
    """What is known of a request when it has ended."""

    request_id: str
    method: str
    route: str  # as we name it; "other" for what is none of ours
    status: int
    deployment: str | None = None
    rows: int | None = None
    reason: str | None = None  # of a refusal, in our words
    received_bytes: int = 0
    sent_bytes: int = 0
    ms: float = 0.0
    stages_ms: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | asdict(self)
        return orjson.dumps({name: value for name, value in entry.items() if value is not None}).decode()


class AccessLog:
    """Writes entries; see `access_log`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def write(self, entry: LogEntry) -> None:
        self._logger.info(entry.line())


@contextmanager
def access_log(target: str | None) -> Iterator[AccessLog]:
    """The log, open for the block.

    Args:
        target: a file, to which lines are appended and which is opened again after it was moved; - for standard output;
            None for nowhere.
    """
    logger = logging.Logger("medimage.access", logging.INFO)  # of its own: nothing reaches the root logger
    if target is None:
        logger.addHandler(logging.NullHandler())
        yield AccessLog(logger)
        return
    sink = LineHandler(sys.stdout) if target == STDOUT else FileHandler(target, encoding="utf-8", delay=True)
    queue: Queue[logging.LogRecord] = Queue(MAX_WAITING_LINES)
    logger.addHandler(DroppingHandler(queue))
    writer = LineWriter(queue, sink)
    writer.start()
    try:
        yield AccessLog(logger)
    finally:
        if writer.ends():  # else the disk has stopped, and would hold us up, too
            with suppress(OSError):  # it is full
                sink.close()


class DroppingHandler(QueueHandler):
    """Never waits."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except Full:
            LOST_LOG_LINES.inc()


class LineWriter(QueueListener):
    def ends(self) -> bool:
        """Whether all lines are written, and the thread has ended, within LAST_LINES_S: `stop` would wait for ever."""
        deadline = monotonic() + LAST_LINES_S
        try:
            self.queue.put(None, timeout=LAST_LINES_S)  # type: ignore[attr-defined]  # typeshed knows less of queues
        except Full:
            return False
        assert self._thread
        self._thread.join(max(0.0, deadline - monotonic()))
        return not self._thread.is_alive()


class CountsLosses(logging.Handler):
    def handleError(self, record: logging.LogRecord) -> None:  # named by logging
        LOST_LOG_LINES.inc()


class LineHandler(CountsLosses, logging.StreamHandler):  # type: ignore[type-arg]  # generic in stubs alone
    pass


class FileHandler(CountsLosses, WatchedFileHandler):
    def _open(self) -> TextIOWrapper:  # named by logging
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=open_private)  # type: ignore[return-value]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it cannot be opened, which would end the thread
            self.handleError(record)
