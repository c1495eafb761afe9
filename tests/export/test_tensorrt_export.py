"""The export to TensorRT as a whole, with a stand-in for TensorRT that runs the ONNX files it is given."""

import json

import pytest

from medimage_export.errors import RepositoryError
from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.repository import copy_unexported
from tests.export.fake_tensorrt import install
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY


@pytest.fixture
def repository(tmp_path):
    """A copy of the committed configs, without any exported file."""
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")


@pytest.fixture
def tensorrt(monkeypatch):
    return install(monkeypatch)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_writes_plans_checked_in_every_profile_and_configs_that_serve_them(repository, tensorrt):
    export_medimageinsight(PHANTOM_CHECKPOINT, repository, format="tensorrt")
    for model in ("image_encoder", "text_encoder"):
        assert [path.name for path in (repository / model / "1").glob("model.*")] == ["model.plan"]
        assert 'platform: "tensorrt_plan"' in (repository / model / "config.pbtxt").read_text()
    manifest = json.loads((repository / "medimageinsight/1/manifest.json").read_text())
    assert manifest["format"] == "tensorrt"
    assert manifest["versions"]["tensorrt"] == "10.15.1"
    for model in ("image_encoder", "text_encoder"):
        batches = {row["batch"] for row in manifest["parity"] if row["model"] == model}
        assert 1 in batches
        assert batches & set(range(2, 9))
        assert batches & set(range(9, 33))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: KIND_AUTO", "kind: KIND_CPU"),
        ("kind: KIND_AUTO", "kind:KIND_AUTO"),
        ('default_model_filename: "model.onnx"', ""),
    ],
)
def test_config_that_cannot_serve_a_plan_is_refused_before_anything_is_built(repository, tensorrt, old, new):
    config = repository / "text_encoder" / "config.pbtxt"  # the second to be built
    text = config.read_text()
    assert text.count(old) == 1
    config.write_text(text.replace(old, new))
    before = contents(repository)
    with pytest.raises(RepositoryError, match=r"text_encoder/config\.pbtxt: "):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository, format="tensorrt")
    assert tensorrt.network_flags is None
    assert contents(repository) == before
