"""The numbers of workers: a full disk does not kill them, and a worker that is started again goes on counting."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from medimage_server.endpoint import metrics
from medimage_server.endpoint.settings import MODELS
from medimage_server.errors import LaunchError

# every label that there can be, with 64 Tritons
COUNT = (
    "from http import HTTPStatus\n"
    "from medimage_server.endpoint import metrics as m\n"
    f"deployments = {[*MODELS, metrics.NO_DEPLOYMENT, 'unknown']}\n"
    "for deployment in deployments:\n"
    "    for status in [*HTTPStatus, 499]: m.REQUESTS.labels(deployment, str(int(status))).inc()\n"
    "    m.ROWS.labels(deployment).inc(); m.REQUEST_SECONDS.labels(deployment).observe(1)\n"
    "    for stage in ('receive', 'parse', 'model', 'send'): m.STAGE_SECONDS.labels(deployment, stage).observe(1)\n"
    "    for n in range(64): m.TRITONS_READY.labels(f'grpc://a-machine-with-a-long-name-{n}:8001', deployment).set(1)\n"
    "before = m.value('medimage_endpoint_in_flight')\n"
    "m.IN_FLIGHT.inc(3)\n"
    "print(int(before), m.counts_by_status()[200])\n"
)


def count(folder, worker=1, program=COUNT):
    environment = os.environ | {metrics.FOLDER_VARIABLE: str(folder), metrics.WORKER_VARIABLE: str(worker)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)


@contextmanager
def small_disk(folder, n_bytes):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_folder_of_another_program_does_not_make_a_worker(tmp_path):
    """It stands in the environment of whoever runs us beside it."""
    environment = os.environ | {metrics.FOLDER_VARIABLE: str(tmp_path)}
    environment.pop(metrics.WORKER_VARIABLE, None)
    program = "from medimage_server.endpoint import worker_pool"
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_all_that_can_be_counted_fits_into_what_is_reserved(tmp_path):
    metrics.reserve(tmp_path, 2)
    files = {path.name: path for path in tmp_path.iterdir()}
    assert files.keys() == {f"{name}_{worker}.db" for name in metrics.FILES for worker in (1, 2)}
    assert all(path.stat().st_blocks * 512 >= metrics.FILE_BYTES for path in files.values())
    assert count(tmp_path).returncode == 0
    assert {path.name: path for path in tmp_path.iterdir()} == files
    assert {path.stat().st_size for path in files.values()} == {metrics.FILE_BYTES}


def test_full_disk_kills_no_worker(tmp_path):
    with small_disk(tmp_path, 2 * len(metrics.FILES) * metrics.FILE_BYTES) as folder:
        metrics.reserve(folder, 1)
        fill(folder)
        done = count(folder)
        assert done.returncode == 0, done.stderr
        # as prometheus_client does it by itself
        for path in folder.glob("*.db"):
            path.unlink()
        fill(folder)
        assert count(folder).returncode in (-signal.SIGBUS, 1)


def test_disk_that_has_no_room_is_one_line_at_the_start(tmp_path):
    with (
        small_disk(tmp_path, metrics.FILE_BYTES) as folder,
        pytest.raises(
            LaunchError,
            match=r"^cannot reserve memory for the numbers of workers: \[Errno 28\] No space left on device",
        ),
    ):
        metrics.reserve(folder, 1)


def test_worker_that_is_started_again_goes_on_with_its_counts_and_nothing_under_way(tmp_path):
    metrics.reserve(tmp_path, 2)
    n = len(MODELS) + 1  # deployments that are counted
    assert count(tmp_path).stdout == f"0 {n}\n"
    assert count(tmp_path).stdout == f"0 {2 * n}\n"
    assert count(tmp_path, worker=2).stdout == f"3 {3 * n}\n"  # with what the first has under way


def test_process_alone_counts_for_itself():
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={name: value for name, value in os.environ.items() if name != metrics.FOLDER_VARIABLE},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"0 {len(MODELS) + 1}\n", done.stderr
