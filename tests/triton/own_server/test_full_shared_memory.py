"""A Triton whose /dev/shm is full: callers are told to come again, and are served when there is room.

It has a /dev/shm of its own, in a mount namespace, which takes root.
"""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from medimage_client import CXRReportGen, MedImageInsight, errors
from medimage_client.images.encoding import encode_image
from tests.triton.commands import ANY_PORT, KEY, ask, images, reports, started

SHM_MB = 600  # the models of the tests take 14 of them, and no more of them is touched than is used
OWN_SHM = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={SHM_MB}m tmpfs /dev/shm && exec "$@"', "sh")


@pytest.fixture(scope="module", autouse=True)
def _may_mount():
    try:
        tried = subprocess.run([*OWN_SHM, "true"], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"cannot mount a /dev/shm: {error}")
    if tried.returncode:
        pytest.skip(f"cannot mount a /dev/shm: {tried.stderr.strip()}")


@pytest.fixture(scope="module")
def serve(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    arguments = ("serve", "--repository", repository, *ANY_PORT)
    with started(*arguments, folder=folder, through=OWN_SHM, last_line="ready: ") as command:
        yield command


@pytest.fixture(scope="module")
def score_port(serve, tmp_path_factory):
    arguments = ("endpoint", "--triton", f"grpc://127.0.0.1:{serve.grpc_port}", "--score-port", 0)
    with started(*arguments, folder=tmp_path_factory.mktemp("endpoint"), environment={"MEDIMAGE_KEYS": KEY}) as command:
        yield command.score_port


@contextmanager
def full(serve):
    """No page is left, but what the regions have already."""
    folder = Path(f"/proc/{serve.process.pid}/root/dev/shm")
    filler = folder / "filler"
    with filler.open("wb") as file:
        system = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, system.f_bavail * system.f_frsize)
    try:
        yield
    finally:
        filler.unlink()


def film_of(size):
    """Noise, which stays as large as a PNG. Regions do not shrink, so each test needs a larger one than the last."""
    return np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp
@pytest.mark.parametrize(("scheme", "size"), [("grpc", 1200), ("http", 2400)])
def test_client_is_told_to_come_again_over_both_wires(serve, scheme, size):
    film = film_of(size)
    url = f"{scheme}://127.0.0.1:{serve.grpc_port if scheme == 'grpc' else serve.http_port}"
    with MedImageInsight(url, retries=0) as embedder, CXRReportGen(url, retries=0) as reporter:
        calls = [
            lambda: embedder.embed_images([film]),
            lambda: reporter.report(film),
            lambda: list(reporter.stream(film)),
        ]
        with full(serve):
            for call in calls:
                with pytest.raises(errors.NoSharedMemory, match="larger /dev/shm"):
                    call()
        for call in calls:
            assert call() is not None


def test_endpoint_answers_503_and_when_to_come_again(serve, score_port):
    encoded = encode_image(film_of(4000))
    with full(serve):
        for body in (images(encoded), reports(encoded)):
            status, headers, answer = ask(score_port, body)
            assert (status, headers["retry-after"]) == (503, "5")
            assert b"shared memory" in answer
    for body in (images(encoded), reports(encoded)):
        assert ask(score_port, body)[0] == 200
