"""Exported graphs: the same numbers as PyTorch, in a shape that other precisions and runtimes can use."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from medimage_export.errors import ParityError, RepositoryError
from medimage_export.medimageinsight import export as export_module
from medimage_export.medimageinsight.export import FP32_BOUND, export_medimageinsight
from medimage_export.medimageinsight.graphs import ImageEncoderGraph, TextEncoderGraph
from medimage_export.parity import Bound, ParityRow, check_parity, compare
from medimage_export.repository import copy_unexported
from medimage_export.to_onnx import OPSET, to_onnx
from tests.export.medimageinsight.small import SMALL, perturbed_model
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Both encoders of the small model as (PyTorch graph, path of the ONNX file)."""
    model = perturbed_model()
    folder = tmp_path_factory.mktemp("onnx")
    graphs = {"image_encoder": ImageEncoderGraph(model).eval(), "text_encoder": TextEncoderGraph(model).eval()}
    for name, graph in graphs.items():
        to_onnx(graph, folder / f"{name}.onnx")
    return {name: (graph, folder / f"{name}.onnx") for name, graph in graphs.items()}


@pytest.fixture
def repository(tmp_path):
    """A copy of the committed configs, without any exported file."""
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_image_graph_keeps_each_layer_norm_and_gelu_as_one_node(exported):
    _, path = exported["image_encoder"]
    found = operators(path)
    blocks = 2 * sum(SMALL.image.depths)  # spatial and channel
    assert found["LayerNormalization"] == 2 * blocks + len(SMALL.image.depths) + 1
    assert found["Gelu"] == blocks
    assert found["ReduceMean"] == 1  # the pooling: none from a decomposed norm


def test_text_graph_has_no_number_that_fp16_cannot_hold(exported):
    """A -inf or -3.4e38 mask becomes -inf in fp16, and NaN where a whole row is masked."""
    _, path = exported["text_encoder"]
    assert operators(path)["LayerNormalization"] == 2 * SMALL.text.layers + 1
    model = onnx.load(path)
    constants = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    constants += [
        numpy_helper.to_array(a.t)
        for n in model.graph.node
        for a in n.attribute
        if a.type == onnx.AttributeProto.TENSOR
    ]
    floats = [array for array in constants if array.dtype == np.float32]
    assert floats
    assert all(np.isfinite(array.astype(np.float16)).all() for array in floats)


@pytest.mark.parametrize(("name", "features"), [("image_encoder", "image_features"), ("text_encoder", "text_features")])
def test_graph_has_the_contract_of_the_served_model(exported, name, features):
    graph, path = exported[name]
    model = onnx.load(path, load_external_data=False)
    assert model.opset_import[0].version == OPSET >= 17
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(graph.INPUTS)
    assert {o.name: o.shape for o in session.get_outputs()} == {
        features: ["batch", SMALL.projection_dim],
        "scaling_factor": ["batch", 1],
    }


def test_image_graph_takes_raw_pixels_and_normalises_inside(exported):
    """uint8 NHWC in; the same image scaled and normalised by hand through the encoder must give the same vector."""
    graph, path = exported["image_encoder"]
    pixels = np.random.default_rng(5).integers(0, 256, (3, 480, 480, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    features, scale = session.run(None, {"pixels": pixels})
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((pixels / 255.0 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        raw = graph.model.image_encoder(torch.from_numpy(normalised)) @ graph.model.image_projection
    expected = raw.numpy() / np.linalg.norm(raw.numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(scale, np.full((3, 1), graph.model.logit_scale.item(), dtype=np.float32))


def test_exported_file_holds_no_path_of_the_exporting_machine(exported):
    for _, path in exported.values():
        assert str(REPOSITORY.parent).encode() not in path.read_bytes()


def test_compare_finds_a_changed_weight(exported):
    graph, path = exported["text_encoder"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.full((2, 77), SMALL.text.vocab_size - 1)
    feeds = {"ends": {"input_ids": ids, "attention_mask": np.ones_like(ids)}}
    check_parity(compare("text_encoder", graph, session, feeds), FP32_BOUND)
    weight = graph.model.lang_encoder.resblocks[1].mlp.c_fc.weight
    weight[0, 0] += 1
    try:
        with pytest.raises(ParityError, match="text_features"):
            check_parity(compare("text_encoder", graph, session, feeds), FP32_BOUND)
    finally:
        weight[0, 0] -= 1


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


def test_export_writes_what_the_repository_needs(repository, tmp_path):
    image = tmp_path / "image.png"
    Image.new("L", (300, 200), 128).save(image)
    rows = export_medimageinsight(PHANTOM_CHECKPOINT, repository, images=[image, image])
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
    assert len(manifest["checkpoint"]["sha256"]) == 64
    assert all(row["max_abs"] <= FP32_BOUND.max_abs for row in manifest["parity"])


def test_failed_parity_leaves_the_repository_as_it_was(repository, monkeypatch):
    monkeypatch.setattr(export_module, "FP32_BOUND", Bound(max_abs=-1, min_cosine=1))
    before = sorted(repository.rglob("*"))
    with pytest.raises(ParityError):
        export_medimageinsight(PHANTOM_CHECKPOINT, repository)
    assert sorted(repository.rglob("*")) == before


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
