"""What signals mean to a command: real ones, to small real commands."""

import os
import pty
import signal
import subprocess
import sys

import pytest

LIMIT_S = 10.0
COMMAND = (
    "import time\n"
    "from medimage_server.signals import end_on_signals\n"
    "hangups = end_on_signals()\n"
    "try:\n"
    "    print('begun', flush=True)\n"
    "    while True:\n"
    "        if hangups.came():\n"
    "            print('read again', flush=True)\n"
    "        time.sleep(0.01)\n"
    "finally:\n"
    "    print('left its blocks', flush=True)\n"
)


def begun(**options):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_ends_in_good_order(number):
    with begun() as process:
        process.send_signal(number)
        assert process.communicate(timeout=LIMIT_S)[0] == "left its blocks\n"
    assert process.returncode == 0


def test_hangup_reads_again_and_others_mean_nothing():
    with begun() as process:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
        assert process.stdout.readline() == "read again\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "read again\n"
        process.terminate()
        assert process.communicate(timeout=LIMIT_S)[0] == "left its blocks\n"


def test_ignored_hangup_stays_ignored():
    """As nohup starts a command."""
    with begun(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.communicate(timeout=LIMIT_S)[0] == "left its blocks\n"


def test_closed_terminal_ends_the_command():
    reads, writes = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        os.dup2(writes, 1)
        os.execv(sys.executable, [sys.executable, "-c", COMMAND])
    os.close(writes)
    with os.fdopen(reads) as said:
        assert said.readline() == "begun\n"
        os.close(terminal)
        assert said.read() == "left its blocks\n"
    assert os.waitpid(child, 0)[1] == 0
