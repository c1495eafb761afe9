"""What becomes of errors of CUDA. There is no GPU here: the errors are onnxruntime's, raised where it raises them."""

import os
from time import sleep
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from medimage_server import cuda, heartbeat
from medimage_server.errors import InferenceFailed
from medimage_server.onnx_backend import OnnxModel
from medimage_server.onnx_settings import open_session
from tests.repository.onnx_models import write_identity
from tests.waiting import wait_until

ONES = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture
def identity(tmp_path):
    write_identity(tmp_path / "model.onnx", np.float32)
    return tmp_path / "model.onnx"


class Broken:
    """In place of a session's C++ part: what a provider that fails makes it raise."""

    def __init__(self, session):
        self._session = session

    def run(self, *arguments):
        raise EPFail("CUDA failure 700: an illegal memory access was encountered")

    def __getattr__(self, name):
        return getattr(self._session, name)


def test_session_does_not_move_to_the_cpu_after_an_error_of_its_provider(identity):
    moving = ort.InferenceSession(identity, providers=["CPUExecutionProvider"])
    moving._sess = Broken(moving._sess)
    np.testing.assert_array_equal(moving.run(None, ONES)[0], ONES["x"])  # onnxruntime's own way: no error

    session = open_session("encoder", identity, ort.SessionOptions(), kind="CPU", device_id=0)
    session._sess = Broken(session._sess)
    for _ in range(2):
        with pytest.raises(EPFail):
            session.run(None, ONES)


@pytest.fixture
def heartbeats(tmp_path, monkeypatch):
    """The folder that a supervisor looks into; beats come every 10 ms."""
    folder = tmp_path / "beats"
    folder.mkdir()
    monkeypatch.setenv(heartbeat.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.01)
    yield folder
    heartbeat.stop()


def beats(folder):
    """Whether this process gives signs of life."""
    before = heartbeat.last(folder, os.getpid())
    sleep(0.1)
    return heartbeat.last(folder, os.getpid()) != before


def broken_model(folder, monkeypatch):
    """A model whose session says that it is on the provider of the probe, and whose runs fail there."""
    write_identity(folder / "model.onnx", np.float32)
    tensors = {
        field: [{"name": name, "data_type": "TYPE_FP32", "dims": ["-1"]}]
        for field, name in (("input", "x"), ("output", "y"))
    }
    config = {"name": "encoder", "max_batch_size": 8, "default_model_filename": "", **tensors}
    with monkeypatch.context() as patches:
        patches.setattr(ort.InferenceSession, "get_providers", lambda session: [cuda.PROVIDER])
        model = OnnxModel(config, folder, kind="CPU", device_id=0)
    monkeypatch.setattr(model.session, "_sess", Broken(model.session._sess))
    return model


def test_process_whose_device_computes_no_more_answers_and_gives_no_more_signs_of_life(
    tmp_path, monkeypatch, heartbeats, caplog
):
    model = broken_model(tmp_path, monkeypatch)
    heartbeat.start()
    wait_until(lambda: beats(heartbeats))
    (answer,) = model.run([ONES])  # there is no CUDA device here, so none computes
    assert isinstance(answer, InferenceFailed)
    wait_until(lambda: not beats(heartbeats))
    failed, lost = caplog.messages
    assert failed == "encoder failed on 1 rows: EPFail"
    assert lost.startswith("encoder: CUDA device 0 computes nothing any more, so the server has to start again: ")
    assert "\n" not in lost


def test_process_whose_device_still_computes_goes_on(tmp_path, monkeypatch, heartbeats, caplog):
    """As after an error of memory; the CPU is the device that computes."""
    monkeypatch.setattr(cuda, "PROVIDER", "CPUExecutionProvider")
    model = broken_model(tmp_path, monkeypatch)
    heartbeat.start()
    (answer,) = model.run([ONES])
    assert isinstance(answer, InferenceFailed)
    assert caplog.messages == ["encoder failed on 1 rows: EPFail"]
    assert beats(heartbeats)


@pytest.fixture
def gpu(monkeypatch):
    """Sessions that were asked for CUDA say that they have it, and the probe's fails as `failure` says; all compute on
    the CPU."""
    seen, real = SimpleNamespace(asked=[], failure=None), ort.InferenceSession

    class Session(real):
        def __init__(self, model, options=None, *, providers, **more):
            self.said = [provider if isinstance(provider, str) else provider[0] for provider in providers]
            seen.asked.append(self.said)
            super().__init__(model, options, providers=["CPUExecutionProvider"], **more)

        def get_providers(self):
            return self.said

        def run(self, *arguments):
            if self.said == [cuda.PROVIDER] and seen.failure:
                raise EPFail(seen.failure)
            return super().run(*arguments)

    monkeypatch.setattr(ort, "get_available_providers", lambda: [cuda.PROVIDER])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    return seen


def test_session_of_a_gpu_that_computes_a_convolution_stays_there(identity, gpu, caplog):
    session = open_session("encoder", identity, ort.SessionOptions(), kind="GPU", device_id=0)
    assert session.get_providers() == [cuda.PROVIDER, "CPUExecutionProvider"]
    assert gpu.asked == [[cuda.PROVIDER, "CPUExecutionProvider"], [cuda.PROVIDER]]
    assert caplog.messages == []


def test_gpu_without_cudnn_is_noticed_at_load_and_the_cpu_is_used(identity, gpu, caplog):
    cause = "cuDNN is unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so"
    gpu.failure = (
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Non-zero status code returned while running Conv node. Name:'' "
        f"Status Message: cuda_kernel.h:296 [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : {cause}\nand more"
    )
    session = open_session("encoder", identity, ort.SessionOptions(), kind="GPU", device_id=0)
    assert session.get_providers() == ["CPUExecutionProvider"]
    np.testing.assert_array_equal(session.run(None, ONES)[0], ONES["x"])
    assert caplog.messages == [
        "encoder: CUDA device 0 computes no convolution, so the CPU is used (install the CUDA and cuDNN that this "
        f"onnxruntime needs): {cause}"
    ]


def test_convolution_is_what_its_comment_says():
    x, w = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in "xw")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "convolution", [x, w], [y])
    written = onnx.load_from_string(cuda.CONVOLUTION)
    onnx.checker.check_model(written)
    assert written.graph == graph
    assert (written.ir_version, list(written.opset_import)) == (8, [helper.make_opsetid("", 17)])
