"""The supervisor, over small real processes: they are started again with growing delays, and all of them end."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from medimage_server import supervisor
from medimage_server.errors import LaunchError, StuckStart
from medimage_server.processes import children, exit_of, parent_of
from medimage_server.supervisor import HEALTHY_S, MAX_DELAY_S, Service, running, watch

WAITS = "import sys; sys.stdin.read()"  # until its parent has closed the pipe, or a signal
LIMIT_S = 10.0


class Enough(Exception):
    """Ends a watch, which has no end of its own."""


@dataclass(frozen=True)
class Child:
    process: subprocess.Popen
    is_broken: bool = False  # runs, and does not serve
    looks: object = None  # how often it is looked at until it is ready
    left_out: tuple = ()

    def is_ready(self):
        return self.looks is None or next(self.looks, None) is None

    def failure(self):
        return exit_of(self.process) or ("is broken" if self.is_broken else None)

    def ask_to_end(self):
        self.process.terminate()

    def kill(self):
        self.process.kill()


class Children:
    """Starts child processes, one after the other, and keeps what became of them."""

    def __init__(self, *programs, breaks=False, ends=None, looks=(0,)):
        self.processes = []
        self.started_at = []
        self._programs = programs or (WAITS,)
        self._breaks = breaks  # the first one
        self._ends = [] if ends is None else ends
        self._looks = looks  # of the first one, the second, and so on; then as the last one

    @contextmanager
    def run(self):
        self.started_at.append(supervisor.monotonic())
        program = self._programs[min(len(self.processes), len(self._programs) - 1)]
        if program is None:
            self.processes.append(None)
            raise LaunchError("cannot be started")
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        self.processes.append(process)
        try:
            looks = self._looks[min(len(self.processes), len(self._looks)) - 1]
            yield Child(process, self._breaks and len(self.processes) == 1, iter(range(looks)))
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)
            self._ends.append(self)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The supervisor's, which goes ten times as fast."""
    start = time.monotonic()
    passed = [0.0]
    monkeypatch.setattr(supervisor, "monotonic", lambda: 10 * (time.monotonic() - start) + passed[0])
    monkeypatch.setattr(supervisor, "sleep", lambda seconds: time.sleep(seconds / 10))
    return passed


def tell_until(words, said):
    """A `tell` that ends the watch at these words."""

    def tell(line):
        said.append(line)
        if words in line:
            raise Enough

    return tell


def watched(services, words, *, restart=True):
    """What is told up to these words."""
    said = []
    with running(services), pytest.raises(Enough):
        watch(services, restart=restart, tell=tell_until(words, said))
    return said


def test_service_that_ends_is_started_again_and_the_others_go_on():
    ends, goes_on = Children("raise SystemExit(3)", WAITS), Children()
    said = watched([Service("first", ends.run), Service("second", goes_on.run)], "is ready again")
    assert said == ["first ended by itself with exit code 3; starting it again in 0.5 s", "first is ready again"]
    assert (len(ends.processes), len(goes_on.processes)) == (2, 1)
    assert all(process.poll() is not None for process in ends.processes + goes_on.processes)


