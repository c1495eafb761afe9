"""The access log: what a line says, and that no disk holds up a request."""

import fcntl
import json
import os
import stat
import threading
from contextlib import closing, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from http.client import HTTPConnection
from time import perf_counter

import pytest

from medimage_server.endpoint import access_log as module
from medimage_server.endpoint import metrics
from medimage_server.endpoint.access_log import LogEntry, access_log
from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.supervisor import running
from tests.server.endpoint.asgi import SETTINGS
from tests.waiting import wait_until

ENTRY = {"request_id": "r1", "method": "POST", "route": "/score", "status": 200}


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


@pytest.fixture
def lost():
    """Lines that were lost since the test began."""
    before = metrics.value("medimage_endpoint_lost_log_lines_total")
    return lambda: metrics.value("medimage_endpoint_lost_log_lines_total") - before


def test_line_is_an_object_of_what_is_known(tmp_path):
    file = tmp_path / "log"
    entry = LogEntry(**ENTRY, deployment="medimageinsight", rows=3, ms=1.5, stages_ms={"model": 1.25}, received_bytes=9)
    begun = datetime.now(UTC)
    with access_log(str(file)) as log:
        log.write(entry)
        log.write(LogEntry(**ENTRY, reason="a reason, “in” our words\nand another"))
    first, second = lines(file)
    time = datetime.fromisoformat(first.pop("time"))
    assert -0.01 <= (time - begun).total_seconds() < 5
    assert first == {name: value for name, value in asdict(entry).items() if value is not None}
    assert not {"layout", "reason"} & first.keys()
    assert second["reason"] == "a reason, “in” our words\nand another"
    assert {"deployment", "rows"} & second.keys() == set()


def test_lines_are_appended_in_order_and_all_written_at_the_end(tmp_path):
    file = tmp_path / "log"
    file.write_text('{"request_id": "before"}\n')
    for half in (range(500), range(500, 1000)):
        with access_log(str(file)) as log:
            for n in half:
                log.write(LogEntry(**ENTRY | {"request_id": str(n)}))
    assert [line["request_id"] for line in lines(file)] == ["before", *map(str, range(1000))]


def test_file_that_was_moved_is_opened_again(tmp_path):
    file, moved = tmp_path / "log", tmp_path / "log.1"
    with access_log(str(file)) as log:
        log.write(LogEntry(**ENTRY | {"request_id": "old"}))
        wait_until(lambda: lines(file))
        file.rename(moved)
        log.write(LogEntry(**ENTRY | {"request_id": "new"}))
        wait_until(lambda: lines(file))
    assert [line["request_id"] for line in lines(moved)] == ["old"]
    assert [line["request_id"] for line in lines(file)] == ["new"]


def test_file_is_made_for_this_user_alone_also_after_it_was_moved(tmp_path):
    file = tmp_path / "log"
    mask = os.umask(0o022)
    try:
        with access_log(str(file)) as log:
            for name in ("log.1", "log.2"):
                log.write(LogEntry(**ENTRY))
                wait_until(lambda: lines(file))
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                file.rename(tmp_path / name)
            file.touch(0o640)  # as logrotate does where it is told `create 0640`
            log.write(LogEntry(**ENTRY))
            wait_until(lambda: lines(file))
            assert stat.S_IMODE(file.stat().st_mode) == 0o640
    finally:
        os.umask(mask)


def test_standard_output_is_a_target(capsys):
    with access_log("-") as log:
        log.write(LogEntry(**ENTRY))
    out, err = capsys.readouterr()
    assert json.loads(out)["request_id"] == "r1"
    assert err == ""


def test_nowhere_is_a_target(capsys, caplog):
    with access_log(None) as log:
        log.write(LogEntry(**ENTRY))
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == []


def test_nothing_reaches_the_root_logger(tmp_path, caplog):
    with caplog.at_level(0), access_log(str(tmp_path / "log")) as log:
        log.write(LogEntry(**ENTRY))
    assert caplog.messages == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
