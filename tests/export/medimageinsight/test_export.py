"""The export as a whole: what it checks, what it puts in place, and what it leaves alone."""

import json
import math
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from medimage_export.errors import ExportError, ParityError, RepositoryError
from medimage_export.medimageinsight import encoders
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model, random_model
from medimage_export.medimageinsight.encoders import calibration_images, encoders_of, image_feeds
from medimage_export.medimageinsight.export import BOUNDS, export_medimageinsight
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.int8 import write_int8
from medimage_export.medimageinsight.reference import ImageEncoderReference, TextEncoderReference
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.medimageinsight.tokenizer import build_tokenizer, write_byte_vocabulary
from medimage_export.node_by_node import NodeByNode
from medimage_export.parity import Bound, Errors, ParityRow, check_parity, compare, cpu_session, truths
from medimage_export.repository import copy_unexported
from tests.export.medimageinsight.outliers import with_outliers
from tests.export.medimageinsight.small import SMALL, random_texts, small_config
from tests.export.medimageinsight.written import pytorch, run, weights_of_products
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY


def byte_tokenizer(config):
    with tempfile.TemporaryDirectory() as folder:
        write_byte_vocabulary(Path(folder), config.text.vocab_size)
        return build_tokenizer(Path(folder), config.text.context_length)


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
    reference = TextEncoderReference(small_model)
    check_parity(compare("text_encoder", truths(reference, reference.OUTPUTS, feeds), session), "fp32", BOUNDS["fp32"])
    layer = small_model.lang_encoder.resblocks[1].mlp.c_fc
    for parameter in (layer.weight[0], layer.bias):
        kept = parameter.clone()
        parameter.zero_()
        with pytest.raises(ParityError, match="text_features"):
            check_parity(
                compare("text_encoder", truths(reference, reference.OUTPUTS, feeds), session), "fp32", BOUNDS["fp32"]
            )
        parameter.copy_(kept)


def test_compare_refuses_outputs_of_another_shape(small_model):
    class Flat:
        def run(self, names, feed):
            return [np.ones((2, 5), np.float32), np.ones((2, 1), np.float32)]

    ids, mask = random_texts([9, 30])
    feeds = {"texts": {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}}
    reference = TextEncoderReference(small_model)
    with pytest.raises(ParityError, match=r"text_features has shape \(2, 5\) instead of \(2, 1024\)"):
        compare("text_encoder", truths(reference, reference.OUTPUTS, feeds), Flat())


GENTLE = Errors(1e-7, 1.0)


def row(output, inputs, export, pytorch=GENTLE):
    return ParityRow("text_encoder", output, inputs, 1, pytorch, export)


def test_parity_error_names_every_output_that_is_too_far_and_what_is_allowed(capsys):
    rows = [
        row("text_features", "captions", Errors(0.5, 0.9)),
        row("scaling_factor", "captions", Errors(0.0, 1.0), Errors(0.0, 1.0)),
        row("text_features", "edge cases", Errors(math.nan, math.nan)),
        row("text_features", "one text", Errors(1e-6, 1.0)),
    ]
    with pytest.raises(ParityError) as caught:
        check_parity(rows, "fp32", Bound(max_abs=1e-6))
    assert str(caught.value) == (
        "fp32 is too far from PyTorch in float64: text_encoder text_features (captions) has max |err| 5.0e-01, cosine "
        "0.900000; allowed max |err| 2.0e-06; text_encoder text_features (edge cases) has max |err| nan, cosine nan; "
        "allowed max |err| 2.0e-06"
    )
    with pytest.raises(
        ParityError, match=r"^int8 is too far from PyTorch in float64 \(--precision fp32 has .* cosine 0\.99"
    ):
        check_parity(rows, "int8", Bound(min_cosine=0.995))
    assert "5.0e-01" in capsys.readouterr().out  # the table comes before the error


def test_yardstick_is_the_worst_that_pytorchs_float32_does_to_an_output():
    """A hundred times the floor is allowed where float32 itself is off by a tenth of that, in whatever batch."""
    found = row("text_features", "captions", Errors(1e-4, 1.0))
    check_parity([found, row("text_features", "one text", Errors(0, 1.0), Errors(1e-5, 1.0))], "fp32", BOUNDS["fp32"])
    with pytest.raises(ParityError):
        check_parity([found, row("other", "one text", Errors(0, 1.0), Errors(1e-5, 1.0))], "fp32", BOUNDS["fp32"])


