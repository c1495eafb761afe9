"""Exported heads against scikit-learn and the head without PyTorch, and what an export refuses."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from sklearn.neighbors import KNeighborsClassifier

from medimage_analysis.heads.head import Head
from medimage_analysis.table import Model
from medimage_client.cli.group import medimage
from medimage_export.heads.modules import Adapter
from medimage_export.repository import copy_unexported
from medimage_server.model_repository import ServedModels
from tests.triton.heads import ENCODER, HEADS


@pytest.fixture(scope="module")
def repository(exported, tmp_path_factory):
    return shutil.copytree(exported("fp32"), tmp_path_factory.mktemp("heads") / "models")


def unit(n, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, 1024)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def export(head, repository, folder, *options, name="findings"):
    folder.mkdir(exist_ok=True)
    head.save(folder)
    command = ["export", "head", folder, "--name", name, "--repository", repository, *options]
    return CliRunner().invoke(medimage, [*map(str, command)], catch_exceptions=False)


@pytest.mark.parametrize("multilabel", [False, True], ids=["one-label", "several"])
@pytest.mark.parametrize("kind", ["mlp", "linear", "knn", "zeroshot"])
def test_exported_graph_gives_the_heads_scores_and_labels(repository, tmp_path, kind, multilabel):
    reference, truth = unit(40), np.arange(40) % 3
    tensors = {
        "mlp": lambda: {name: one.numpy() for name, one in Adapter(1024, 64, 3).state_dict().items()},
        "linear": lambda: {"weight": 5 * unit(3, 1), "bias": np.array([0.1, 0, -0.2], np.float32)},
        "knn": lambda: {"reference": reference, "votes": np.eye(3, dtype="f4")[truth], "k": np.array([5])},
        "zeroshot": lambda: {"label_features": unit(3, 1), "scaling_factor": np.array([4.0], np.float32)},
    }[kind]()
    head = Head(kind, ["a", "b c", "ö"], multilabel, ENCODER, tensors)
    done = export(head, repository, tmp_path / "head")
    assert done.exit_code == 0, done.output
    session = onnxruntime.InferenceSession(repository / "findings_head/1/model.onnx")
    vectors = unit(7, 2)
    scores, labels = session.run(["scores", "labels"], {"image_features": vectors})
    np.testing.assert_allclose(scores, head.scores(vectors), rtol=1e-4, atol=2e-6)
    assert labels.tolist() == [["a", "b c", "ö"]] * 7
    assert (repository / "findings/labels.txt").read_text() == "a\nb c\nö\n"
    if kind == "knn":
        nearest = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(reference, truth)
        np.testing.assert_allclose(scores, nearest.predict_proba(vectors), atol=1e-6)


def test_exported_head_is_served_with_its_parts_and_copied_to_no_other_repository(repository, tmp_path):
    assert export(HEADS["views"], repository, tmp_path / "head", name="views").exit_code == 0
    served = ServedModels(repository)
    assert "views" in served.heads()
    assert {"views_head", "image_encoder", "image_preprocessing"} < set(ServedModels(repository, ["views"]).names)
    encoder = repository / "medimageinsight_image/config.pbtxt"
    text = encoder.read_text()
    encoder.write_text(text.replace(ENCODER.checkpoint, "2" * 64))  # as if another checkpoint were exported
    served = ServedModels(repository)
    assert served.heads() == [] and "for another encoder than is exported now" in served.faults["views"]
    assert "medimageinsight" in served.names
    encoder.write_text(text)
    copied = {path.name for path in copy_unexported(repository, tmp_path / "copy").iterdir()}
    assert "medimageinsight" in copied and not {"views", "views_head"} & copied


def test_head_of_another_encoder_is_refused_unless_forced(repository, tmp_path):
    other = Model("medimageinsight", "1" * 64, "fp32", "reference", "file")
    head = Head("linear", ["a", "b"], False, other, {"weight": unit(2), "bias": np.zeros(2, np.float32)})
    done = export(head, repository, tmp_path / "head", name="strange")
    assert done.exit_code == 1
    assert f"vectors of checkpoint {'1' * 12}, and checkpoint {ENCODER.checkpoint[:12]} is exported" in done.output
    assert "--force" in done.output and not [*repository.glob("strange*")]
    done = export(head, repository, tmp_path / "head", "--force", name="strange")
    assert done.exit_code == 0
    assert "Warning: the head is for vectors of" in done.stderr
    assert "made with profile reference, and azure is exported" in done.stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("image_encoder", "a model that is no head"),
        ("views_head", "names that end in _head"),
        ("CXR findings", "expected small letters"),
        ("../up", "expected"),
    ],
)
def test_names_of_other_models_are_refused(repository, tmp_path, name, told):
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    done = export(HEADS["views"], repository, tmp_path / "head", name=name)
    assert done.exit_code == 1 and told in done.output
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_head_without_an_exported_encoder_and_broken_weights_get_one_line(repository, exported, tmp_path):
    done = export(HEADS["views"], copy_unexported(repository, tmp_path / "bare"), tmp_path / "head", name="views")
    assert done.exit_code == 1 and "run `medimage export medimageinsight` first" in done.output
    weight = unit(2)
    weight[1, 3] = np.nan
    head = Head("linear", ["a", "b"], False, ENCODER, {"weight": weight, "bias": np.zeros(2, np.float32)})
    done = export(head, repository, tmp_path / "broken", name="broken")
    assert done.exit_code == 1 and "weight has numbers that are not finite" in done.output
    described = json.loads((tmp_path / "head/head.json").read_text())
    (tmp_path / "head/head.json").write_text(json.dumps(described | {"kind": "forest"}))
    command = ["export", "head", str(tmp_path / "head"), "--name", "forest", "--repository", str(repository)]
    done = CliRunner().invoke(medimage, command)
    assert done.exit_code == 1 and "kind is 'forest'; expected one of mlp, linear, knn, zeroshot" in done.output
