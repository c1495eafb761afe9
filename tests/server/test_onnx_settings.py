"""What the python-based onnxruntime backend makes of a config, by the documentation of the native backend."""

import json
import logging

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_server import onnx_settings
from medimage_server.onnx_settings import (
    ModelLoadError,
    cuda_options,
    execution_providers,
    open_session,
    session_options,
)
from tests.paths import REPOSITORY
from tests.repository.onnx_models import write_identity, write_integer_product


def config_of(text):
    """A config as Triton passes it to a Python model: all of it through JSON, with proto field names."""
    parsed = text_format.Parse(f'name: "encoder" {text}', ModelConfig())
    return json.loads(json_format.MessageToJson(parsed, preserving_proto_field_name=True))


def with_parameters(**values):
    parameters = [f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in values.items()]
    return config_of(" ".join(parameters))


def with_accelerators(kind, *accelerators):
    return config_of(f"optimization {{ execution_accelerators {{ {kind} [ {', '.join(accelerators)} ] }} }}")


def test_absent_settings_keep_the_defaults_of_onnxruntime():
    ours, theirs = session_options(config_of("")), onnxruntime.SessionOptions()
    for option in (
        *("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "enable_cpu_mem_arena"),
        *("enable_mem_pattern", "graph_optimization_level"),
    ):
        assert getattr(ours, option) == getattr(theirs, option)
    assert cuda_options(config_of("")) == {}


def test_parameters_reach_the_session():
    options = session_options(
        with_parameters(intra_op_thread_count="3", inter_op_thread_count="2", execution_mode="1", enable_mem_arena="0")
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


@pytest.mark.parametrize(("text", "enabled"), [("1", True), ("True", True), ("0", False), ("false", False)])
def test_truth_values_are_those_of_the_native_backend(text, enabled):
    assert session_options(with_parameters(enable_mem_pattern=text)).enable_mem_pattern is enabled


@pytest.mark.parametrize(
    ("level", "name"),
    [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
)
def test_graph_level_is_numbered_as_in_the_native_backend(level, name, caplog):
    options = session_options(config_of(f"optimization {{ graph {{ level: {level} }} }}"))
    assert options.graph_optimization_level == getattr(onnxruntime.GraphOptimizationLevel, name)
    assert not caplog.text


def test_cuda_parameters_take_onnxruntimes_names():
    config = with_parameters(
        cudnn_conv_algo_search="1", arena_extend_strategy="1", gpu_mem_limit="4294967296", do_copy_in_default_stream="0"
    )
    assert cuda_options(config) == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "4294967296",
        "do_copy_in_default_stream": "0",
    }


def test_any_option_of_the_cuda_accelerator_reaches_the_provider(caplog):
    accelerator = '{ name: "cuda" parameters { key: "use_tf32" value: "0" } parameters { key: "next" value: "x" } }'
    config = with_accelerators("gpu_execution_accelerator", accelerator)
    assert cuda_options(config) == {"use_tf32": "0", "next": "x"}
    session_options(config)
    assert not caplog.text


def test_option_that_the_native_backend_reads_from_parameters_alone_is_not_taken_from_the_accelerator(caplog):
    accelerator = '{ name: "cuda" parameters { key: "gpu_mem_limit" value: "1" } }'
    assert cuda_options(with_accelerators("gpu_execution_accelerator", accelerator)) == {}
    assert "encoder: gpu_mem_limit outside parameters not honoured" in caplog.text


def test_what_is_not_honoured_is_named_in_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        session_options(with_parameters(share_session_between_instances="1", gpu_mem_limit="1"))
        cuda_options(with_accelerators("gpu_execution_accelerator", '{ name: "tensorrt" }'))
    assert [record.getMessage() for record in caplog.records] == [
        f"encoder: {what} not honoured by the python-based onnxruntime backend"
        for what in (
            "share_session_between_instances",
            "gpu_execution_accelerator tensorrt",
        )
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_parameters(intra_op_thread_count="all"), "intra_op_thread_count is 'all'; expected a whole number"),
        (with_parameters(execution_mode="2"), "execution_mode is '2'; expected one of "),
        (with_parameters(enable_mem_arena="on"), "enable_mem_arena is 'on'; expected one of "),
        (with_parameters(cudnn_conv_algo_search="3"), "cudnn_conv_algo_search is 3; expected 0 to 2"),
        (with_parameters(arena_extend_strategy="2"), "arena_extend_strategy is 2; expected 0 to 1"),
        (with_parameters(gpu_mem_limit="2 GB"), "gpu_mem_limit is '2 GB'; expected a whole number"),
        (config_of("optimization { graph { level: 3 } }"), "graph.level is 3; expected -1, 0, 1 or 2"),
    ],
)
def test_value_that_the_native_backend_would_refuse_is_an_error(config, message):
    with pytest.raises(ModelLoadError, match=f"^encoder: .*{message}"):
        session_options(config)
        cuda_options(config)


