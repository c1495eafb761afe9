"""The launcher and `medimage serve` with a real Triton: what is started is ended, and servers do not meet."""

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from medimage_server import launcher
from medimage_server.launcher import run_triton
from tests.triton.commands import ANY_PORT, END_S, MEDIMAGE, started
from tests.triton.processes import command_line, descendants, executable, is_running, shared_memory
from tests.triton.requests import bytes_input, embed_texts
from tests.waiting import wait_until

CLEAR_S = 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_serve_ends_with_all_it_started(repository, tmp_path, number):
    command = [*MEDIMAGE, "serve", "--repository", repository, "--models", "medimageinsight_text", *ANY_PORT]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout.readline().startswith("ready: grpc://127.0.0.1:")
            started = descendants(process.pid)
            assert len(started) > 1  # Triton, and the stub processes of its Python models
            process.send_signal(number)
            assert process.wait(END_S) == 0
        finally:
            process.terminate()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []  # not even the .ses file of onnxruntime's telemetry


def test_serve_fails_when_its_triton_is_killed_and_leaves_no_shared_memory(repository):
    models = ["--models", "medimageinsight_text"]
    command = [*MEDIMAGE, "serve", "--repository", repository, *models, *ANY_PORT, "--no-restart"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()  # ready
            (triton,) = [child for child in descendants(process.pid) if executable(child) == "tritonserver"]
            regions = shared_memory(triton)
            assert len(regions) > 1  # of the python and our onnxruntime backend, with the tensors of the last requests
            os.kill(triton, signal.SIGKILL)
            _, errors = process.communicate(timeout=END_S)
        finally:
            process.terminate()
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "Error: Triton ended by itself with exit code -9; see its log above"
    assert not [region for region in regions if region.exists()]


@pytest.mark.parametrize(
    "after",
    [
        pytest.param("tritonserver", id="at-once", marks=pytest.mark.soak),
        pytest.param("triton_python_backend_stub", id="models-loading"),
    ],
)
def test_killed_while_triton_starts_it_leaves_nothing(repository, tmp_path, after):
    """SIGTERM to Triton alone would leave the processes of models that are just being loaded."""
    command = [*MEDIMAGE, "serve", "--repository", repository, "--score-port=0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: after in {executable(pid) for pid in descendants(process.pid)})
            started = descendants(process.pid)
            guard = started[0]
            (run,) = [path for path in map(Path, command_line(guard).split()) if path.parent == Path("/dev/shm")]
        finally:
            process.kill()
    started += descendants(guard)
    wait_until(lambda: not any(map(is_running, started)), within=CLEAR_S, what="that no process is left")
    assert not list(Path("/dev/shm").glob(f"{run.name}*"))
    assert not list(tmp_path.glob("medimage-*"))


def test_what_a_killed_run_has_left_is_removed_by_the_next(repository, tmp_path):
    options = ["--repository", repository, "--models=medimageinsight_text", *ANY_PORT]
    with started("serve", *options, folder=tmp_path / "first", last_line="models: ") as command:
        processes = [command.process.pid, *descendants(command.process.pid)]
        regions = shared_memory(command.triton)
        assert regions
        for pid in processes:  # the guard is among the first, so that nobody is left to clear up
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, processes[1:])))
    assert all(region.exists() for region in regions)
    assert list((tmp_path / "first").glob("medimage-triton-*"))
    with started("serve", *options, folder=tmp_path / "second", last_line="models: ") as command:
        assert re.search(
            r"^removed /dev/shm/medimage-triton-\w+, left by a run", command.errors.read_text(), re.MULTILINE
        )
        assert not any(region.exists() for region in regions)
        assert not list((tmp_path / "first").glob("medimage-triton-*"))


def test_second_server_runs_beside_the_first_with_its_chosen_models_only(triton, repository, tmp_path):
    with (
        run_triton(repository, models=["medimageinsight_text"], log=tmp_path / "log") as second,
        grpc.InferenceServerClient(f"127.0.0.1:{second.grpc_port}") as client,
    ):
        assert client.is_model_ready("text_encoder")
        assert not client.is_model_ready("image_encoder")
        np.testing.assert_array_equal(embed_texts(client, [b"heart"]), embed_texts(triton.grpc, [b"heart"]))
    assert triton.grpc.is_server_ready()


def test_refused_requests_do_not_keep_the_server_from_ending(repository, tmp_path):
    """A fan-out ensemble never released a request of which one branch failed, see medimageinsight/config.pbtxt."""
    drawing = (repository / "image_preprocessing/warmup/drawing").read_bytes()[4:]
    bad = b"\xff"  # neither an image nor UTF-8
    with (
        run_triton(repository, models=["medimageinsight"], log=tmp_path / "log") as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        for image, text in ((bad, b"heart"), (drawing, bad)):
            with pytest.raises(InferenceServerException, match="row 0: "):
                client.infer("medimageinsight", [bytes_input("image", [image]), bytes_input("text", [text])])
        server.ask_to_end()
        assert server.process.wait(END_S) == 0


STOPPED_ONCE = """
import os, pathlib, signal, subprocess

class TritonPythonModel:
    def initialize(self, args):
        seen = pathlib.Path({seen!r})
        if not seen.exists():  # as on a machine that gives it no processor
            seen.touch()
            subprocess.Popen(["sh", "-c", f"sleep 2.5; kill -CONT {{os.getpid()}}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    def execute(self, requests):
        return []
"""


def test_start_that_got_stuck_is_begun_again(tmp_path, monkeypatch, caplog):
    """Triton gives up a process that shows no life for a second while it is loaded, and waits for its end for ever."""
    monkeypatch.setattr(launcher, "STUCK_S", 1.5)
    (tmp_path / "models/late/1").mkdir(parents=True)
    (tmp_path / "models/late/1/model.py").write_text(STOPPED_ONCE.format(seen=str(tmp_path / "seen")))
    (tmp_path / "models/late/config.pbtxt").write_text(
        'name: "late"\nbackend: "python"\ninput { name: "a" data_type: TYPE_INT32 dims: 1 }\n'
        'output { name: "b" data_type: TYPE_INT32 dims: 1 }\ninstance_group { kind: KIND_CPU }\n'
    )
    with run_triton(tmp_path / "models", log=tmp_path / "log") as server:
        assert server.models == ("late",)
    (said,) = caplog.messages
    assert said == (
        f"Triton did not start: Triton came to a standstill as it loaded its models; see {tmp_path}/log; "
        "next try in 0.5 s"
    )
