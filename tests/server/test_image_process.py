"""What a decoder does to its process ends within limits, is told in one line, and harms no image after it."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from medimage_server.errors import Cancelled, InferenceFailed, InvalidInput, Unavailable
from medimage_server.image_process import ImageLimits, ImageProcess
from medimage_server.image_requests import fill_rows
from tests.paths import ROOT
from tests.server.acting import SHAPE, act
from tests.triton.processes import is_running
from tests.waiting import wait_until

ADVICE = "save it as baseline JPEG or as PNG"
TIME = f"image takes more than 1 s of computing time to decode; {ADVICE}"
MEMORY = f"image takes more than 0.125 GB of memory; {ADVICE}"
CRASH = f"image brings its decoder to a crash; {ADVICE}"


@pytest.fixture(scope="module")
def process_of_all():
    with ImageProcess(act, SHAPE, ImageLimits(cpu_s=1, memory_bytes=2**27)) as process:
        yield process


@pytest.fixture
def process(process_of_all):
    yield process_of_all
    assert process_of_all.run(b"good").tolist() == [1, 2, 3, 4]  # whatever has happened


def serves(process):
    with suppress(Unavailable):
        return process.run(b"good").tolist() == [1, 2, 3, 4]


@pytest.fixture
def hasty():
    """Its wall clock limit is short."""
    with ImageProcess(act, SHAPE, ImageLimits(wall_s=2.0)) as process:
        yield process
        wait_until(lambda: serves(process), what="a served image")  # a new child may take longer than that to start


def test_pixels_and_arguments_go_there_and_back(process):
    assert process.run(b"good", (5, 6, 7, 8)).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"loop", TIME), (b"allocate", MEMORY), (b"crash", CRASH), (b"abort", CRASH), (b"exit", CRASH)],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_image_that_is_over_a_limit_or_crashes_its_decoder_is_refused_and_the_next_served(process, data, message):
    before = process.pid
    with pytest.raises(InvalidInput) as caught:
        process.run(data)
    assert str(caught.value) == message
    assert process.pid != before
    assert not is_running(before)


def test_computing_time_is_counted_for_each_image_anew(process):
    """More than twice the limit in all."""
    before = process.pid
    for _ in range(4):
        process.run(b"burn")
    assert process.pid == before


def test_image_over_a_limit_is_named_by_its_row_and_the_next_request_is_served(process):
    pixels = np.zeros((2, *SHAPE), np.uint8)
    with pytest.raises(InvalidInput) as caught:
        fill_rows(pixels, [b"good", b"loop"], process.run)
    assert str(caught.value) == f"row 1: {TIME}"
    fill_rows(pixels, [b"good", b"good"], process.run)
    assert pixels.tolist() == [[1, 2, 3, 4]] * 2


def test_request_is_asked_before_each_of_its_images_whether_it_was_cancelled(process):
    pixels = np.zeros((3, *SHAPE), np.uint8)
    with pytest.raises(Cancelled):
        fill_rows(pixels, [b"good"] * 3, process.run, is_cancelled=after(3))
    assert pixels.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [0] * 4]


def after(questions):
    """A request that is cancelled when it is asked so often."""
    left = iter(range(questions - 1))
    return lambda: next(left, None) is None


def test_cancelled_image_is_given_up_and_its_child_ended(process):
    before = process.pid
    with pytest.raises(Cancelled, match=r"^the request was cancelled$"):
        process.run(b"loop", is_cancelled=after(2))
    assert not is_running(before)


def test_stopped_child_is_ended_after_a_while_and_the_image_not_blamed(hasty):
    before = hasty.pid
    with pytest.raises(Unavailable) as caught:
        hasty.run(b"stop")
    assert str(caught.value) == "an image was not decoded within 2 s on this busy machine; try again later"
    assert not is_running(before)


def test_child_killed_from_outside_is_not_blamed_on_the_image(process, caplog):
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
    with pytest.raises(Unavailable, match=r"^the process that decodes images was ended from outside; try again$"):
        process.run(b"loop")
    assert caplog.messages == ["the process for images was ended by SIGKILL"]


def test_child_killed_between_two_images_costs_no_answer(process, caplog):
    before, alone = process.pid, process.run(b"good")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: not is_running(before))
    np.testing.assert_array_equal(process.run(b"good"), alone)
    assert caplog.messages == ["the process for images was ended by SIGKILL while it had none"]


def test_crash_is_logged_by_the_name_of_its_signal_alone(process, caplog, capfd):
    with pytest.raises(InvalidInput):
        process.run(b"crash")
    assert caplog.messages == ["the process for images was ended by SIGSEGV"]
    assert capfd.readouterr() == ("", "")


def test_unexpected_error_tells_the_caller_nothing_and_the_log_no_content(process, caplog):
    with pytest.raises(InferenceFailed, match=r"^internal error$"):
        process.run(b"fail")
    [message] = caplog.messages
    assert message.startswith("preprocessing of an image failed: RuntimeError\n")
    assert "in fail" in message
    assert "Jane Doe" not in message


def test_child_has_one_thread(process):
    assert process.run(b"threads").tolist() == [1, 1, 0, 0]


def test_child_holds_no_descriptor_but_its_own(process, tmp_path):
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with ImageProcess(act, SHAPE) as other:
            held = sorted(os.readlink(link) for link in Path(f"/proc/{other.pid}/fd").iterdir())
    assert [name.partition(":")[0] for name in held] == ["/dev/null"] * 3 + ["/memfd", "pipe", "pipe"]


def test_child_is_told_no_keys(monkeypatch):
    monkeypatch.setenv("MEDIMAGE_KEYS", "secret")
    with ImageProcess(act, SHAPE) as process:
        assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


@pytest.mark.parametrize("data", [b"good", b"fail"])
def test_nothing_of_an_image_stays_in_the_memory_it_came_in(process, data):
    with suppress(InferenceFailed):
        process.run(data)
    held = [link for link in Path(f"/proc/{process.pid}/fd").iterdir() if "medimage-image" in os.readlink(link)]
    assert [link.stat().st_size for link in held] == [0]


def test_closed_process_leaves_no_child_and_no_descriptor():
    before = os.listdir("/proc/self/fd")
    with ImageProcess(act, SHAPE) as process:
        child = process.pid
    assert not is_running(child)
    assert process.pid is None
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_many_ended_children_leave_no_descriptors(process):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(InvalidInput):
            process.run(b"crash")
    assert len(os.listdir("/proc/self/fd")) == before


PARENT = """
from medimage_server.image_process import ImageProcess
from tests.server.acting import SHAPE, act
process = ImageProcess(act, SHAPE)
print(process.pid, flush=True)
process.run({data!r})
input()
"""


@pytest.mark.parametrize("data", [b"good", b"loop", b"stop"], ids=["idle", "busy", "stopped"])
def test_child_ends_with_a_killed_parent(data):
    command = [sys.executable, "-c", PARENT.format(data=data)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
        parent.wait()
        wait_until(lambda: not is_running(child), within=3, what="the end of the child")


def test_function_that_the_child_cannot_import_stops_the_start(monkeypatch, caplog, capfd):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT])
    with pytest.raises(InferenceFailed):
        ImageProcess(act, SHAPE)
    assert caplog.messages == ["the process for images ended with exit code 1 before it was ready"]
    assert "No module named 'tests'" in capfd.readouterr().err


def test_large_images_go_there_and_back():
    """More than any pipe holds."""
    data = np.random.default_rng(0).bytes(20_000_000)
    with ImageProcess(echo, (20_000_000,)) as process:
        np.testing.assert_array_equal(process.run(data), np.frombuffer(data, np.uint8))


def echo(data):
    return np.frombuffer(data, np.uint8)
