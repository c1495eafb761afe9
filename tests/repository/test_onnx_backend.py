"""The python-based onnxruntime backend: its logic, and its adapter against a stand-in for Triton's module."""

import json
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_server.errors import InferenceFailed, InvalidInput
from medimage_server.onnx_backend import OnnxModel
from medimage_server.onnx_settings import ModelLoadError
from tests.paths import REPOSITORY, ROOT
from tests.python_backend_stand_in import Request, TritonError, TritonModelException, install, load_adapter
from tests.repository.onnx_models import VOCABULARY, write_identity, write_text_encoder


@pytest.fixture
def config():
    """The committed config of the text encoder, as Triton passes it to a Python model."""
    text = (REPOSITORY / "text_encoder/config.pbtxt").read_text()
    parsed = text_format.Parse(text, ModelConfig())
    return json_format.MessageToDict(parsed, preserving_proto_field_name=True) | {"parameters": {}}


@pytest.fixture
def model(config, tmp_path):
    write_text_encoder(tmp_path / "model.onnx")
    return OnnxModel(config, tmp_path, kind="CPU", device_id=0)


def request(*first_ids):
    """One row per id: the id at position 0, and three positions attended, the others of which hold 0."""
    ids = np.zeros((len(first_ids), 77), np.int64)
    ids[:, 0] = first_ids
    mask = np.zeros_like(ids)
    mask[:, :3] = 1
    return {"input_ids": ids, "attention_mask": mask}


def sums(answer):
    """What write_text_encoder's formula gives: one number per row."""
    assert answer["text_features"].shape == (len(answer["text_features"]), 1024)
    assert (answer["scaling_factor"] == 3).all()
    return answer["text_features"][:, 0].tolist()


def test_run_gives_each_request_its_own_rows(model):
    answers = model.run([request(5), request(7, 9), request(11)])
    assert [sums(answer) for answer in answers] == [[5], [7, 9], [11]]


def test_run_batches_all_requests_into_one_session_run(model, monkeypatch):
    rows = []
    session = model.session
    spy = SimpleNamespace(run=lambda names, feed: rows.append(len(feed["input_ids"])) or session.run(names, feed))
    monkeypatch.setattr(model, "session", spy)
    model.run([request(1), request(2, 3)])
    assert rows == [3]


@pytest.mark.parametrize(("kind", "sizes"), [("CPU", [2, 2, 1]), ("GPU", [5])])
def test_cpu_computes_no_more_rows_at_once_than_the_config_says(config, tmp_path, monkeypatch, kind, sizes):
    write_text_encoder(tmp_path / "model.onnx")
    config["parameters"] = {"cpu_max_batch_size": {"string_value": "2"}}
    model, rows = OnnxModel(config, tmp_path, kind=kind, device_id=0), []
    session = model.session
    spy = SimpleNamespace(run=lambda names, feed: rows.append(len(feed["input_ids"])) or session.run(names, feed))
    monkeypatch.setattr(model, "session", spy)
    answers = model.run([request(5), request(7, 9, 11), request(4)])
    assert [sums(answer) for answer in answers] == [[5], [7, 9, 11], [4]]
    assert rows == sizes


def test_run_does_not_copy_the_tensors_of_a_single_request(model, monkeypatch):
    fed = {}
    session = model.session
    spy = SimpleNamespace(run=lambda names, feed: fed.update(feed) or session.run(names, feed))
    monkeypatch.setattr(model, "session", spy)
    only = request(1)
    model.run([only])
    assert fed["input_ids"] is only["input_ids"]


def test_run_answers_the_neighbours_of_a_request_with_values_that_the_model_refuses(model):
    good, bad, also_good = model.run([request(5), request(VOCABULARY), request(6)])
    assert (sums(good), sums(also_good)) == ([5], [6])
    assert isinstance(bad, InvalidInput)
    assert str(bad) == "text_encoder cannot take the values of input_ids, attention_mask"


def test_run_answers_the_neighbours_of_a_request_of_another_shape(model):
    short = {name: values[:, :5] for name, values in request(1).items()}
    bad, good = model.run([short, request(5)])
    assert str(bad) == "input input_ids has shape [1, 5]; expected [-1, 77], -1 being any"
    assert sums(good) == [5]


