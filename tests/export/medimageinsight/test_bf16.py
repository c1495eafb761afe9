"""`--precision bf16`: what is exported for OpenVINO, what where there is none, and that export and server agree.

OpenVINO rounds only on a CPU that multiplies bf16. On any other these tests put fp32 in its place, so that everything
around the rounding runs.
"""

import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import json_format

from medimage_export import cpu, openvino_session
from medimage_export.cli import export
from medimage_export.errors import ExportError, OpenVINOMissing, ParityError
from medimage_export.medimageinsight import export as export_module
from medimage_export.medimageinsight.export import BOUNDS, export_medimageinsight
from medimage_export.parity import Bound
from medimage_export.repository import copy_unexported
from medimage_server import openvino_session as server
from medimage_server.model_repository import read_configs
from medimage_server.onnx_backend import OnnxModel
from tests.export.medimageinsight.small import random_texts
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY

ENCODERS = ["image_encoder", "text_encoder"]
LARGEST_DIFFERENCE = 0.01  # of a number of a unit vector, which goes with a cosine of 0.9999


@pytest.fixture
def repository(tmp_path):
    """A copy of the committed configs, without any exported file."""
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")


@pytest.fixture
def with_bf16(monkeypatch):
    """A CPU that has the instructions; where it has not, OpenVINO computes fp32 under that name."""
    give_bf16(monkeypatch)


def give_bf16(patch):
    if not server.has_bf16():
        patch.setattr(openvino_session, "instructions", lambda: frozenset(["avx512_bf16"]))
        patch.setattr(export_module, "OpenVINOSession", partial(openvino_session.OpenVINOSession, precision="f32"))
        patch.setattr(server, "has_bf16", lambda: True)
        patch.setitem(server.PRECISIONS, "bf16", "f32")


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory):
    """A repository with an export in bf16, to be read alone, and its parity."""
    repository = copy_unexported(REPOSITORY, tmp_path_factory.mktemp("bf16") / "model_repository")
    with pytest.MonkeyPatch.context() as patch:
        give_bf16(patch)
        return repository, export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="bf16")


def run(repository, *options):
    arguments = ["medimageinsight", "--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, *options]
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def manifest(repository):
    return json.loads((repository / "medimageinsight/1/manifest.json").read_text())


def served(repository, model):
    config = json_format.MessageToDict(read_configs(repository)[0][model], preserving_proto_field_name=True)
    return OnnxModel(config, repository / model / "1", kind="CPU", device_id=0)


def some_input(model):
    if model == "image_encoder":
        return {"pixels": np.random.default_rng(5).integers(0, 256, (2, 480, 480, 3), dtype=np.uint8)}
    ids, mask = random_texts([9, 77, 30])
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


@pytest.mark.usefixtures("with_bf16")
def test_what_is_exported_is_served_by_openvino_within_the_bound(in_bf16, exported, caplog):
    repository, rows = in_bf16
    assert {row.output for row in rows} == {"image_features", "text_features", "scaling_factor"}
    assert all(row.export.min_cosine >= 0.9999 for row in rows)
    found = manifest(repository)
    assert (found["format"], found["precision"]) == ("onnx", "bf16")
    assert found["versions"]["openvino"] == server.load_openvino().__version__

    for model in ENCODERS:
        ours, reference = served(repository, model), served(exported("fp32"), model)
        assert isinstance(ours.session, server.OpenVINOSession)
        (answer,), (wanted,) = ours.run([some_input(model)]), reference.run([some_input(model)])
        for name, values in wanted.items():
            np.testing.assert_allclose(answer[name], values, rtol=0, atol=LARGEST_DIFFERENCE)
    assert not caplog.messages


@pytest.mark.usefixtures("with_bf16")
def test_server_without_the_instructions_serves_the_same_files_in_fp32(in_bf16, monkeypatch, caplog):
    repository, _ = in_bf16
    openvino = {model: served(repository, model).run([some_input(model)])[0] for model in ENCODERS}
    monkeypatch.setattr(server, "has_bf16", lambda: False)
    for model in ENCODERS:
        ours = served(repository, model)
        assert ours.session.get_providers() == ["CPUExecutionProvider"]
        (answer,) = ours.run([some_input(model)])
        for name, values in openvino[model].items():
            np.testing.assert_allclose(answer[name], values, rtol=0, atol=LARGEST_DIFFERENCE)
    assert [message.partition(":")[0] for message in caplog.messages] == ENCODERS


def test_export_of_another_precision_after_bf16_leaves_the_configs_as_committed(in_bf16, repository, tmp_path):
    before = {model: (repository / model / "config.pbtxt").read_bytes() for model in ENCODERS}
    repository = shutil.copytree(in_bf16[0], tmp_path / "models")
    assert all(b'name: "openvino"' in (repository / model / "config.pbtxt").read_bytes() for model in ENCODERS)
    export_medimageinsight(PHANTOM_CHECKPOINT, repository)
    assert {model: (repository / model / "config.pbtxt").read_bytes() for model in ENCODERS} == before
    assert "openvino" not in manifest(repository)["versions"]


@pytest.mark.usefixtures("with_bf16")
def test_openvino_is_what_the_parity_check_asks(repository, monkeypatch):
    monkeypatch.setitem(BOUNDS, "bf16", Bound(max_abs=-1))  # which nothing keeps
    with pytest.raises(ParityError, match="image_encoder image_features"):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="bf16")
    assert not list(repository.rglob("model.onnx"))
    assert b"openvino" not in (repository / "image_encoder" / "config.pbtxt").read_bytes()