def test_gpu_instance_uses_its_own_cuda_device_and_options(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    provider, fallback = execution_providers("GPU", 1, {"use_tf32": "0"})
    assert provider == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"})
    assert fallback == "CPUExecutionProvider"
    assert execution_providers("CPU", 0, {"use_tf32": "0"}) == ["CPUExecutionProvider"]


@pytest.fixture
def identity(tmp_path):
    write_identity(tmp_path / "model.onnx", np.float32)
    return tmp_path / "model.onnx"


@pytest.fixture
def failing_cuda(monkeypatch):
    """An onnxruntime that was built with CUDA and cannot load it: its sessions are the CPU's; returns its calls."""
    calls = []
    real = onnxruntime.InferenceSession

    def session(path, options, providers):
        calls.append([provider if isinstance(provider, str) else provider[0] for provider in providers])
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: calls.append("preload"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return calls


CPU_INSTEAD = (
    "encoder: this onnxruntime has no CUDA provider that loads, so the CPU is used "
    "(install onnxruntime-gpu and the CUDA and cuDNN that it needs)"
)


def test_gpu_instance_without_cuda_provider_warns_and_uses_the_cpu(identity, monkeypatch, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    session = open_session("encoder", identity, onnxruntime.SessionOptions(), kind="GPU", device_id=0)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert caplog.messages == [CPU_INSTEAD]


def test_gpu_instance_whose_cuda_provider_fails_to_load_warns(identity, failing_cuda, caplog):
    open_session("encoder", identity, onnxruntime.SessionOptions(), kind="GPU", device_id=0)
    assert failing_cuda == ["preload", ["CUDAExecutionProvider", "CPUExecutionProvider"]]
    assert caplog.messages == [CPU_INSTEAD]


def test_cpu_instance_loads_no_cuda_and_warns_of_nothing(identity, failing_cuda, caplog):
    open_session("encoder", identity, onnxruntime.SessionOptions(), kind="CPU", device_id=0)
    assert failing_cuda == [["CPUExecutionProvider"]]
    assert not caplog.messages


@pytest.mark.parametrize("vnni", [False, True])
def test_products_of_uint8_and_int8_are_exact_on_every_cpu(tmp_path, monkeypatch, vnni):
    if vnni and not onnx_settings.has_vnni():
        pytest.skip("this CPU has no VNNI")
    monkeypatch.setattr(onnx_settings, "has_vnni", lambda: vnni)
    # pairs of 255 * 127 do not fit in 16 bits
    activations, weights = np.full((4, 64), 255, np.uint8), np.full((64, 32), 127, np.int8)
    write_integer_product(tmp_path / "model.onnx", weights)
    session = open_session("encoder", tmp_path / "model.onnx", session_options(config_of("")), kind="CPU", device_id=0)
    (product,) = session.run(None, {"x": activations})
    np.testing.assert_array_equal(product, activations.astype(np.float32) @ weights.astype(np.float32))


def test_cpu_with_vnni_keeps_its_fast_product(monkeypatch):
    """The other one takes 2.4 times as long for an image, where it is not needed."""
    monkeypatch.setattr(onnx_settings, "has_vnni", lambda: True)
    with pytest.raises(RuntimeError, match="does not have configuration"):
        session_options(config_of("")).get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("model", ["image_encoder", "text_encoder", "cxr_image_encoder"])
def test_committed_settings_are_all_honoured(model, caplog):
    text = (REPOSITORY / model / "config.pbtxt").read_text().replace(f'name: "{model}"', "")
    config = config_of(text)
    session_options(config)
    options = cuda_options(config)
    assert not caplog.text
    written = sum(text.count(f'key: "{key}"') for key in options)
    assert written == len(options)
