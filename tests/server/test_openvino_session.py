"""OpenVINO as a model config asks for it, what is said where it cannot be had, and that its numbers are right."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from medimage_server import openvino_session
from medimage_server.onnx_settings import ModelLoadError, configured_session, openvino_wanted
from medimage_server.openvino_session import OpenVINOMissing, OpenVINOSession, has_bf16
from tests.repository.onnx_models import VOCABULARY, write_text_encoder

WITHOUT_INSTRUCTIONS = "encoder: this CPU has neither AVX512-BF16 nor AMX-BF16, so onnxruntime computes fp32"
WITHOUT_PACKAGE = (
    "encoder: the package openvino is missing (pip install 'medimage-triton[openvino]'), so onnxruntime computes fp32"
)


def config_of(*accelerators):
    """A config as Triton passes it to a Python model."""
    text = f"optimization {{ execution_accelerators {{ cpu_execution_accelerator [ {', '.join(accelerators)} ] }} }}"
    parsed = text_format.Parse(f'name: "encoder" {text}', ModelConfig())
    return json.loads(json_format.MessageToJson(parsed, preserving_proto_field_name=True))


def accelerator(**parameters):
    words = [f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items()]
    return f'{{ name: "openvino" {" ".join(words)} }}'


@pytest.fixture
def encoder(tmp_path):
    write_text_encoder(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def cpu(monkeypatch):
    """Make this CPU one with the flags that are given, as Linux tells them."""

    def with_flags(*flags):
        text = f"processor\t: 0\nflags\t\t: fpu sse2 {' '.join(flags)}\nbugs\t\t: spectre_v1\n"
        monkeypatch.setattr(openvino_session, "Path", lambda path: SimpleNamespace(read_text=lambda: text))

    return with_flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["avx512_bf16"], True),
        (["avx512f", "amx_bf16", "amx_tile"], True),
        (["avx512f", "avx512_vnni", "avx512bw"], False),  # where OpenVINO emulates it
        (["avx2", "avx_ne_convert", "avx_vnni_int8"], False),  # which only convert
        ([], False),
    ],
)
def test_bf16_needs_an_instruction_that_multiplies(cpu, flags, expected):
    cpu(*flags)
    assert has_bf16() is expected


def test_system_that_does_not_tell_its_instructions_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(openvino_session, "Path", lambda path: tmp_path / "absent")
    assert not has_bf16()


def test_accelerator_and_its_precision_are_read(caplog):
    assert openvino_wanted(config_of(accelerator(precision="bf16"))).precision == "bf16"
    assert openvino_wanted(config_of(accelerator(precision="fp32"))).precision == "fp32"
    assert openvino_wanted(config_of(accelerator())).precision is None
    assert openvino_wanted(config_of()) is None
    assert openvino_wanted({"name": "encoder"}) is None
    assert not caplog.messages


def test_what_is_not_honoured_is_named_in_one_warning(caplog):
    assert openvino_wanted(config_of('{ name: "tensorrt" }', accelerator(num_streams="2", precision="fp32")))
    (line,) = caplog.messages
    assert line.startswith("encoder: cpu_execution_accelerator tensorrt, openvino's num_streams not honoured by ")


def test_unknown_precision_is_an_error():
    with pytest.raises(ModelLoadError, match=r"^encoder: openvino's precision is 'fp8'; expected one of \['bf16', "):
        openvino_wanted(config_of(accelerator(precision="fp8")))


def feed(rows):
    ids = np.random.default_rng(rows).integers(0, VOCABULARY, (rows, 77))
    return {"input_ids": ids, "attention_mask": (ids % 3 > 0).astype(np.int64)}


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_numbers_are_those_of_the_formula_for_every_batch(encoder, rows):
    session = OpenVINOSession(encoder, "fp32", threads=1)
    batch = feed(rows)
    count, total = session.run(["scaling_factor", "text_features"], batch)
    np.testing.assert_array_equal(count[:, 0], batch["attention_mask"].sum(1))
    np.testing.assert_array_equal(total[:, 7], (batch["input_ids"] * batch["attention_mask"]).sum(1))


def test_index_outside_a_table_counts_as_zeros(encoder):
    """The one difference from onnxruntime, which refuses it."""
    batch = feed(1)
    inside = (batch["input_ids"] * batch["attention_mask"]).sum() - batch["input_ids"][0, 5] * batch["attention_mask"][
        0, 5
    ]
    batch["input_ids"][0, 5] = VOCABULARY + 3
    (total,) = OpenVINOSession(encoder, "fp32").run(["text_features"], batch)
    assert total[0, 0] == inside


def test_file_that_openvino_cannot_read_is_an_error_of_one_line(encoder):
    encoder.write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"^OpenVINO: Unable to read the model[^\n]+$"):
        OpenVINOSession(encoder, "fp32")


def test_arithmetic_of_the_caller_stays_as_it_is(encoder):
    torch.set_flush_denormal(False)  # onnxruntime's first session of a process may have set it
    OpenVINOSession(encoder, "fp32").run(["text_features"], feed(1))
    assert np.float32(1e-39) * np.float32(0.5) > 0


def test_answers_of_one_run_outlive_the_next(encoder):
    session = OpenVINOSession(encoder, "fp32")
    (first,) = session.run(["scaling_factor"], feed(2))
    kept = first.copy()
    session.run(["scaling_factor"], feed(3))
    session.run(["scaling_factor"], {name: array * 0 for name, array in feed(2).items()})
    np.testing.assert_array_equal(first, kept)


def test_tensors_are_described_as_onnxruntime_describes_them(encoder):
    ours, theirs = OpenVINOSession(encoder, "fp32"), onnxruntime.InferenceSession(encoder)
    for mine, other in ((ours.get_inputs(), theirs.get_inputs()), (ours.get_outputs(), theirs.get_outputs())):
        expected = {node.name: (node.type, [n if isinstance(n, int) else -1 for n in node.shape]) for node in other}
        assert {node.name: (node.type, node.shape) for node in mine} == expected


def test_config_opens_openvino(encoder, caplog):
    session = configured_session(config_of(accelerator(precision="fp32")), encoder, kind="CPU", device_id=0)
    assert isinstance(session, OpenVINOSession)
    assert session.precision == "f32"
    assert not caplog.messages


def test_config_without_the_accelerator_and_gpu_instances_open_onnxruntime(encoder):
    with_openvino = config_of(accelerator(precision="fp32"))
    for config, kind in ((config_of(), "CPU"), (with_openvino, "GPU")):
        session = configured_session(config, encoder, kind=kind, device_id=0)
        assert isinstance(session, onnxruntime.InferenceSession)


def test_bf16_without_instructions_is_fp32_by_onnxruntime_with_one_warning(encoder, cpu, caplog):
    cpu("avx2", "avx512f")
    session = configured_session(config_of(accelerator(precision="bf16")), encoder, kind="CPU", device_id=0)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert caplog.messages == [WITHOUT_INSTRUCTIONS]


def test_bf16_without_the_package_is_fp32_by_onnxruntime_with_one_warning(encoder, cpu, caplog, monkeypatch):
    cpu("avx512_bf16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    session = configured_session(config_of(accelerator(precision="bf16")), encoder, kind="CPU", device_id=0)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert caplog.messages == [WITHOUT_PACKAGE]


@pytest.mark.skipif(
    any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512f", "avx_ne_convert")),
    reason="OpenVINO takes bf16 on this CPU",
)
def test_hint_that_openvino_passes_over_in_silence_is_noticed(encoder, monkeypatch):
    monkeypatch.setattr(openvino_session, "has_bf16", lambda: True)
    with pytest.raises(OpenVINOMissing, match=r"^OpenVINO computes f32 here instead of bf16$"):
        OpenVINOSession(encoder, "bf16")


@pytest.mark.skipif(not has_bf16(), reason="this CPU does not multiply bf16")
def test_bf16_rounds_products(encoder):
    batch = feed(2) | {"input_ids": np.full((2, 77), VOCABULARY - 1)}
    (exact,) = OpenVINOSession(encoder, "fp32").run(["text_features"], batch)
    (rounded,) = OpenVINOSession(encoder, "bf16").run(["text_features"], batch)
    np.testing.assert_allclose(rounded, exact, rtol=2**-7)


def test_telemetry_is_not_loaded_even_where_it_is_installed(tmp_path, monkeypatch):
    """What pip installs beside the package; a file that fails the import of whoever reads it takes its place."""
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text("raise SystemExit('telemetry was loaded')")
    code = "from medimage_server.openvino_session import load_openvino; load_openvino().Core(); print('ready')"
    code += "; import openvino.tools.ovc.convert, openvino.tools.ovc.telemetry_utils"
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("ready\n", 0), found.stderr
