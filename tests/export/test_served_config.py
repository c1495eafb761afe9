"""The served config after an export, read as Triton reads it."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from medimage_export.errors import RepositoryError
from medimage_export.repository import copy_unexported, put_in_place
from medimage_export.served_config import config_change, max_batch_size, parse_config, told
from tests.paths import REPOSITORY

ENCODERS = ["image_encoder", "text_encoder"]


@pytest.fixture
def repository(tmp_path):
    """The committed repository, without exported files."""
    return copy_unexported(REPOSITORY, tmp_path / "models")


def text_of(repository, model):
    return (repository / model / "config.pbtxt").read_bytes().decode()


def serve(repository, model, written, precision="fp32"):
    """Change the config as at the end of an export that wrote nothing."""
    change = config_change(repository, model, written, precision=precision)
    put_in_place(repository / "no staging", repository, [change])


def rewrite(repository, model, old, new):
    text = text_of(repository, model)
    assert text.count(old) == 1
    (repository / model / "config.pbtxt").write_bytes(text.replace(old, new).encode())


@pytest.mark.parametrize("model", ENCODERS)
def test_tensorrt_config_differs_in_platform_file_and_profiles(repository, model):
    before = text_of(repository, model)
    serve(repository, model, "tensorrt")
    after = text_of(repository, model)
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed[0] == 'platform: "tensorrt_plan"'
    assert changed[1] == 'default_model_filename: "model.plan"'
    assert changed[2].startswith('instance_group [ { count: 1 kind: KIND_AUTO profile: [ "0", "1", "2" ] } ]  # ')
    assert len(changed) == 3

    config = text_format.Parse(text_of(repository, model), ModelConfig())
    wanted = text_format.Parse(before, ModelConfig())
    wanted.backend, wanted.platform, wanted.default_model_filename = "", "tensorrt_plan", "model.plan"
    wanted.instance_group[0].profile[:] = ["0", "1", "2"]
    assert config == wanted


@pytest.mark.parametrize("model", ENCODERS)
def test_config_is_byte_for_byte_what_it_was_when_onnx_is_exported_again(repository, model):
    before = text_of(repository, model)
    serve(repository, model, "tensorrt")
    serve(repository, model, "onnx")
    assert text_of(repository, model) == before


@pytest.mark.parametrize("written", ["onnx", "tensorrt"])
def test_second_export_of_the_same_format_changes_nothing(repository, written):
    serve(repository, "image_encoder", written)
    before = text_of(repository, "image_encoder")
    serve(repository, "image_encoder", written)
    assert text_of(repository, "image_encoder") == before


@pytest.mark.parametrize(("size", "profiles"), [(1, 1), (8, 2), (32, 3), (64, 3)])
def test_largest_batch_is_read_from_a_config_of_either_format(repository, size, profiles):
    rewrite(repository, "image_encoder", "max_batch_size: 16", f"max_batch_size: {size}")
    assert max_batch_size(repository, "image_encoder") == size
    serve(repository, "image_encoder", "tensorrt")
    assert max_batch_size(repository, "image_encoder") == size
    config = text_format.Parse(text_of(repository, "image_encoder"), ModelConfig())
    assert list(config.instance_group[0].profile) == ["0", "1", "2"][:profiles]


def test_windows_line_ends_and_words_in_comments_stay(repository):
    comment = '# backend: "onnxruntime" or kind: KIND_AUTO'
    rewrite(repository, "image_encoder", 'backend: "onnxruntime"\n', f'backend: "onnxruntime"\r\n{comment}\n')
    before = text_of(repository, "image_encoder")
    serve(repository, "image_encoder", "tensorrt")
    assert f'platform: "tensorrt_plan"\r\n{comment}\n' in text_of(repository, "image_encoder")
    serve(repository, "image_encoder", "onnx")
    assert text_of(repository, "image_encoder") == before


def test_groups_that_an_operator_chose_keep_their_kind(repository):
    groups = "[ { count: 2 kind: KIND_GPU gpus: [ 1 ] } ]"
    rewrite(repository, "image_encoder", "[ { count: 1 kind: KIND_AUTO } ]", groups)
    before = text_of(repository, "image_encoder")
    serve(repository, "image_encoder", "tensorrt")
    (group,) = text_format.Parse(text_of(repository, "image_encoder"), ModelConfig()).instance_group
    assert (group.count, list(group.gpus), list(group.profile)) == (2, [1], ["0", "1", "2"])
    serve(repository, "image_encoder", "onnx")
    assert text_of(repository, "image_encoder") == before


@pytest.mark.parametrize("model", ENCODERS)
def test_bf16_config_differs_in_accelerator_and_kind_alone(repository, model):
    before = text_of(repository, model)
    serve(repository, model, "onnx", precision="bf16")
    wanted = text_format.Parse(before, ModelConfig())
    wanted.instance_group[0].kind = ModelInstanceGroup.KIND_CPU
    (accelerator,) = [wanted.optimization.execution_accelerators.cpu_execution_accelerator.add()]
    accelerator.name = "openvino"
    accelerator.parameters["precision"] = "bf16"
    after = text_of(repository, model)
    assert text_format.Parse(after, ModelConfig()) == wanted
    assert sum(old != new for old, new in zip(before.splitlines(), after.splitlines(), strict=True)) == 2


@pytest.mark.parametrize(
    ("model", "precision", "kind"),
    [("image_encoder", "int8", "KIND_AUTO"), ("cxrreportgen_stream", "int4", "KIND_MODEL")],
)
def test_config_of_what_is_for_cpus_differs_in_the_kind_and_says_why(repository, model, precision, kind):
    before = text_of(repository, model)
    serve(repository, model, "onnx", precision)
    after = text_of(repository, model)
    wanted = text_format.Parse(before, ModelConfig())
    assert wanted.instance_group[0].kind == ModelInstanceGroup.Kind.Value(kind)
    wanted.instance_group[0].kind = ModelInstanceGroup.KIND_CPU
    assert text_format.Parse(after, ModelConfig()) == wanted
    (changed,) = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed.endswith(f"  # {kind} before {precision}, which is for CPUs")


@pytest.mark.parametrize("then", ["fp32", "fp16"])
@pytest.mark.parametrize("steps", [["int4"], ["int8"], ["int8", "bf16", "fp16", "int8"]], ids=" and ".join)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_config_is_byte_for_byte_what_it_was_after_a_precision_for_cpus(repository, steps, then, ends):
    model = "cxrreportgen_stream" if steps == ["int4"] else "image_encoder"
    path = repository / model / "config.pbtxt"
    path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    serve(repository, model, "onnx", then)
    before = text_of(repository, model)
    for precision in steps:
        serve(repository, model, "onnx", precision)
        assert ("kind: KIND_CPU" in text_of(repository, model)) is (precision != "fp16")
    serve(repository, model, "onnx", then)
    assert text_of(repository, model) == before


@pytest.mark.parametrize(
    ("model", "sizes"), [("image_encoder", [2, 8, 16, 1, 4]), ("cxr_image_encoder", [2, 4, 8, 12, 1])]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_fp16_config_of_an_image_encoder_differs_in_warm_ups_alone(repository, model, sizes, ends):
    path = repository / model / "config.pbtxt"
    path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    before = text_of(repository, model)
    serve(repository, model, "onnx", "fp16")
    config, wanted = (text_format.Parse(text, ModelConfig()) for text in (text_of(repository, model), before))
    assert [warmup.batch_size for warmup in config.model_warmup] == sizes
    assert len({warmup.name for warmup in config.model_warmup}) == len(sizes)
    assert all(warmup.inputs == wanted.model_warmup[0].inputs for warmup in config.model_warmup)
    for one in (config, wanted):
        one.ClearField("model_warmup")
    assert config == wanted
    assert text_of(repository, model).count("\n") == text_of(repository, model).count(ends)
    serve(repository, model, "onnx", "fp16")
    serve(repository, model, "onnx", "fp32")
    assert text_of(repository, model) == before


@pytest.mark.parametrize("model", ["text_encoder", "cxrreportgen_stream"])
def test_fp16_config_without_convolutions_stays(repository, model):
    before = text_of(repository, model)
    serve(repository, model, "onnx", "fp16")
    assert text_of(repository, model) == before


def test_cpu_that_an_operator_chose_stays(repository):
    rewrite(repository, "image_encoder", "KIND_AUTO", "KIND_CPU")
    before = text_of(repository, "image_encoder")
    serve(repository, "image_encoder", "onnx", "int8")
    assert text_of(repository, "image_encoder") == before
    serve(repository, "image_encoder", "onnx", "fp16")
    assert text_of(repository, "image_encoder") == before


@pytest.mark.parametrize("model", ENCODERS)
@pytest.mark.parametrize("between", [[], ["tensorrt"], ["bf16"], ["tensorrt", "bf16"]], ids=" and ".join)
def test_config_is_byte_for_byte_what_it_was_after_bf16(repository, model, between):
    comment = '  # execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ]\r\n'
    rewrite(repository, model, "optimization {\n", f"optimization {{\n{comment}")
    before = text_of(repository, model)
    for step in ["bf16", *between]:
        serve(repository, model, *(["tensorrt"] if step == "tensorrt" else ["onnx", step]))
    serve(repository, model, "onnx")
    assert text_of(repository, model) == before


def test_bf16_leaves_an_accelerator_of_the_operators_alone(repository):
    own = 'execution_accelerators { cpu_execution_accelerator [ { name: "other" } ] '
    rewrite(repository, "image_encoder", "execution_accelerators { ", own)
    before = text_of(repository, "image_encoder")
    with pytest.raises(RepositoryError, match="has a cpu_execution_accelerator already"):
        serve(repository, "image_encoder", "onnx", precision="bf16")
    serve(repository, "image_encoder", "onnx")
    assert text_of(repository, "image_encoder") == before


def test_a_config_tells_what_was_exported_last(repository, tmp_path):
    before = text_of(repository, "medimageinsight_image")
    for weights, precision in (("a.pt", "fp32"), ('b"\\\n.pt', "int8")):
        told_now = {"checkpoint": weights, "checkpoint_sha256": "c0ffee", "precision": precision}
        put_in_place(tmp_path / "no staging", repository, [told(repository, "medimageinsight_image", told_now)])
        config = parse_config(Path("config.pbtxt"), text_of(repository, "medimageinsight_image"))
        assert {name: value.string_value for name, value in config.parameters.items()} == told_now
    copy = copy_unexported(repository, tmp_path / "copy")
    assert text_of(copy, "medimageinsight_image") == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("KIND_AUTO", "KIND_GPU", "KIND_GPU; bf16 needs KIND_CPU or KIND_AUTO"),
        ("execution_accelerators { ", "execution_accelerators {", "cannot be edited for bf16"),
    ],
)
def test_config_that_cannot_be_edited_for_bf16_is_an_error_and_stays(repository, old, new, message):
    rewrite(repository, "text_encoder", old, new)
    before = text_of(repository, "text_encoder")
    with pytest.raises(RepositoryError, match=f"text_encoder/config.pbtxt: .*{message}"):
        serve(repository, "text_encoder", "onnx", precision="bf16")
    assert text_of(repository, "text_encoder") == before


def test_files_of_the_other_format_go_when_the_new_one_is_served(repository):
    folder = repository / "image_encoder" / "1"
    for name in ("model.onnx", "model.onnx.data", "model.plan", "notes.txt"):
        (folder / name).touch()
    serve(repository, "image_encoder", "tensorrt")
    assert {path.name for path in folder.iterdir()} >= {"model.plan", "notes.txt"}
    assert not list(folder.glob("model.onnx*"))
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).touch()
    serve(repository, "image_encoder", "onnx")
    assert not (folder / "model.plan").exists()
    assert (folder / "model.onnx.data").exists()


@pytest.mark.parametrize("written", ["onnx", "tensorrt"])
def test_change_of_a_config_changes_nothing_until_it_is_put_in_place(repository, written):
    for name in ("model.onnx", "model.plan"):
        (repository / "image_encoder" / "1" / name).touch()
    before = text_of(repository, "image_encoder")
    config_change(repository, "image_encoder", written, precision="fp32")
    assert text_of(repository, "image_encoder") == before
    assert {"model.onnx", "model.plan"} <= {path.name for path in (repository / "image_encoder" / "1").iterdir()}


def test_copy_of_a_repository_that_serves_bf16_is_as_committed(repository, tmp_path):
    before = {config.parent.name: config.read_bytes() for config in repository.glob("*/config.pbtxt")}
    for model in ENCODERS:
        serve(repository, model, "onnx", precision="bf16")
    copy = copy_unexported(repository, tmp_path / "copy")
    assert {config.parent.name: config.read_bytes() for config in copy.glob("*/config.pbtxt")} == before


def test_copy_of_a_repository_that_serves_what_is_for_cpus_is_as_committed(repository, tmp_path):
    before = {config.parent.name: config.read_bytes() for config in repository.glob("*/config.pbtxt")}
    serve(repository, "cxrreportgen_stream", "onnx", "int4")
    copy = copy_unexported(repository, tmp_path / "copy")
    assert {config.parent.name: config.read_bytes() for config in copy.glob("*/config.pbtxt")} == before


def test_copy_of_a_repository_that_serves_plans_is_as_committed(repository, tmp_path):
    before = {config.parent.name: config.read_bytes() for config in repository.glob("*/config.pbtxt")}
    for model in ENCODERS:
        serve(repository, model, "tensorrt")
        (repository / model / "1" / "model.plan").touch()
    copy = copy_unexported(repository, tmp_path / "copy")
    assert {config.parent.name: config.read_bytes() for config in copy.glob("*/config.pbtxt")} == before
    assert not list(copy.rglob("*.plan"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("KIND_AUTO", "KIND_CPU", "KIND_CPU; a TensorRT plan needs KIND_GPU or KIND_AUTO"),
        ("kind: KIND_AUTO", "", "cannot be edited for tensorrt"),
        ("kind: KIND_AUTO", "kind:KIND_AUTO", "cannot be edited for tensorrt"),
        ('backend: "onnxruntime"', 'backend: "other"', "cannot be edited for tensorrt"),
        ('"model.onnx"', '"encoder.onnx"', "cannot be edited for tensorrt"),
        ("max_batch_size: 16", "max_batch: 16", "line "),
    ],
)
def test_config_that_cannot_be_edited_is_an_error_and_stays(repository, old, new, message):
    rewrite(repository, "image_encoder", old, new)
    (repository / "image_encoder/1/model.onnx").touch()
    before = text_of(repository, "image_encoder")
    with pytest.raises(RepositoryError, match=f"image_encoder/config.pbtxt: .*{message}"):
        serve(repository, "image_encoder", "tensorrt")
    assert text_of(repository, "image_encoder") == before
    assert (repository / "image_encoder/1/model.onnx").exists()
