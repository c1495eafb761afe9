"""The supervisor, over small real processes: they are started again with growing delays, and all of them end."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from medimage_server import supervisor
from medimage_server.errors import LaunchError
from medimage_server.processes import children, exit_of, parent_of
from medimage_server.supervisor import FIRST_DELAY_S, HEALTHY_S, MAX_DELAY_S, Service, running, watch
from tests.waiting import wait_until

WAITS = "import sys; sys.stdin.read()"  # until its parent has closed the pipe, or a signal
LIMIT_S = 10.0


class Enough(Exception):
    """Ends a watch, which has no end of its own."""


@dataclass(frozen=True)
class Child:
    process: subprocess.Popen
    is_broken: bool = False  # runs, and does not serve

    def failure(self):
        return exit_of(self.process) or ("is broken" if self.is_broken else None)


class Children:
    """Starts child processes, one after the other, and keeps what became of them."""

    def __init__(self, *programs, breaks=False, ends=None):
        self.processes = []
        self._programs = programs or (WAITS,)
        self._breaks = breaks  # the first one
        self._ends = [] if ends is None else ends

    @contextmanager
    def run(self):
        program = self._programs[min(len(self.processes), len(self._programs) - 1)]
        if program is None:
            self.processes.append(None)
            raise LaunchError("cannot be started")
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        self.processes.append(process)
        try:
            yield Child(process, self._breaks and len(self.processes) == 1)
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)
            self._ends.append(self)


@pytest.fixture
def sleeps(monkeypatch):
    """The delays before a start; the pauses between looks are real and not among them."""
    delays, sleep = [], supervisor.sleep

    def note(seconds):
        if seconds == supervisor.POLL_S:
            sleep(seconds / 10)
        else:
            delays.append(seconds)

    monkeypatch.setattr(supervisor, "sleep", note)
    return delays


def stop():
    raise Enough


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


def test_service_that_ends_is_started_again_and_the_others_go_on(sleeps):
    ends, goes_on = Children("raise SystemExit(3)", WAITS), Children()
    said = watched([Service("first", ends.run), Service("second", goes_on.run)], "is ready again")
    assert said == ["first ended by itself with exit code 3; starting it again in 0.5 s", "first is ready again"]
    assert sleeps == [FIRST_DELAY_S]
    assert (len(ends.processes), len(goes_on.processes)) == (2, 1)
    assert all(process.poll() is not None for process in ends.processes + goes_on.processes)


def test_service_that_runs_and_does_not_serve_is_killed_and_started_again(sleeps):
    server = Children("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS, WAITS, breaks=True)
    said = watched([Service("a server", server.run)], "is ready again")
    assert said[0] == "a server is broken; starting it again in 0.5 s"
    assert server.processes[0].returncode == -9  # it heeds nothing else


def test_delays_double_up_to_a_bound_while_it_ends_or_cannot_be_started(sleeps):
    server = Children("raise SystemExit(1)", None, "raise SystemExit(1)", None, None, None, None, None, None)
    said = watched([Service("a server", server.run)], f"again in {MAX_DELAY_S:g} s")
    assert sleeps == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]  # and the watch was left before the next
    assert said[-1] == "a server could not be started; starting it again in 30 s"
    assert said.count("a server: cannot be started") == 5
    assert said.count("a server is ready again") == 1


def test_failures_of_a_service_that_ran_for_long_are_forgotten(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(supervisor, "monotonic", lambda: now[0])
    service = Service("a server", Children().run)
    service.start()
    try:
        assert [service.delay_s() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        now[0] += HEALTHY_S + 1.0
        assert service.delay_s() == FIRST_DELAY_S
    finally:
        service.stop()


def test_delays_grow_also_after_a_long_run(monkeypatch):
    """What cannot be started again for longer than HEALTHY_S has not run for so long."""
    now = [1000.0]
    monkeypatch.setattr(supervisor, "monotonic", lambda: now[0])
    delays = []

    def sleep(seconds):
        now[0] += seconds
        if seconds != supervisor.POLL_S:
            delays.append(seconds)

    monkeypatch.setattr(supervisor, "sleep", sleep)
    server = Children(WAITS, *[None] * 9, breaks=True)
    service = Service("a server", server.run)
    said = []
    with running([service]), pytest.raises(Enough):
        now[0] += 3600.0
        watch([service], restart=True, tell=lambda line: said.append(line) or len(delays) < 9 or stop())
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert now[0] > 4600.0 + HEALTHY_S
    assert said[-1] == "a server: cannot be started"


def test_start_that_the_system_refuses_is_tried_again(sleeps, tmp_path):
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
        "a server: [Errno 28] No space left on device: '/tmp/x'",
        "a server could not be started; starting it again in 1 s",
        "a server is ready again",
    ]


def test_first_start_that_the_system_refuses_is_a_launch_error():
    @contextmanager
    def fail():
        raise OSError(28, "No space left on device", "/tmp/x")
        yield

    with pytest.raises(LaunchError, match=r"No space left on device: '/tmp/x'"), running([Service("a server", fail)]):
        pass


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


def test_command_ends_with_its_parent():
    """The parent is killed by SIGKILL, and can do nothing about it."""
    parent = (
        "import os, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'medimage_server.end_with_parent', str(os.getpid()), '/bin/sleep', '60']\n"
        "print(subprocess.Popen(command, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        command = int(process.stdout.readline())
        wait_until(lambda: Path(f"/proc/{command}/comm").read_text() == "sleep\n", within=LIMIT_S)
        process.kill()
    wait_until(lambda: parent_of(command) is None, within=LIMIT_S, what="its end")


def test_command_is_not_begun_when_its_parent_has_gone_before():
    command = [sys.executable, "-m", "medimage_server.end_with_parent", "1", "/bin/echo", "begun"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S).stdout == ""