@pytest.mark.parametrize("gain", [0.5, *(pytest.param(gain, marks=pytest.mark.soak) for gain in (1.0, 2.0)), 3.0])
def test_no_checkpoint_is_refused_for_its_rounding_and_a_wrong_graph_always(tmp_path, gain):
    model = random_model(small_config((100, 70)), gain=gain)
    reference = ImageEncoderReference(model)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 100, 70, 3), dtype=np.uint8)
    truth = truths(reference, reference.OUTPUTS, {"noise": {"pixels": pixels}, "dark": {"pixels": pixels // 9}})

    def rows():
        write_image_encoder(model, tmp_path / "model.onnx", precision="fp32")
        return compare("image_encoder", truth, cpu_session(tmp_path / "model.onnx"))

    reference_rows = rows()
    check_parity(reference_rows, "fp32", BOUNDS["fp32"])
    assert gain < 3 or max(row.pytorch.max_abs for row in reference_rows) > 1e-5  # the bound of old would refuse it
    block = model.image_encoder.blocks[2][1]
    for parameter in (
        block.spatial_block.window_attn.fn.qkv.bias[-64:],
        block.channel_block.ffn.norm.bias,
        block.channel_block.conv2.fn.dw.bias,
        block.spatial_block.ffn.fn.net.fc2.weight[0],
    ):
        kept = parameter.clone()
        parameter.zero_()
        with pytest.raises(ParityError, match="image_features"):
            check_parity(rows(), "fp32", BOUNDS["fp32"])
        parameter.copy_(kept)


class InFloat64(TorchDispatchMode):
    """Fails where a step gives float32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else [result]
        assert torch.float32 not in [x.dtype for x in found if isinstance(x, torch.Tensor)], func
        return result


def test_truth_is_float64_in_every_step(small_model):
    ids, mask = random_texts([2, 9])
    pixels = torch.zeros((1, 480, 480, 3), dtype=torch.uint8)
    small_model.double()
    image, text = ImageEncoderReference(small_model).double(), TextEncoderReference(small_model)
    with InFloat64(), torch.inference_mode():
        assert image(pixels)[0].dtype == text(ids, mask)[0].dtype == torch.float64


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_export_writes_what_the_repository_needs(exported, phantom, precision):
    repository = exported(precision)
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
    assert {row["output"] for row in manifest["parity"]} == {"image_features", "text_features", "scaling_factor"}
    assert all(row["export"]["min_cosine"] >= BOUNDS[precision].min_cosine for row in manifest["parity"])
    assert max(row["export"]["max_abs"] for row in manifest["parity"]) > (1e-5 if precision != "fp32" else 0)
    assert all(row["pytorch"]["max_abs"] < 1e-5 for row in manifest["parity"])
    assert manifest["layers_in_fp32"] == ({"image_encoder": [], "text_encoder": []} if precision == "int8" else {})

    features = run(repository / "image_encoder/1/model.onnx", {"pixels": noise()})[0]
    wanted = pytorch(ImageEncoderReference(phantom), {"pixels": noise()})[0]
    np.testing.assert_allclose(features, wanted, rtol=0, atol={"fp32": 1e-6, "fp16": 1e-2, "int8": 2e-2}[precision])
    (kind, _), *_ = Counter(
        w.dtype for w in weights_of_products(repository / "image_encoder/1/model.onnx")
    ).most_common()
    assert kind == {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[precision]
    for path in repository.rglob("*/1/model.onnx"):
        assert str(REPOSITORY.parent).encode() not in path.read_bytes()


def test_export_of_another_precision_takes_the_place_of_the_first_and_given_images_are_checked(exported, tmp_path):
    repository = shutil.copytree(exported("int8"), tmp_path / "models")
    assert "kind: KIND_CPU" in (repository / "image_encoder/config.pbtxt").read_text()
    small = (repository / "image_encoder/1/model.onnx.data").stat().st_size
    image = tmp_path / "image.png"
    Image.new("L", (300, 200), 128).save(image)
    rows = export_medimageinsight(PHANTOM_CHECKPOINT, repository, images=[image, image])
    assert {"image 1", "image 2"} < {row.inputs for row in rows}
    assert (repository / "image_encoder/1/model.onnx.data").stat().st_size > 2 * small
    config = copy_unexported(REPOSITORY, tmp_path / "committed") / "image_encoder/config.pbtxt"
    assert (repository / "image_encoder/config.pbtxt").read_bytes() == config.read_bytes()


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a GPU rounds by itself")
def test_fp16_is_checked_with_the_roundings_that_onnxruntime_drops_on_a_cpu(exported, phantom):
    repository = exported("fp16")
    rows = json.loads((repository / "medimageinsight/1/manifest.json").read_text())["parity"]
    (row,) = [row for row in rows if (row["output"], row["inputs"]) == ("image_features", "noise")]
    path = repository / "image_encoder/1/model.onnx"
    feed = image_feeds(phantom.config.image, [])["noise"]
    wanted = pytorch(ImageEncoderReference(phantom), feed)[0]
    found = row["export"]["max_abs"]
    assert found == pytest.approx(abs(NodeByNode(path).run(["image_features"], feed)[0] - wanted).max(), rel=1e-3)
    assert found != pytest.approx(abs(run(path, feed)[0] - wanted).max(), rel=1e-2)


def test_int8_whose_ranges_do_not_fit_leaves_layers_in_fp32_and_says_which(repository, tmp_path, capsys):
    """With a black picture for its ranges alone, all else is cut, and the parity check would say so."""
    black = tmp_path / "black.png"
    Image.new("RGB", (480, 480)).save(black)
    rows = export_medimageinsight(PHANTOM_CHECKPOINT, repository, precision="int8", calibration=[black])
    assert min(row.export.min_cosine for row in rows) >= BOUNDS["int8"].min_cosine
    left = json.loads((repository / "medimageinsight/1/manifest.json").read_text())["layers_in_fp32"]
    assert left["text_encoder"] == []
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "stay in fp32" in line]
    assert line.startswith(f"image_encoder: {len(left['image_encoder'])} of ")
    cosines = [float(x) for x in re.findall(r"0\.\d{6}", line)]
    assert cosines[0] >= BOUNDS["int8"].min_cosine > cosines[1]
    weights = list(weights_of_products(repository / "image_encoder/1/model.onnx"))
    assert {w.dtype for w in weights} >= {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "outliers",
    [
        pytest.param({"factor": 16, "share": 0.02}, marks=pytest.mark.soak),
        {"factor": 64, "share": 0.005},
        pytest.param({"factor": 256, "share": 0.01}, marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_outlier_channels_are_no_reason_to_refuse_or_to_leave_a_layer(phantom, outliers, tmp_path):
    model = with_outliers(phantom, **outliers, seed=7)
    tokenizer = build_tokenizer(find_checkpoint(PHANTOM_CHECKPOINT).tokenizer, model.config.text.context_length)
    path = tmp_path / "model.onnx"
    for encoder in encoders_of(model, tokenizer, [], []):
        truth = truths(encoder.reference, encoder.reference.OUTPUTS, encoder.parity_feeds)
        for precision in ("fp32", "fp16"):
            encoder.write(path, precision=precision)
            check_parity(compare(encoder.name, truth, cpu_session(path)), precision, BOUNDS[precision])
        rows, left = write_int8(encoder, path, truth, BOUNDS["int8"])
        assert left == []
        assert min(row.export.min_cosine for row in rows) >= 0.998


def test_layers_that_hurt_stay_in_fp32_the_fewest_that_hold_the_bound(tmp_path, capsys, monkeypatch):
    """An amplifying checkpoint, which all layers in 8 bits do not hold, nor those with one more branch."""
    monkeypatch.setattr(encoders, "CALIBRATION_DRAWINGS", 4)
    path, tried = tmp_path / "model.onnx", []
    config = replace(SMALL, image=small_config((100, 70)).image)
    encoder, _ = encoders_of(random_model(config, gain=2.5), byte_tokenizer(config), [], [])

    def write(path, *, precision, integer_layers):
        tried.append(integer_layers)
        encoder.write(path, precision=precision, integer_layers=integer_layers)

    truth = truths(encoder.reference, encoder.reference.OUTPUTS, encoder.parity_feeds)
    rows, left = write_int8(replace(encoder, write=write), path, truth, BOUNDS["int8"])
    check_parity(rows, "int8", BOUNDS["int8"])
    branches = re.search(rf"{len(left)} of 43 layers stay in fp32: (.*?);", capsys.readouterr().out)[1].split(", ")
    chosen = tried[-1].keys()
    assert 0 < len(chosen) == 43 - len(left)
    assert {np.dtype(np.int8), np.dtype(np.float32)} <= {w.dtype for w in weights_of_products(path)}

    *_, one_more = sorted((layers for layers in tried if layers.keys() > chosen), key=len, reverse=True)
    assert {name for name in one_more.keys() - chosen if not name.startswith(branches[-1])} == set()
    encoder.write(path, precision="int8", integer_layers=one_more)
    with pytest.raises(ParityError):
        check_parity(compare(encoder.name, truth, cpu_session(path)), "int8", BOUNDS["int8"])


def test_drawings_for_calibration_are_not_those_of_the_parity_check(phantom):
    """Ranges from the images that they are checked on would flatter the check."""
    config = phantom.config.image
    drawings = {feed["pixels"].tobytes() for feed in calibration_images(config, [])}
    checked = {image.tobytes() for image in image_feeds(config, [])["phantoms"]["pixels"]}
    assert len(drawings) >= 10
    assert not drawings & checked


def test_failed_parity_leaves_the_repository_as_it_was(repository, monkeypatch):
    monkeypatch.setitem(BOUNDS, "fp32", Bound(max_abs=-1))
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
    with pytest.raises(RepositoryError, match="run `medimage init --repository "):
        export_medimageinsight(PHANTOM_CHECKPOINT, tmp_path)


def test_export_refuses_configs_for_another_image_size(repository):
    config = repository / "image_encoder/config.pbtxt"
    config.write_text(config.read_text().replace("480", "384"))
    with pytest.raises(
        RepositoryError, match=r"pixels has dims \[384, 384, 3\]; this checkpoint needs \[480, 480, 3\]"
    ):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository)