def test_run_refuses_inputs_with_different_numbers_of_rows(model):
    (answer,) = model.run([request(1, 2) | {"attention_mask": request(1)["attention_mask"]}])
    assert str(answer) == "inputs differ in their number of rows: [1, 2]"


def test_run_keeps_the_text_of_an_internal_failure_from_the_caller_and_the_log(model, monkeypatch, caplog):
    def out_of_memory(names, feed):
        raise RuntimeError("Failed to allocate; secret")

    monkeypatch.setattr(model, "session", SimpleNamespace(run=out_of_memory))
    (answer,) = model.run([request(1)])
    assert isinstance(answer, InferenceFailed)
    assert "secret" not in str(answer) + caplog.text
    assert "RuntimeError" in caplog.text


def test_unbatched_model_runs_each_request_alone(config, tmp_path):
    write_text_encoder(tmp_path / "model.onnx")
    for tensor in [*config["input"], *config["output"]]:
        tensor["dims"] = ["-1", *tensor["dims"]]
    unbatched = OnnxModel(config | {"max_batch_size": 0}, tmp_path, kind="CPU", device_id=0)
    assert [sums(answer) for answer in unbatched.run([request(1, 2), request(3)])] == [[1, 2], [3]]


def identity_model(tmp_path, numpy_type, triton_type):
    """`y` = `x`, both of shape [-1, -1]."""
    write_identity(tmp_path / "model.onnx", numpy_type)
    tensors = {
        field: [{"name": name, "data_type": triton_type, "dims": ["-1"]}]
        for field, name in (("input", "x"), ("output", "y"))
    }
    config = {"name": "identity", "max_batch_size": 8, "default_model_filename": "", **tensors}
    return OnnxModel(config, tmp_path, kind="CPU", device_id=0)


@pytest.mark.parametrize(
    ("numpy_type", "triton_type"),
    [
        *[(np.bool_, "TYPE_BOOL"), (np.int8, "TYPE_INT8"), (np.int16, "TYPE_INT16"), (np.int32, "TYPE_INT32")],
        *[(np.int64, "TYPE_INT64"), (np.uint8, "TYPE_UINT8"), (np.uint16, "TYPE_UINT16"), (np.uint32, "TYPE_UINT32")],
        *[(np.uint64, "TYPE_UINT64"), (np.float16, "TYPE_FP16"), (np.float32, "TYPE_FP32"), (np.float64, "TYPE_FP64")],
    ],
)
def test_run_takes_and_gives_every_number_type_of_the_native_backend(tmp_path, numpy_type, triton_type):
    values = np.array([[0, 1, 1]], numpy_type)
    (answer,) = identity_model(tmp_path, numpy_type, triton_type).run([{"x": values}])
    assert answer["y"].dtype == numpy_type
    np.testing.assert_array_equal(answer["y"], values)


def test_run_takes_bytes_as_utf8_text_and_refuses_what_is_none(tmp_path):
    texts = [np.array([[text]], dtype=object) for text in ("Röntgen".encode(), "Röntgen".encode("latin-1"))]
    good, bad = identity_model(tmp_path, np.object_, "TYPE_STRING").run([{"x": text} for text in texts])
    assert good["y"].tolist() == [["Röntgen"]]  # which Triton's Tensor encodes as UTF-8
    assert isinstance(bad, InvalidInput)
    assert str(bad) == "input x is not valid UTF-8"


def test_run_answers_requests_of_different_lengths_each_alone(tmp_path):
    rows = [np.array([[1, 2]], np.int64), np.array([[3, 4, 5]], np.int64)]
    answers = identity_model(tmp_path, np.int64, "TYPE_INT64").run([{"x": row} for row in rows])
    assert [answer["y"].tolist() for answer in answers] == [[[1, 2]], [[3, 4, 5]]]


def test_load_without_weights_names_the_model_and_the_export_command(config, tmp_path):
    with pytest.raises(ModelLoadError, match=r"^text_encoder has no exported weights .*`medimage export`"):
        OnnxModel(config, tmp_path, kind="CPU", device_id=0)


def test_load_of_a_broken_file_is_one_line(config, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match=r"^text_encoder: cannot load model.onnx: [^\n]+$"):
        OnnxModel(config, tmp_path, kind="CPU", device_id=0)


