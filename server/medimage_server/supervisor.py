"""Keep servers running: start them in order, watch all at once, restart what fails, and end them together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from time import monotonic, sleep
from typing import Generic, NoReturn, Protocol, TypeVar

from medimage_server.errors import LaunchError, StuckStart

FIRST_DELAY_S = 0.5  # before a server is started again; doubles with each failure
MAX_DELAY_S = 30.0
HEALTHY_S = 60.0  # a server that ran so long has its failures forgotten
MAX_STUCK_STARTS = 3
POLL_S = 0.1


class Running(Protocol):
    """A server that has been started. None of this waits for it."""

    @property
    def left_out(self) -> Sequence[str]:
        """Lines for the operator: what it does not serve though it is ready."""

    def is_ready(self) -> bool:
        """Whether it has begun to serve.

        Raises:
            LaunchError: it never will.
            StuckStart: it never will, and another start may well.
        """

    def failure(self) -> str | None:
        """Why it does not serve any more, None while it does."""

    def ask_to_end(self) -> None: ...

    def kill(self) -> None: ...


R = TypeVar("R", bound=Running, covariant=True)


class Service(Generic[R]):
    """A server, and how it is run.

    Args:
        name: for messages.
        run: a context that starts it, and at its end waits for the server's.
    """

    def __init__(self, name: str, run: Callable[[], AbstractContextManager[R]]) -> None:
        self.name = name
        self.server: R | None = None
        self.is_ready = False
        self._run = run
        self._context = ExitStack()
        self._due = 0.0  # when to start it again
        self._ready_since = 0.0
        self._failures = 0

    def become_ready(self, tell: Callable[[str], object]) -> bool:
        """Whether it is ready now; it is started if it has not been, and once more where its start got stuck.

        Raises:
            LaunchError: it cannot be started, or never will be ready.
        """
        try:
            if self.server is None and monotonic() >= self._due:
                self._start()
            if not self.is_ready and self.server is not None and self.server.is_ready():
                self.is_ready, self._ready_since = True, monotonic()
        except StuckStart as error:
            if self._failures + 1 >= MAX_STUCK_STARTS:
                raise
            self._give_up(f"did not start: {error}; next try in", tell)
        return self.is_ready

    def _start(self) -> None:
        try:
            self.server = self._context.enter_context(self._run())
        except OSError as error:  # of a full disk, or of too many processes
            raise LaunchError(str(error)) from error

    def ask_to_end(self) -> None:
        if self.server is not None:
            self.server.ask_to_end()

    def stop(self) -> None:
        """Wait for its end."""
        self.server, self.is_ready = None, False
        self._context.close()

    def look(self, *, restart: bool, tell: Callable[[str], object]) -> None:
        """Take note of a failure, or go a step towards the next start.

        Raises:
            LaunchError: it has failed, and `restart` is False.
        """
        if self.is_ready:
            assert self.server is not None
            failure = self.server.failure()
            if failure is not None:
                if not restart:
                    raise LaunchError(f"{self.name} {failure}; see its log above")
                self._give_up(f"{failure}; starting it again in", tell)
            return
        try:
            if self.become_ready(tell):
                assert self.server is not None
                tell("; not served: ".join([f"{self.name} is ready again", *self.server.left_out]))
        except LaunchError as error:
            self._give_up(f"did not start: {error}; next try in", tell)

    def _give_up(self, what: str, tell: Callable[[str], object]) -> None:
        delay_s = self._delay_s()
        tell(f"{self.name} {what} {delay_s:g} s")
        if self.server is not None:
            self.server.kill()  # one that runs has no good end: Triton waits 30 s for what never comes
        self.stop()
        self._due = monotonic() + delay_s

    def _delay_s(self) -> float:
        if self.is_ready and monotonic() - self._ready_since > HEALTHY_S:
            self._failures = 0
        self._failures += 1
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._failures - 1))


@contextmanager
def running(
    services: Sequence[Service[R]],
    *,
    tell: Callable[[str], object] = lambda line: None,
    before_end: Callable[[], object] = lambda: None,
) -> Iterator[list[R]]:
    """The services, all of them ready, for the block; after it they are ended, all at once.

    Args:
        tell: is given a line for each start that got stuck.
        before_end: is called first when the block is left.

    Raises:
        LaunchError: one cannot be started; the others are ended.
    """
    with ExitStack() as stack:
        try:
            for service in services:
                stack.callback(service.stop)  # also when its start is broken off
            while not all([service.become_ready(tell) for service in services]):
                sleep(POLL_S)
            yield [service.server for service in services if service.server is not None]
        finally:
            before_end()
            for service in services:
                service.ask_to_end()


def watch(
    services: Sequence[Service[Running]],
    *,
    restart: bool,
    tell: Callable[[str], object],
    meanwhile: Callable[[], object] = lambda: None,
) -> NoReturn:
    """Watch services, which are ready now; start again what fails, with growing delays.

    Args:
        restart: if False, the first failure is the end of all.
        tell: is given a line for each failure and each start.
        meanwhile: is called ten times a second.

    Raises:
        LaunchError: one has failed, and `restart` is False.
    """
    while True:
        for service in services:
            service.look(restart=restart, tell=tell)
        meanwhile()
        sleep(POLL_S)
