"""Keep servers running: start them in order, start again what fails, and end them in the opposite order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from subprocess import Popen
from time import monotonic, sleep
from typing import NoReturn, Protocol

from medimage_server.launcher import LaunchError

FIRST_DELAY_S = 0.5  # before a server is started again; doubles with each failure
MAX_DELAY_S = 30.0
HEALTHY_S = 60.0  # a server that ran so long has its failures forgotten
POLL_S = 0.1


class Running(Protocol):
    @property
    def process(self) -> Popen[bytes]: ...

    def failure(self) -> str | None:
        """Why it does not serve any more, None while it does."""


class Service:
    """A server, and how it is run.

    Args:
        name: for messages.
        run: a context that starts it until it is ready, and ends it.
    """

    def __init__(self, name: str, run: Callable[[], AbstractContextManager[Running]]) -> None:
        self.name = name
        self._run = run
        self._context = ExitStack()
        self._started: Running | None = None
        self._started_at = 0.0
        self._failures = 0

    def start(self) -> Running:
        """Raises LaunchError if it cannot be started."""
        try:
            self._started = self._context.enter_context(self._run())
        except OSError as error:  # of a full disk, or of too many processes
            raise LaunchError(str(error)) from error
        self._started_at = monotonic()
        return self._started

    def ask_to_end(self) -> None:
        if self._started:
            self._started.process.terminate()

    def kill(self) -> None:
        if self._started:
            self._started.process.kill()

    def stop(self) -> None:
        """Wait for its end."""
        self._started = None
        self._context.close()

    def failure(self) -> str | None:
        """Why it does not serve, None while it does."""
        return self._started.failure() if self._started else "could not be started"

    def delay_s(self) -> float:
        """Seconds to wait before it is started again."""
        if self._started and monotonic() - self._started_at > HEALTHY_S:
            self._failures = 0
        self._failures += 1
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._failures - 1))


@contextmanager
def running(services: Sequence[Service], *, before_end: Callable[[], object] = lambda: None) -> Iterator[list[Running]]:
    """The services, all of them ready, for the block; after it they are ended, all at once.

    Args:
        before_end: is called first when the block is left.

    Raises:
        LaunchError: one cannot be started; the others are ended.
    """
    with ExitStack() as stack:
        for service in services:
            stack.callback(service.stop)  # also when its start is broken off
        try:
            yield [service.start() for service in services]
        finally:
            before_end()
            for service in services:
                service.ask_to_end()


def watch(services: Sequence[Service], *, restart: bool, tell: Callable[[str], object]) -> NoReturn:
    """Watch running services until one fails; with `restart` start it again, with growing delays.

    Args:
        tell: is given a line for each failure and each start.

    Raises:
        LaunchError: one has failed, and `restart` is False.
    """
    while True:
        for service in services:
            failure = service.failure()
            if failure is None:
                continue
            service.kill()  # one that has failed and still runs has no good end: Triton waits 30 s for what never comes
            if not restart:
                raise LaunchError(f"{service.name} {failure}; see its log above")
            start_again(service, failure, tell)
        sleep(POLL_S)


def start_again(service: Service, failure: str, tell: Callable[[str], object]) -> None:
    delay_s = service.delay_s()
    tell(f"{service.name} {failure}; starting it again in {delay_s:g} s")
    service.stop()
    sleep(delay_s)
    try:
        service.start()
    except LaunchError as error:
        tell(f"{service.name}: {error}")  # the next round tries again
    else:
        tell(f"{service.name} is ready again")