@pytest.mark.parametrize(
    ("field", "index", "change", "message"),
    [
        ("input", 0, {"name": "ids"}, r"needs inputs \['input_ids'\] that config.pbtxt does not declare"),
        ("output", 0, {"name": "features"}, r"no tensor features; it has \['scaling_factor', 'text_features'\]"),
        ("output", 0, {"data_type": "TYPE_FP16"}, r"TYPE_FP32 \[-1, 1024\] in model.onnx, but TYPE_FP16 \[-1, 1024\]"),
        ("input", 1, {"dims": ["64"]}, r"attention_mask is TYPE_INT64 \[-1, 77\] in model.onnx, but .* \[-1, 64\]"),
    ],
    ids=["input-name", "output-name", "type", "shape"],
)
def test_load_refuses_a_config_that_disagrees_with_the_graph(config, tmp_path, field, index, change, message):
    write_text_encoder(tmp_path / "model.onnx")
    config[field][index] |= change
    with pytest.raises(ModelLoadError, match=message):
        OnnxModel(config, tmp_path, kind="CPU", device_id=0)


def test_load_refuses_a_setting_that_is_not_valid(config, tmp_path):
    write_text_encoder(tmp_path / "model.onnx")
    config["parameters"] = {"intra_op_thread_count": {"string_value": "all"}}
    with pytest.raises(
        ModelLoadError, match=r"^text_encoder: parameter intra_op_thread_count is 'all'; expected a whole"
    ):
        OnnxModel(config, tmp_path, kind="CPU", device_id=0)


def test_load_hands_the_settings_of_the_config_to_the_cuda_provider(config, tmp_path, monkeypatch, caplog):
    seen = []
    write_text_encoder(tmp_path / "model.onnx")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def session(path, options, providers):
        seen.append(providers[0])
        return original(path, options, providers=["CPUExecutionProvider"])

    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    config["parameters"] = {"gpu_mem_limit": {"string_value": "1000"}}
    accelerator = {"name": "cuda", "parameters": {"use_tf32": "0"}}
    config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    OnnxModel(config, tmp_path, kind="GPU", device_id=2)
    assert seen == [("CUDAExecutionProvider", {"gpu_mem_limit": "1000", "use_tf32": "0", "device_id": 2})]
    assert caplog.messages[0].startswith("text_encoder: this onnxruntime has no CUDA provider that loads")


@pytest.fixture
def log(monkeypatch):
    """What the adapter logs; installs the stand-in for triton_python_backend_utils."""
    return install(monkeypatch)


@pytest.fixture
def adapter(log):
    return load_adapter(ROOT / "server/backends/onnxruntime/model.py")


def arguments(config, repository):
    return {
        "model_config": json.dumps(config),
        "model_repository": str(repository),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture
def loaded_adapter(adapter, config, tmp_path):
    (tmp_path / "1").mkdir()
    write_text_encoder(tmp_path / "1/model.onnx")
    adapter.initialize(arguments(config, tmp_path))
    return adapter


def test_adapter_answers_each_request_with_tensors_or_its_own_error(loaded_adapter):
    good, bad = loaded_adapter.execute([Request(request(5)), Request(request(VOCABULARY))])
    assert sums(good.outputs) == [5]
    assert bad.error.code == TritonError.INVALID_ARG


def test_adapter_keeps_the_text_of_an_unexpected_error_from_the_callers_and_the_log(loaded_adapter, log, monkeypatch):
    content = "Jane Doe"

    def fail(requests):
        raise RuntimeError(f"cannot work on {content}")

    monkeypatch.setattr(loaded_adapter.model, "run", fail)
    responses = loaded_adapter.execute([Request(request(5)), Request(request(6))])
    assert [(response.error.code, response.error.message) for response in responses] == [
        (TritonError.INTERNAL, "internal error")
    ] * 2
    assert all(line.startswith("request request-7: RuntimeError\n") and content not in line for line in log)


def test_adapter_ends_a_failed_load_with_one_line(adapter, config, tmp_path):
    with pytest.raises(TritonModelException, match=r"^text_encoder has no exported weights"):
        adapter.initialize(arguments(config, tmp_path))
