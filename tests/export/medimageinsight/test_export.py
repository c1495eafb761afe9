"""The export as a whole: what it checks, what it puts in place, and what it leaves alone."""

import json
from collections import Counter

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from medimage_export.errors import ExportError, ParityError, RepositoryError
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.medimageinsight.export import BOUNDS, calibration_images, export_medimageinsight, image_feeds
from medimage_export.medimageinsight.graphs import ImageEncoderGraph, TextEncoderGraph
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.node_by_node import NodeByNode
from medimage_export.parity import Bound, ParityRow, check_parity, compare
from medimage_export.repository import copy_unexported
from tests.export.medimageinsight.small import random_texts
from tests.export.medimageinsight.written import pytorch, run, weights_of_products
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY


@pytest.fixture
def repository(tmp_path):
    """A copy of the committed configs, without any exported file."""
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")


@pytest.fixture(scope="module")
def phantom():
    return load_model(find_checkpoint(PHANTOM_CHECKPOINT))


def noise():
    return np.random.default_rng(5).integers(0, 256, (2, 480, 480, 3), dtype=np.uint8)


def test_compare_finds_a_changed_weight_and_a_missing_bias(small_model, tmp_path):
    path = tmp_path / "model.onnx"
    write_text_encoder(small_model, path, precision="fp32")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, mask = random_texts([9, 30])
    feeds = {"texts": {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}}
    reference = TextEncoderGraph(small_model)
    check_parity(compare("text_encoder", reference, session, reference.OUTPUTS, feeds), BOUNDS["fp32"])
    layer = small_model.lang_encoder.resblocks[1].mlp.c_fc
    for parameter in (layer.weight[0], layer.bias):
        kept = parameter.clone()
        parameter.zero_()
        with pytest.raises(ParityError, match="text_features"):
            check_parity(compare("text_encoder", reference, session, reference.OUTPUTS, feeds), BOUNDS["fp32"])
        parameter.copy_(kept)


def test_compare_refuses_outputs_of_another_shape(small_model):
    class Flat:
        def run(self, names, feed):
            return [np.ones((2, 5), np.float32), np.ones((2, 1), np.float32)]

    ids, mask = random_texts([9, 30])
    feeds = {"texts": {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}}
    reference = TextEncoderGraph(small_model)
    with pytest.raises(ParityError, match=r"text_features has shape \(2, 5\) instead of \(2, 1024\)"):
        compare("text_encoder", reference, Flat(), reference.OUTPUTS, feeds)


