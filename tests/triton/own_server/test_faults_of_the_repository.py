"""`medimage serve` when one model is broken, and when another export comes while it runs."""

import os
import shutil
import signal

import numpy as np
import pytest

from medimage_client import MedImageInsight
from medimage_server.errors import LaunchError
from medimage_server.launcher import run_triton
from tests.triton.commands import ANY_PORT, KEY, images, reports, started, status_of, texts
from tests.triton.processes import is_running
from tests.waiting import wait_until

RESTART_S = 60.0


@pytest.fixture
def own(repository, tmp_path):
    """A repository that the test may break."""
    return shutil.copytree(repository, tmp_path / "models")


@pytest.fixture(scope="module")
def image(repository):
    return (repository / "image_preprocessing/warmup/drawing").read_bytes()[4:]


def test_broken_model_is_named_and_the_others_are_served(own, tmp_path):
    weights = own / "image_encoder/1/model.onnx"
    weights.write_bytes(weights.read_bytes()[:1000])
    (own / "cxrreportgen_stream/config.pbtxt").write_text("max_batch: 3\n")
    (own / "cxr_image_encoder/1/model.onnx").unlink()  # which is not served alone, and would only take time
    with started("serve", "--repository", own, *ANY_PORT, folder=tmp_path / "tmp", last_line="models: ") as command:
        lines = command.banner.splitlines()
        assert any("cxrreportgen_stream/config.pbtxt: line 1:1 : " in line for line in lines)
        (failed,) = [line for line in lines if line.endswith("could not be loaded; see its log above")]
        assert failed.startswith("not served: image_encoder, ")
        models = lines[-1].removeprefix("models: ").split(", ")
        assert "medimageinsight_text" in models
        assert not {"image_encoder", "medimageinsight", "medimageinsight_image", "cxrreportgen"} & set(models)
        with MedImageInsight(f"grpc://127.0.0.1:{command.grpc_port}") as client:
            assert client.embed_texts(["heart"]).shape == (1, 1024)


def test_repository_of_which_nothing_can_be_loaded_is_an_error(own, tmp_path):
    (own / "text_encoder/1/model.onnx").write_bytes(b"no model")
    with (
        pytest.raises(LaunchError, match=r"^Triton could load none of its models; see .*log$"),
        run_triton(own, models=["text_encoder"], log=tmp_path / "log"),
    ):
        pass


def test_export_that_came_meanwhile_is_not_taken_up_in_silence(own, tmp_path, image):
    """After a crash the models that were exported anew are left out, and said; the others go on."""
    environment = {"MEDIMAGE_KEYS": KEY}
    with started(
        "serve", "--repository", own, "--score-port=0", folder=tmp_path / "tmp", environment=environment
    ) as command:
        port = command.score_port
        assert status_of(port, images(image)) == status_of(port, reports(image)) == 200
        weights = own / "image_encoder/1/model.onnx"
        changed = bytearray(weights.read_bytes())
        values = np.frombuffer(changed[-64:], np.float32) * np.float32(1.01)
        changed[-64:] = values.tobytes()
        weights.with_name("new").write_bytes(changed)
        weights.with_name("new").rename(weights)
        assert status_of(port, images(image)) == 200  # of what is in memory
        triton = command.triton
        os.kill(triton, signal.SIGKILL)
        wait_until(lambda: not is_running(triton))
        wait_until(lambda: status_of(port, reports(image)) == 200, within=RESTART_S)
        assert status_of(port, images(image)) == 503
        assert status_of(port, texts("heart")) == 503
        told = "not served: image_encoder: exported or edited since the start; restart to serve what is there now"
        assert command.has_said(told)
