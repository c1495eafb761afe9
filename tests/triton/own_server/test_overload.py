"""Full queues and timeouts on a real Triton: callers are refused at once and cleanly, and nothing hangs.

The slow step is a gate that the test opens, see gated_model.py; so all requests arrive while nothing is answered.
"""

import os
import re
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from medimage_server.launcher import run_triton
from tests.repository.onnx_models import write_text_encoder
from tests.triton.requests import Answers, bytes_input, embed_texts

GATED_MODEL = Path(__file__).with_name("gated_model.py")
SHORT_QUEUE = 2  # the slow model's max_queue_size
UNAVAILABLE = "StatusCode.UNAVAILABLE"
END_S = 20.0  # Triton ends in about 4 s; one that waits for a request that never ends takes 30 s

LEAF = """
name: "{name}"
backend: "python"
max_batch_size: 1
input [ {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "number" data_type: TYPE_FP32 dims: [ 1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ default_queue_policy {{
  max_queue_size: {max_queue_size} default_timeout_microseconds: 60000000 allow_timeout_override: true
}} }}
"""
ENSEMBLE = """
name: "slow_ensemble"
platform: "ensemble"
max_batch_size: 1
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "slow" model_version: -1
  input_map { key: "text" value: "text" } output_map { key: "number" value: "number" }
} ] }
"""


class Gate:
    """A named pipe; the gated models answer while it has a writer."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)

    @contextmanager
    def open(self):
        # Read and write, for an open for writing alone would wait for a reader.
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            yield
        finally:
            os.close(descriptor)


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="module")
def client(unexported, gate, tmp_path_factory):
    """Triton with `slow_ensemble`, and with our text models behind a gated tokenizer under its committed config."""
    repository = shutil.copytree(unexported, tmp_path_factory.mktemp("overload") / "models")
    shutil.copy(GATED_MODEL, repository / "text_tokenizer/1/model.py")
    write_text_encoder(repository / "text_encoder/1/model.onnx")
    (repository / "slow/1").mkdir(parents=True)
    shutil.copy(GATED_MODEL, repository / "slow/1/model.py")
    (repository / "slow/config.pbtxt").write_text(LEAF.format(name="slow", max_queue_size=SHORT_QUEUE))
    (repository / "slow_ensemble/1").mkdir(parents=True)
    (repository / "slow_ensemble/config.pbtxt").write_text(ENSEMBLE)

    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("MEDIMAGE_TEST_GATE", str(gate.path))
        log = tmp_path_factory.mktemp("triton") / "overload.log"
        with gate.open():  # for the warm-up
            models = ("slow_ensemble", "medimageinsight_text")
            server = stack.enter_context(run_triton(repository, models=models, log=log))
        yield stack.enter_context(grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}"))
        stack.enter_context(gate.open())  # a failed test may have left requests waiting


def outcomes(answers):
    """Status and message of each answer, (None, None) for those served."""
    return [(error and error.status(), error and error.message()) for _, _, error in answers]


def test_full_queue_of_an_ensembles_step_refuses_at_once_and_serves_on(client, gate):
    answers = Answers(client, "slow_ensemble")
    for key in range(12):
        answers.send(key, [bytes_input("text", [b"heart"])])
    may_be_kept = SHORT_QUEUE + 2  # besides the queue, one is running and one may be on its way to the instance
    for status, message in outcomes(answers.take(12 - may_be_kept)):
        assert status == UNAVAILABLE
        assert "in ensemble 'slow_ensemble'" in message
        assert "Exceeds maximum queue size" in message
    with gate.open():
        kept = outcomes(answers.take(may_be_kept))
        assert kept.count((None, None)) >= SHORT_QUEUE
        answers.send("afterwards", [bytes_input("text", [b"heart"])])
        assert outcomes(answers.take(1)) == [(None, None)]


def test_full_queue_of_the_text_models_refuses_and_the_rest_is_served(client, gate):
    """The committed queue policy: 256 wait, and up to two batches of 64 have left the queue for the instance."""
    sent, may_be_kept = 500, 256 + 2 * 64
    answers = Answers(client, "medimageinsight_text")
    for key in range(sent):
        answers.send(key, [bytes_input("text", [b"heart"])])
    refused = outcomes(answers.take(sent - may_be_kept))
    assert {status for status, _ in refused} == {UNAVAILABLE}
    with gate.open():
        assert outcomes(answers.take(may_be_kept)).count((None, None)) >= 256
        assert embed_texts(client, [b"heart"]).shape == (1, 1024)


def test_request_that_waits_longer_than_its_own_timeout_is_refused_while_it_waits(client, gate):
    answers = Answers(client, "slow_ensemble")
    for key in ("runs", "waits"):
        answers.send(key, [bytes_input("text", [b"heart"])], timeout=200_000)  # microseconds, in the queue
    ((status, message),) = outcomes(answers.take(1))
    assert status == UNAVAILABLE
    assert "Request timeout expired" in message
    with gate.open():
        assert outcomes(answers.take(1)) == [(None, None)]


def slow_down(step, repository):
    """Gate one step of the ensembles, under its committed config but for a short queue."""
    config = repository / step / "config.pbtxt"
    short = re.sub(r"max_queue_size: \d+", f"max_queue_size: {SHORT_QUEUE}", config.read_text())
    config.write_text(short.replace('"onnxruntime"', '"python"').replace('"model.onnx"', '"model.py"'))
    shutil.copy(GATED_MODEL, repository / step / "1/model.py")


@pytest.mark.parametrize(
    ("slow_step", "leave_the_queue"),
    [
        pytest.param("image_preprocessing", 2, id="image_preprocessing", marks=pytest.mark.soak),  # one by one
        pytest.param("image_encoder", 2 * 16, id="image_encoder"),  # batches of 16
    ],
)
def test_full_queue_on_the_image_path_refuses_serves_on_and_lets_the_server_end(
    repository, tmp_path, monkeypatch, slow_step, leave_the_queue
):
    ensembles = ("medimageinsight_image", "medimageinsight")
    repository = shutil.copytree(repository, tmp_path / "models")
    slow_down(slow_step, repository)
    gate = Gate(tmp_path / "gate")
    monkeypatch.setenv("MEDIMAGE_TEST_GATE", str(gate.path))
    drawing = (repository / "image_preprocessing/warmup/drawing").read_bytes()[4:]
    sent, may_be_kept = 50, SHORT_QUEUE + leave_the_queue
    with ExitStack() as stack:
        with gate.open():  # for the warm-up
            server = stack.enter_context(run_triton(repository, models=ensembles, log=tmp_path / "log"))
        client = stack.enter_context(grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}"))
        for model in ensembles:
            answers = Answers(client, model)
            inputs = [bytes_input("image", [drawing])]
            if model == "medimageinsight":
                inputs.append(bytes_input("text", [b"heart"]))
            for key in range(sent):
                answers.send(key, inputs)
            for status, message in outcomes(answers.take(sent - may_be_kept)):
                assert status == UNAVAILABLE
                assert f"in ensemble '{model}'" in message
                assert "Exceeds maximum queue size" in message
            with gate.open():
                assert outcomes(answers.take(may_be_kept)).count((None, None)) >= SHORT_QUEUE
                answers.send("afterwards", inputs)
                assert outcomes(answers.take(1)) == [(None, None)]
        server.process.terminate()
        assert server.process.wait(END_S) == 0