def test_service_that_runs_and_does_not_serve_is_killed_and_started_again():
    server = Children("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS, WAITS, breaks=True)
    said = watched([Service("a server", server.run)], "is ready again")
    assert said[0] == "a server is broken; starting it again in 0.5 s"
    assert server.processes[0].returncode == -9  # it heeds nothing else


def test_delays_double_up_to_a_bound_while_it_ends_or_cannot_be_started():
    server = Children("raise SystemExit(1)", None, "raise SystemExit(1)", *[None] * 5)
    said = watched([Service("a server", server.run)], f"in {MAX_DELAY_S:g} s")
    assert said == [
        "a server ended by itself with exit code 1; starting it again in 0.5 s",
        "a server did not start: cannot be started; next try in 1 s",
        "a server is ready again",
        "a server ended by itself with exit code 1; starting it again in 2 s",
        *(f"a server did not start: cannot be started; next try in {delay} s" for delay in (4, 8, 16, 30)),
    ]
    waits = [later - earlier for earlier, later in zip(server.started_at, server.started_at[1:], strict=False)]
    assert all(wait >= delay for wait, delay in zip(waits, [0.5, 1, 2, 4, 8, 16], strict=True))


def test_failures_of_a_service_that_ran_for_long_are_forgotten(clock):
    said = []
    failures = ["raise SystemExit(3)", None, None, "raise SystemExit(3)", "raise SystemExit(3)"]

    def tell(line):
        said.append(line)
        if line == "a server is ready again":
            clock[0] += HEALTHY_S + 1.0
        if len(said) == 5:
            raise Enough

    service = Service("a server", Children(*failures).run)
    with running([service]), pytest.raises(Enough):
        watch([service], restart=True, tell=tell)
    assert [line.rpartition(" in ")[2] for line in said] == ["0.5 s", "1 s", "2 s", "a server is ready again", "0.5 s"]


def test_one_that_is_starting_keeps_no_other_from_being_started():
    slow, ends = Children(WAITS, breaks=True, looks=(0, 10**6)), Children(WAITS, WAITS, breaks=True)
    services = [Service("slow", slow.run), Service("fast", ends.run)]
    said = []
    with running(services), pytest.raises(Enough):
        watch(services, restart=True, tell=tell_until("fast is ready again", said))
    assert len(slow.processes) == 2
    assert not any("slow is ready" in line for line in said)


def test_what_it_does_not_serve_is_said_again():
    @contextmanager
    def run():
        with server.run() as child:
            yield replace(child, left_out=("a: broken", "b: gone"))

    server = Children(breaks=True)
    said = watched([Service("a server", run)], "is ready again")
    assert said[-1] == "a server is ready again; not served: a: broken; not served: b: gone"


def test_something_else_is_done_meanwhile():
    service = Service("a server", Children().run)
    done = []

    def meanwhile():
        done.append(service.is_ready)
        if len(done) == 3:
            raise Enough

    with running([service]), pytest.raises(Enough):
        watch([service], restart=True, tell=pytest.fail, meanwhile=meanwhile)
    assert done == [True] * 3


def test_start_that_the_system_refuses_is_tried_again():
    """As where a disk is full, or there are too many processes."""
    server = Children(WAITS, breaks=True)
    run, full = server.run, [OSError(28, "No space left on device", "/tmp/x")]

    @contextmanager
    def run_or_fail():
        if server.processes and full:
            raise full.pop()
        with run() as child:
            yield child

    said = watched([Service("a server", run_or_fail)], "is ready again")
    assert said == [
        "a server is broken; starting it again in 0.5 s",
        "a server did not start: [Errno 28] No space left on device: '/tmp/x'; next try in 1 s",
        "a server is ready again",
    ]


def test_first_start_that_the_system_refuses_is_a_launch_error():
    @contextmanager
    def fail():
        raise OSError(28, "No space left on device", "/tmp/x")
        yield

    with pytest.raises(LaunchError, match=r"No space left on device: '/tmp/x'"), running([Service("a server", fail)]):
        pass


@dataclass(frozen=True)
class Stuck(Child):
    def is_ready(self):
        raise StuckStart("it is stuck")


def stuck_times(n, server):
    """Starts of `server`, of which the first n get stuck."""

    @contextmanager
    def run():
        with server.run() as child:
            yield Stuck(child.process) if len(server.processes) <= n else child

    return Service("a server", run)


def test_first_start_that_gets_stuck_is_begun_again():
    said, server = [], Children()
    with running([stuck_times(2, server)], tell=said.append) as (child,):
        assert child.process is server.processes[2]
    assert said == [f"a server did not start: it is stuck; next try in {delay} s" for delay in ("0.5", "1")]


def test_start_that_always_gets_stuck_is_given_up():
    server = Children()
    with pytest.raises(LaunchError, match=r"^it is stuck$"), running([stuck_times(9, server)]):
        pass
    assert len(server.processes) == 3


def test_without_restart_one_end_is_the_end_of_all():
    ends, goes_on = Children("raise SystemExit(3)"), Children()
    services = [Service("first", ends.run), Service("second", goes_on.run)]
    with (
        pytest.raises(LaunchError, match=r"^first ended by itself with exit code 3; see its log above$"),
        running(services),
    ):
        watch(services, restart=False, tell=pytest.fail)
    assert [process.returncode for process in ends.processes + goes_on.processes] == [3, -15]


def test_services_end_in_the_opposite_order_after_all_were_asked():
    ends = []
    first, second = Children(ends=ends), Children(ends=ends)
    asked = []
    with running(
        [Service("first", first.run), Service("second", second.run)], before_end=lambda: asked.append(list(ends))
    ):
        assert all(process.poll() is None for process in first.processes + second.processes)
    assert asked == [[]]
    assert ends == [second, first]


def test_service_that_cannot_be_started_ends_those_that_were():
    runs, fails = Children(), Children(None)
    with (
        pytest.raises(LaunchError, match=r"^cannot be started$"),
        running([Service("first", runs.run), Service("second", fails.run)]),
    ):
        pytest.fail("the block is not entered")
    assert runs.processes[0].returncode == -15


def test_parent_is_known_of_a_running_child_alone():
    """Also of one whose name has spaces and brackets, as any program may choose."""
    name = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z 1 (b'); print(flush=True); "  # PR_SET_NAME
    with subprocess.Popen(
        [sys.executable, "-c", name + WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert parent_of(process.pid) == os.getpid()
        assert process.pid in children(os.getpid())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken notice
        assert parent_of(process.pid) is None
        assert process.pid not in children(os.getpid())
    assert parent_of(process.pid) is None