def test_full_disk_loses_lines_counts_them_and_harms_nothing(lost, capsys):
    with access_log("/dev/full") as log:
        for _ in range(20):
            log.write(LogEntry(**ENTRY))
        wait_until(lambda: lost() == 20)
    assert capsys.readouterr().err == ""


def test_file_that_cannot_be_opened_for_a_time_loses_only_the_lines_of_that_time(tmp_path, lost):
    folder = tmp_path / "logs"
    folder.mkdir()
    file = folder / "log"
    with access_log(str(file)) as log:
        log.write(LogEntry(**ENTRY | {"request_id": "before"}))
        wait_until(lambda: lines(file))
        folder.rename(tmp_path / "old")
        for _ in range(3):
            log.write(LogEntry(**ENTRY | {"request_id": "lost"}))
        wait_until(lambda: lost() == 3)
        folder.mkdir()
        log.write(LogEntry(**ENTRY | {"request_id": "after"}))
        wait_until(lambda: lines(file))
    assert [line["request_id"] for line in lines(file)] == ["after"]
    assert lost() == 3


def test_disk_that_has_stopped_never_holds_up_a_writer(tmp_path, monkeypatch, lost):
    """A pipe that nobody reads takes 64 KiB, then blocks, as a disk that has stopped does."""
    monkeypatch.setattr(module, "MAX_WAITING_LINES", 50)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    n_lines = 3000  # of 170 bytes
    with access_log(str(pipe)) as log:
        longest_s = 0.0
        for n in range(n_lines):
            start = perf_counter()
            log.write(LogEntry(**ENTRY | {"request_id": str(n)}))
            longest_s = max(longest_s, perf_counter() - start)
        assert longest_s < 5.0  # one that waits for the disk would wait for ever
        assert lost() >= n_lines - 50 - 2 * 65536 // 100
        os.set_blocking(reader, True)  # the disk goes on
        received = bytearray()

        def read():
            while part := os.read(reader, 65536):
                received.extend(part)

        reading = threading.Thread(target=read)
        reading.start()
    reading.join(timeout=5)
    assert not reading.is_alive()  # the file is closed
    os.close(reader)
    written = [json.loads(line)["request_id"] for line in received.decode().splitlines()]
    assert len(written) + lost() == n_lines
    assert written == sorted(written, key=int)


def test_end_does_not_wait_for_a_disk_that_has_stopped_with_all_its_lines(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(module, "MAX_WAITING_LINES", 50)
    monkeypatch.setattr(module, "LAST_LINES_S", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with access_log(str(pipe)) as log:
        for _ in range(3000):
            log.write(LogEntry(**ENTRY))
        start = perf_counter()
    assert perf_counter() - start < 2.0
    received = bytearray()

    def all_is_read():  # so that the thread, which lives on, has nothing to do
        with suppress(BlockingIOError):
            received.extend(os.read(reader, 65536))
        return received.count(b"\n") + lost() == 3000

    wait_until(all_is_read)
    os.close(reader)


def test_worker_ends_by_itself_while_the_disk_has_stopped(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    settings = replace(SETTINGS, tritons=("grpc://127.0.0.1:1",), access_log=str(pipe))
    with bound("127.0.0.1", 0) as listener:
        with running(endpoint_services(settings, listener, tmp_path)) as (worker,):
            with closing(HTTPConnection(*listener.getsockname(), timeout=10)) as connection:
                for _ in range(100):  # lines of 200 bytes
                    connection.request("GET", "/live")
                    assert connection.getresponse().read() == b"Alive"
            start = perf_counter()
        assert perf_counter() - start < module.LAST_LINES_S + 2.0
    assert worker.process.returncode == 0  # and was not killed
    assert 0 < os.read(reader, 10_000).count(b"\n") < 100
    os.close(reader)