@pytest.mark.parametrize(
    ("flags", "without", "line"),
    [
        ({"avx512f"}, [], "bf16 needs AVX512-BF16 or AMX-BF16, which this CPU does not have: exporting fp32"),
        (
            {"amx_bf16"},
            ["openvino"],
            "bf16 needs the package openvino, which is missing (pip install 'medimage-triton[openvino]'): "
            "exporting fp32",
        ),
    ],
    ids=["instructions", "package"],
)
def test_export_without_what_bf16_needs_says_so_in_one_line_and_is_fp32(repository, monkeypatch, flags, without, line):
    before = {model: (repository / model / "config.pbtxt").read_bytes() for model in ENCODERS}
    monkeypatch.setattr(openvino_session, "instructions", lambda: frozenset(flags))
    for package in without:
        monkeypatch.setitem(sys.modules, package, None)
    result = run(repository, "--precision", "bf16")
    assert (result.exit_code, result.stderr) == (0, f"{line}\n")
    assert manifest(repository)["precision"] == "fp32"
    assert {model: (repository / model / "config.pbtxt").read_bytes() for model in ENCODERS} == before


def test_export_as_a_function_refuses_what_it_cannot_check(repository, monkeypatch):
    monkeypatch.setattr(openvino_session, "instructions", lambda: frozenset(["avx512f"]))
    with pytest.raises(OpenVINOMissing, match="which this CPU does not have"):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="bf16")
    with pytest.raises(ExportError, match="bf16 is for CPUs; TensorRT takes"):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="bf16", format="tensorrt")


def test_fp32_export_ends_with_what_this_cpu_could_have(repository, monkeypatch):
    monkeypatch.setattr(cpu, "instructions", lambda: frozenset(["avx512_bf16", "avx512_vnni"]))
    last_two = run(repository).stdout.splitlines()[-2:]
    assert last_two[0] == "this CPU has AVX512-BF16 for --precision bf16, AVX512-VNNI for --precision int8"
    assert last_two[1].startswith("exported to ")


def test_export_and_server_go_by_the_same_instructions():
    assert cpu.BF16_INSTRUCTIONS == server.BF16_INSTRUCTIONS
