"""A run whose process is killed goes on where it ended, and asks again for no more than the open shards."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from medimage_analysis.table import Table, shards_of
from medimage_client.cli.group import medimage
from tests.analysis.fake_server import fake_server
from tests.waiting import wait_until


@pytest.fixture
def server():
    with fake_server() as served:
        yield served


def test_a_killed_run_loses_its_open_shards_alone(server, images, tmp_path):
    url, servicer = server
    run = ["embed", str(images), "--to", str(tmp_path / "t"), "--shard-size", "2", "--url", url]
    assert CliRunner().invoke(medimage, [*run, "--shard", "1/2"]).exit_code == 0
    assert len(shards_of(tmp_path / "t")) == 3 and servicer.n_rows == 5
    servicer.go_on.clear()
    with subprocess.Popen([Path(sys.executable).with_name("medimage"), *run]) as process:
        wait_until(lambda: servicer.n_rows == 9)
        process.send_signal(signal.SIGKILL)
    servicer.go_on.set()
    assert CliRunner().invoke(medimage, run).exit_code == 0
    assert servicer.n_rows == 9 + 4
    ids = Table.open(tmp_path / "t").read(["id"])["id"].to_pylist()
    assert ids == [str(images / f"{n}.png") for n in range(9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "t", "t.run"]