def test_parity_error_names_every_output_past_the_bound(capsys):
    rows = [
        ParityRow("image_encoder", "image_features", "noise", 1, max_abs=0.5, min_cosine=1.0),
        ParityRow("image_encoder", "scaling_factor", "noise", 1, max_abs=0.0, min_cosine=1.0),
        ParityRow("text_encoder", "text_features", "captions", 2, max_abs=float("nan"), min_cosine=float("nan")),
        ParityRow("text_encoder", "text_features", "one text", 1, max_abs=0.0, min_cosine=0.9),
    ]
    with pytest.raises(ParityError) as caught:
        check_parity(rows, Bound(max_abs=1e-5, min_cosine=0.999))
    assert str(caught.value) == (
        "past the bound of max |err| 1e-05, cosine 0.999: image_encoder image_features (noise), "
        "text_encoder text_features (captions), text_encoder text_features (one text)"
    )
    assert "5.0e-01" in capsys.readouterr().out  # the table comes before the error


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_export_writes_what_the_repository_needs(repository, tmp_path, phantom, precision):
    image = tmp_path / "image.png"
    Image.new("L", (300, 200), 128).save(image)
    rows = export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision=precision, images=[image, image])
    assert {"image 1", "image 2"} < {row.inputs for row in rows}
    assert {row.output for row in rows} == {"image_features", "text_features", "scaling_factor"}
    written = {str(p.relative_to(repository)) for p in repository.rglob("*") if p.suffix in (".json", ".onnx", ".data")}
    assert written == {
        "image_encoder/1/model.onnx",
        "image_encoder/1/model.onnx.data",
        "image_preprocessing/1/preprocessing.json",
        "medimageinsight/1/manifest.json",
        "text_encoder/1/model.onnx",
        "text_encoder/1/model.onnx.data",
        "text_tokenizer/1/tokenizer.json",
    }
    assert not list(repository.rglob(".export-*"))
    preprocessing = json.loads((repository / "image_preprocessing/1/preprocessing.json").read_text())
    assert preprocessing == {"image_size": [480, 480], "interpolation": "bicubic"}
    manifest = json.loads((repository / "medimageinsight/1/manifest.json").read_text())
    assert (manifest["format"], manifest["precision"]) == ("onnx", precision)
    assert len(manifest["checkpoint"]["sha256"]) == 64
    assert all(row["max_abs"] <= BOUNDS[precision].max_abs for row in manifest["parity"])
    assert max(row["max_abs"] for row in manifest["parity"]) > (1e-5 if precision != "fp32" else 0)

    features = run(repository / "image_encoder/1/model.onnx", {"pixels": noise()})[0]
    wanted = pytorch(ImageEncoderGraph(phantom), {"pixels": noise()})[0]
    np.testing.assert_allclose(features, wanted, rtol=0, atol=BOUNDS[precision].max_abs)
    (kind, _), *_ = Counter(
        w.dtype for w in weights_of_products(repository / "image_encoder/1/model.onnx")
    ).most_common()
    assert kind == {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[precision]
    for path in repository.rglob("*/1/model.onnx"):
        assert str(REPOSITORY.parent).encode() not in path.read_bytes()


def test_export_of_another_precision_takes_the_place_of_the_first(repository):
    export_medimageinsight(PHANTOM_CHECKPOINT, repository)
    config = (repository / "image_encoder/config.pbtxt").read_bytes()
    large = (repository / "image_encoder/1/model.onnx.data").stat().st_size
    export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="int8")
    assert (repository / "image_encoder/1/model.onnx.data").stat().st_size < large / 2
    assert (repository / "image_encoder/config.pbtxt").read_bytes() == config


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a GPU rounds by itself")
def test_fp16_is_checked_with_the_roundings_that_onnxruntime_drops_on_a_cpu(repository, phantom):
    rows = export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="fp16")
    (row,) = [row for row in rows if (row.output, row.inputs) == ("image_features", "noise")]
    path = repository / "image_encoder/1/model.onnx"
    feed = image_feeds(phantom.config.image, [])["noise"]
    wanted = pytorch(ImageEncoderGraph(phantom), feed)[0]
    assert row.max_abs == pytest.approx(abs(NodeByNode(path).run(["image_features"], feed)[0] - wanted).max(), rel=1e-3)
    assert row.max_abs != pytest.approx(abs(run(path, feed)[0] - wanted).max(), rel=1e-2)


def test_int8_takes_its_ranges_from_the_given_images(repository, tmp_path):
    """With a black picture for its ranges alone, all else is cut, and the parity check says so."""
    black = tmp_path / "black.png"
    Image.new("RGB", (480, 480)).save(black)
    with pytest.raises(ParityError, match=r"image_encoder image_features \(phantoms\)"):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="int8", calibration=[black])
    assert not list(repository.rglob("model.onnx"))


def test_drawings_for_calibration_are_not_those_of_the_parity_check(phantom):
    """Ranges from the images that they are checked on would flatter the check."""
    config = phantom.config.image
    drawings = {feed["pixels"].tobytes() for feed in calibration_images(config, [])}
    checked = {image.tobytes() for image in image_feeds(config, [])["phantoms"]["pixels"]}
    assert len(drawings) >= 10
    assert not drawings & checked


def test_failed_parity_leaves_the_repository_as_it_was(repository, monkeypatch):
    monkeypatch.setitem(BOUNDS, "fp32", Bound(max_abs=-1, min_cosine=1))
    before = sorted(repository.rglob("*"))
    with pytest.raises(ParityError):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository)
    assert sorted(repository.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8", "format": "tensorrt"}, "int8 is for CPUs; TensorRT takes --precision fp16 or fp32"),
        ({"calibration": ["a.png"]}, "fp32 needs no calibration images; only --precision int8 takes them"),
        (
            {"calibration": ["a.png"], "precision": "fp16"},
            "fp16 needs no calibration images; only --precision int8 takes them",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(ExportError, match=f"^{message}$"):
        export_medimageinsight(tmp_path / "no checkpoint", tmp_path / "no repository", **options)


def test_export_refuses_a_folder_that_is_no_repository(tmp_path):
    with pytest.raises(RepositoryError, match="model_repository folder of this project"):
        export_medimageinsight(PHANTOM_CHECKPOINT, tmp_path)


def test_export_refuses_configs_for_another_image_size(repository):
    config = repository / "image_encoder/config.pbtxt"
    config.write_text(config.read_text().replace("480", "384"))
    with pytest.raises(
        RepositoryError, match=r"pixels has dims \[384, 384, 3\]; this checkpoint needs \[480, 480, 3\]"
    ):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository)
