"""A bulk run on a Ray cluster of this machine: its table is the local one, row for row, also where a worker dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from medimage_analysis.table import Table, shards_of
from medimage_client.cli.group import medimage
from tests.analysis.conftest import png
from tests.analysis.fake_server import fake_server
from tests.triton.processes import command_line, descendants
from tests.waiting import wait_until

pytestmark = pytest.mark.soak

N_IMAGES = 60


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(N_IMAGES):
        (folder / f"{n:02d}.png").write_bytes(png(n))
    (folder / "07.png").write_bytes(b"")
    return folder


@pytest.fixture
def local(images, tmp_path):
    """The table of a run without Ray."""
    with fake_server() as (url, _):
        run = ["embed", str(images), "--to", str(tmp_path / "local"), "--shard-size", "6", "--url", url]
        result = CliRunner().invoke(medimage, run)
        assert result.exit_code == 0, result.output
    return tmp_path / "local"


@contextmanager
def embed_on_ray(images: Path, table: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    """With two cores, in a process that can be watched from outside."""
    program = (
        "import ray, sys; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "from medimage_client.cli import main\n"
        "main()\n"
    )
    command = ["embed", images, "--to", table, "--shard-size", 6, "--engine", "ray", *options]
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, command)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)  # to one that has ended it does nothing


def actors(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid in descendants(process.pid) if "ShardEmbedder" in command_line(pid)]


def same_rows(one: Path, other: Path) -> bool:
    return Table.open(one).read().equals(Table.open(other).read()) and (
        pq.read_table(f"{one}.run/failures.parquet").equals(pq.read_table(f"{other}.run/failures.parquet"))
    )


def test_the_table_is_the_local_one_though_a_worker_is_killed(images, local, tmp_path):
    with fake_server() as (url, servicer), fake_server() as (other_url, _):
        servicer.go_on.clear()  # an actor that asks this one waits
        table = tmp_path / "ray"
        with embed_on_ray(images, table, "--url", url, "--url", other_url) as process:
            wait_until(lambda: len(actors(process)) == 2 and servicer.n_rows > 0, within=180, what="two actors")
            os.kill(actors(process)[0], signal.SIGKILL)
            servicer.go_on.set()
            _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert f"{N_IMAGES} of {N_IMAGES} images" in stderr and "1 failed" in stderr
    assert same_rows(local, table)


def test_a_model_in_each_actor_gives_the_rows_of_triton(images, exported, tmp_path):
    with embed_on_ray(images, tmp_path / "ray", "--in-process", exported("fp32")) as process:
        _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    table = Table.open(tmp_path / "ray")
    assert table.vectors().shape == (N_IMAGES - 1, 1024) and table.model.precision == "fp32"
    assert len(shards_of(tmp_path / "ray")) == N_IMAGES // 6
