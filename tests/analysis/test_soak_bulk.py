"""Bulk runs that are killed three times and gone on with: over 20,000 images, and on a real Triton over fewer.

The 20,000 are answered by a server that computes nothing, so that the run is busy with its own work. With the phantom,
two busy cores embed a few a second.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from PIL import Image

from medimage_analysis.table import Table, shards_of
from tests.paths import ROOT
from tests.triton.processes import descendants

pytestmark = pytest.mark.soak

N_SHARDS = 80
START_S = 120.0


def write_images(folder: Path, n_images: int) -> None:
    """Folders of a thousand small noise images."""
    noise = np.random.default_rng(0)
    for n in range(n_images):
        path = folder / f"{n // 1000:02d}" / f"{n:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).resize((64, 64)).save(path)


class Command:
    """A command in a process group of its own."""

    def __init__(self, log: Path, *args: object) -> None:
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*map(str, args)], cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        end = monotonic() + START_S
        while "\nready: " not in f"\n{self._log.read_text()}":
            assert self.process.poll() is None and monotonic() < end, self._log.read_text()[-2000:]
            sleep(0.2)

    def kill(self) -> None:
        """As a machine that loses power: nobody gets to clear up."""
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def rss_mb(self) -> float:
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return 0.0
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(("server_is_real", "n_images"), [(False, 20_000), (True, 800)], ids=["20000", "triton"])
def test_a_run_that_is_killed_three_times_has_each_row_once(server_is_real, n_images, exported, tmp_path):
    images, table, port = tmp_path / "images", tmp_path / "vectors", free_port()
    write_images(images, n_images)
    medimage = Path(sys.executable).with_name("medimage")
    shard_size = n_images // N_SHARDS
    n_starts = 0
    memory: list[tuple[int, float]] = []  # (shards that are done, MB of the client)

    def serve() -> Command:
        nonlocal n_starts
        n_starts += 1
        command: list[object] = [sys.executable, "-m", "tests.analysis.fake_server", port]
        if server_is_real:
            command = [medimage, "serve", "--repository", exported("fp32"), "--grpc-port", port]
            command += ["--http-port", 0, "--metrics-port", 0]
        server = Command(tmp_path / f"server{n_starts}.log", *command)
        server.wait_until_ready()
        return server

    def embed() -> Command:
        url = f"grpc://127.0.0.1:{port}"
        options = ["--to", table, "--shard-size", shard_size, "--url", url]
        return Command(tmp_path / "client.log", medimage, "embed", images, *options)

    def until(n_shards: int, client: Command) -> None:
        while len(shards_of(table)) < n_shards:
            assert client.process.poll() is None, (tmp_path / "client.log").read_text()[-2000:]
            memory.append((len(shards_of(table)), client.rss_mb()))
            sleep(0.2)

    begun = monotonic()
    server, client = serve(), embed()
    try:
        until(N_SHARDS // 4, client)
        client.kill()
        client = embed()
        until(N_SHARDS // 2, client)
        server.kill()
        server = serve()  # the client waits for it
        until(N_SHARDS * 3 // 4, client)
        server.kill()
        client.kill()
        server, client = serve(), embed()
        until(N_SHARDS, client)
        assert client.process.wait(60) == 0
    finally:
        client.kill()
        server.kill()
    ids = Table.open(table).read(["id"])["id"].to_pylist()
    assert len(ids) == n_images
    assert sorted(ids) == sorted(map(str, images.rglob("*.png")))
    vectors = Table.open(table).vectors()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert not (tmp_path / "vectors.run" / "failures.parquet").exists()
    seconds = monotonic() - begun
    print(f"\n{n_images} images, {seconds:.0f} s with three kills; the client's memory by shards done:")
    for quarter in range(4):
        of_quarter = [mb for done, mb in memory if quarter * N_SHARDS <= 4 * done < (quarter + 1) * N_SHARDS and mb]
        print(f"  quarter {quarter + 1}: at most {max(of_quarter, default=0):.0f} MB")
    assert max(mb for _, mb in memory) < 1000
