"""The guard of a server that is not ours to change: it ends with its parent, and nothing of it stays."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from medimage_server.guard import END_S
from medimage_server.processes import children, parent_of
from medimage_server.run_folder import run_folder
from tests.waiting import wait_until

LIMIT_S = 10.0
# a child that is in a session of its own and heeds nothing, as a process of a model that is just being started
STUBBORN_CHILD = (
    "import signal, subprocess, sys, time\n"
    "ignore = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)'\n"
    "child = subprocess.Popen([sys.executable, '-c', ignore], stdout=subprocess.PIPE, start_new_session=True)\n"
    "child.stdout.readline()\n"
)


@contextmanager
def guarded(program, **more):
    """A Python program under a guard, from when it has printed a line."""
    with run_folder() as run:
        command = [sys.executable, "-m", "medimage_server.guard", run.path, sys.executable, "-c", program]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[run.lock],
            start_new_session=True,
            **more,
        ) as guard:
            try:
                said = guard.stdout.readline().decode().strip()
                yield SimpleNamespace(process=guard, run=run, server=children(guard.pid)[0], said=said)
            finally:
                guard.kill()


def everything(pid):
    return [pid, *(pid for child in children(pid) for pid in everything(child))]


@pytest.mark.parametrize("heeds", [True, False], ids=["ends-when-told", "heeds-nothing"])
def test_all_ends_when_the_parent_has_ended(heeds):
    at_sigterm = "" if heeds else "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    with guarded(STUBBORN_CHILD + at_sigterm + "print(flush=True); time.sleep(60)") as guard:
        processes = everything(guard.process.pid)
        assert len(processes) == 3
        region = Path(f"/dev/shm/{guard.run.region_prefix}region")
        region.touch()
        guard.process.stdin.close()  # which the end of the parent does
        guard.process.wait(END_S + LIMIT_S)
        wait_until(lambda: not any(parent_of(pid) for pid in processes), within=LIMIT_S)
        assert not region.exists()
        assert not guard.run.path.exists()


def test_all_ends_when_the_server_has_ended_by_itself():
    with guarded(STUBBORN_CHILD + "print(flush=True); time.sleep(60)") as guard:
        processes = everything(guard.process.pid)
        region = Path(f"/dev/shm/{guard.run.region_prefix}region")
        region.touch()
        os.kill(guard.server, signal.SIGKILL)
        assert guard.process.wait(LIMIT_S) == -signal.SIGKILL  # as the server
        assert not any(parent_of(pid) for pid in processes)
        assert not region.exists()
        assert guard.run.path.exists()  # the parent goes on with it


def test_server_ends_when_its_guard_is_killed():
    with guarded("import time; print(flush=True); time.sleep(60)") as guard:
        guard.process.kill()
        guard.process.wait(LIMIT_S)
        wait_until(lambda: parent_of(guard.server) is None, within=LIMIT_S)


def test_asked_to_end_it_asks_the_server_and_ends_as_it_does():
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(flush=True)"
    with guarded(f"{program}; time.sleep(60)") as guard:
        guard.process.terminate()
        assert guard.process.wait(LIMIT_S) == 7


def test_files_are_private_from_the_moment_they_are_made(tmp_path):
    """As boost makes a region: open with a mode, then fchmod, which no umask holds back."""
    made = (
        "import os, time\n"
        "file = os.open('region', os.O_CREAT | os.O_RDWR, 0o644)\n"
        "first = os.fstat(file).st_mode\n"
        "os.fchmod(file, 0o644); os.ftruncate(file, 2**20)\n"
        "print(oct(first & 0o777), oct(os.fstat(file).st_mode & 0o777), flush=True); time.sleep(60)\n"
    )
    with guarded(made, cwd=tmp_path, umask=0) as guard:
        assert guard.said == "0o600 0o600"
        assert stat.S_IMODE((tmp_path / "region").stat().st_mode) == 0o600


def test_no_core_is_written():
    program = "import resource, time; print(resource.getrlimit(resource.RLIMIT_CORE), flush=True); time.sleep(60)"
    with guarded(program) as guard:
        assert guard.said == "(1, 1)"
