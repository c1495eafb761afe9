"""Heads against scikit-learn, against PyTorch's own layers, and against what was put into the data."""

import csv
import json
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from medimage_analysis.heads.head import Head, nearest
from medimage_analysis.heads.measures import calibration_error, operating_points, point_at
from medimage_analysis.heads.splits import SPLITS, split
from medimage_analysis.table import Model, to_column, write
from medimage_client.cli.group import medimage
from medimage_client.errors import InvalidInput
from medimage_export.heads.modules import Adapter, module_of
from tests.analysis.tables import MODEL

LABELS = ["Effusion", "Mass", "Normal"]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clouds(n=180, *, noise=2.0, seed=0):
    """Unit vectors around three directions, and which."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, 1024))
    truth = np.arange(n) % 3
    return unit(centres[truth] + noise * rng.normal(size=(n, 1024))), truth


@pytest.fixture
def table(tmp_path):
    """Sixty patients of three images each, with one label; the patient is in the name of the image."""
    vectors, truth = clouds()
    order = np.argsort(truth, kind="stable")
    ids = [f"p{row // 3:02}-{row % 3}.png" for row in range(len(order))]
    write(tmp_path / "vectors", pa.table({"id": ids, "image_features": to_column(vectors[order])}), MODEL)
    rows = [[name, LABELS[truth[row]], name[:3]] for name, row in zip(ids, order, strict=True)]
    write_csv(tmp_path / "labels.csv", ["id", "finding", "patient"], rows)
    return tmp_path


@pytest.fixture
def pictures():
    """Asked for by tests of the pictures; to draw them takes longer than to train."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("medimage_analysis.heads.folder.write_pictures", lambda *arguments: None)


def write_csv(path, names, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def ids_of(folder):
    return [row["id"] for row in read_csv(folder / "labels.csv")]


def run(*arguments):
    return CliRunner().invoke(medimage, [*map(str, arguments)], catch_exceptions=False)


def train(folder, to, *options, labels="labels.csv", column="finding"):
    where = ["--labels", folder / labels, "--label-column", column, "--to", folder / to, "--bootstrap", "0"]
    return run("head", "train", folder / "vectors", *where, *options)


class Microsofts(nn.Module):
    """The adapter as it is described: both convolutions run, over a length of 1."""

    def __init__(self, hidden, labels):
        super().__init__()
        self.vision_embd = nn.Sequential(nn.Linear(1024, 512), nn.GELU(), nn.Linear(512, 512), nn.LayerNorm(512))
        self.retrieval_conv = nn.Sequential(
            nn.Conv1d(512, hidden, 3, padding=1), nn.GELU(), nn.Conv1d(hidden, hidden, 3, padding=1)
        )
        self.prediction_head = nn.Sequential(nn.Linear(hidden, labels))

    def forward(self, vectors):
        return self.prediction_head(self.retrieval_conv(self.vision_embd(vectors).unsqueeze(2)).squeeze(2))


def arrays(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def test_state_dicts_of_microsofts_adapter_go_both_ways_with_equal_outputs():
    torch.manual_seed(3)
    theirs, vectors = Microsofts(254, 5), clouds(20)[0]
    with torch.inference_mode():
        want = theirs(torch.from_numpy(vectors))
        ours = Adapter.of(arrays(theirs))
        torch.testing.assert_close(ours(torch.from_numpy(vectors)), want, rtol=1e-5, atol=1e-6)
        back = Microsofts(254, 5)
        back.load_state_dict(ours.state_dict())
        assert torch.equal(back(torch.from_numpy(vectors)), want)
    head = Head("mlp", list("abcde"), False, MODEL, arrays(theirs))
    np.testing.assert_allclose(head.scores(vectors), want.softmax(dim=1).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("multilabel", [False, True], ids=["one-label", "several"])
@pytest.mark.parametrize("kind", ["mlp", "linear", "knn", "zeroshot"])
def test_head_without_pytorch_is_the_one_in_pytorch(kind, multilabel):
    torch.manual_seed(1)
    rng, (vectors, truth) = np.random.default_rng(1), clouds(60)
    tensors = {
        "mlp": arrays(Adapter(1024, 512, 3)),
        "linear": {"weight": rng.normal(size=(3, 1024)).astype("f4"), "bias": rng.normal(size=3).astype("f4")},
        "knn": {"reference": vectors[20:], "votes": np.eye(3, dtype="f4")[truth[20:]], "k": np.array([7])},
        "zeroshot": {"label_features": vectors[:3], "scaling_factor": np.array([3.0], np.float32)},
    }[kind]
    scores = Head(kind, LABELS, multilabel, MODEL, tensors).scores(vectors)
    with torch.inference_mode():
        want = module_of(kind, tensors, multilabel=multilabel)(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-6)
    assert multilabel or np.allclose(scores.sum(axis=1), 1)


def test_knn_is_scikit_learns():
    vectors, truth = clouds(120, noise=6.0)
    head = Head(
        "knn",
        LABELS,
        False,
        MODEL,
        {"reference": vectors[:90], "votes": np.eye(3, dtype="f4")[truth[:90]], "k": np.array([9])},
    )
    want = KNeighborsClassifier(9, metric="cosine", algorithm="brute").fit(vectors[:90], truth[:90])
    np.testing.assert_allclose(head.scores(vectors[90:]), want.predict_proba(vectors[90:]), atol=1e-6)


def test_nearest_are_those_of_a_stable_sort_also_of_equal_ones():
    vectors = clouds(60)[0]
    reference = np.concatenate([vectors[:20], vectors[:20], vectors[20:40]])  # each of the first twice
    want = np.argsort(-(vectors @ reference.T), axis=1, kind="stable")
    for k in (1, 3, 20, 60):
        assert np.array_equal(nearest(vectors, reference, k), want[:, :k])


def test_split_keeps_groups_together_and_labels_alike():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, 1500).astype(str)
    targets = rng.random((1500, 4)) < [0.5, 0.2, 0.05, 0.02]
    parts = split(targets, groups, seed=1)
    assert all(len({*parts[groups == group]}) == 1 for group in {*groups})
    np.testing.assert_allclose(np.bincount(parts) / 1500, [0.7, 0.15, 0.15], atol=0.03)
    for index in range(len(SPLITS)):
        np.testing.assert_allclose(targets[parts == index].mean(axis=0), targets.mean(axis=0), rtol=0.35)
    assert (split(targets, groups, seed=1) == parts).all()
    assert (split(targets, groups, seed=2) != parts).any()


def test_operating_points_are_the_best_of_all_thresholds():
    rng = np.random.default_rng(4)
    positive = rng.random(300) < 0.3
    scores = np.clip(rng.normal(0.4 + 0.2 * positive, 0.15), 0, 1).astype(np.float32)
    found = operating_points(scores[:, None], positive[:, None], ["a"])["a"]
    every = [point_at(float(score), scores, positive) for score in scores]
    youden, f1 = found["youden_j"], found["best_f1"]
    assert youden.sensitivity + youden.specificity == max(one.sensitivity + one.specificity for one in every)
    assert (
        f1.f1 == max(one.f1 for one in every) == pytest.approx(f1_score(positive, scores >= np.float32(f1.threshold)))
    )
    assert found["sensitivity_90"].threshold == max(one.threshold for one in every if one.sensitivity >= 0.9)
    assert youden.sensitivity == pytest.approx(recall_score(positive, scores >= np.float32(youden.threshold)))


def test_calibration_error_is_none_where_scores_are_shares_and_all_where_they_are_wrong():
    scores, positive = np.full((100, 1), 0.25, np.float32), (np.arange(100) % 4 == 0)[:, None]
    assert calibration_error(scores, positive) == pytest.approx(0, abs=1e-7)
    assert calibration_error(np.array([[0.0], [1.0]], np.float32), np.array([[True], [False]])) == 1


@pytest.mark.parametrize("kind", ["linear", "knn", "mlp"])
def test_trained_head_is_measured_on_patients_it_has_not_seen(table, kind):
    quick = ["--epochs", "4", "--hidden", "32", "--learning-rate", "3e-3"] if kind == "mlp" else []
    done = train(table, "head", "--kind", kind, "--group-column", "patient", *quick)
    assert done.exit_code == 0, done.output
    files = {path.name for path in (table / "head").iterdir()}
    assert files == {"head.json", "weights.safetensors", "splits.csv", "report.md"}
    described = json.loads((table / "head/head.json").read_text())
    assert described["encoder"]["checkpoint"] == MODEL.checkpoint
    splits = read_csv(table / "head/splits.csv")
    assert all(
        len({row["split"] for row in splits if row["group"] == group}) == 1 for group in {r["group"] for r in splits}
    )

    done = run("head", "predict", table / "head", table / "vectors", "--output", table / "scores.csv")
    assert done.exit_code == 0, done.output
    truth = {row["id"]: row["finding"] for row in read_csv(table / "labels.csv")}
    test = {row["id"] for row in splits if row["split"] == "test"}
    rows = [row for row in read_csv(table / "scores.csv") if row["id"] in test]
    true = [truth[row["id"]] for row in rows]
    assert described["test"]["accuracy"]["value"] == accuracy_score(true, [row["predicted"] for row in rows]) >= 0.9
    scores = np.array([[float(row[label]) for label in LABELS] for row in rows])
    assert described["test"]["mauc"]["value"] == pytest.approx(
        roc_auc_score(true, scores / scores.sum(1, keepdims=True), multi_class="ovr")
    )


def test_labels_by_themselves_of_one_cell_and_of_columns_are_the_same_head(table):
    rows = read_csv(table / "labels.csv")
    both = [[row["id"], f"{row['finding']}|Device" if n % 2 else row["finding"]] for n, row in enumerate(rows)]
    names = sorted({*LABELS, "Device"})
    write_csv(table / "cells.csv", ["id", "finding"], both)
    write_csv(
        table / "columns.csv",
        ["id", *names],
        [[i, *(int(name in cell.split("|")) for name in names)] for i, cell in both],
    )
    assert train(table, "cells", "--separator", "|", labels="cells.csv").exit_code == 0
    columns = [part for name in names[1:] for part in ("--label-column", name)]
    assert train(table, "columns", *columns, labels="columns.csv", column=names[0]).exit_code == 0
    first, second = (json.loads((table / name / "head.json").read_text()) for name in ("cells", "columns"))
    assert first["multilabel"] and first == second
    assert first["test"]["labels"]["Mass"]["auc"]["value"] > 0.95
    assert 0.2 < first["test"]["labels"]["Device"]["auc"]["value"] < 0.8  # it is in no vector
    where = ["--labels", table / "cells.csv", "--label-column", "finding", "--separator", "|", "--bootstrap", "0"]
    compared = run(
        "evaluate", "head", table / "cells", table / "columns", "--table", table / "vectors", *where, "--json"
    )
    found = json.loads(compared.stdout)
    assert found[str(table / "cells")]["labels"] == first["test"]["labels"]


def test_evaluation_leaves_out_what_a_head_has_seen(table):
    train(table, "one", "--group-column", "patient")
    train(table, "two", "--group-column", "patient", "--kind", "knn")
    where = ["--table", table / "vectors", "--labels", table / "labels.csv", "--label-column", "finding"]
    done = run("evaluate", "head", table / "one", table / "two", *where, "--bootstrap", "0", "--json")
    assert done.exit_code == 0, done.output
    test = {row["id"] for row in read_csv(table / "one/splits.csv") if row["split"] == "test"}
    assert f"{180 - len(test)} of 180 images are left out" in done.stderr
    for name, one in json.loads(done.stdout).items():
        described = json.loads((table / name / "head.json").read_text())
        assert one == described["test"] and one["n_images"] == len(test)
    (table / "one/splits.csv").write_text("id,group,split\n" + "".join(f"{n},,train\n" for n in ids_of(table)))
    done = run("evaluate", "head", table / "one", *where)
    assert done.exit_code == 1 and "the heads have seen every labelled image" in done.stderr


def test_learning_curve_grows_to_the_head_itself(table, pictures):
    done = train(table, "head", "--learning-curve", "--group-column", "patient")
    assert done.exit_code == 0, done.output
    described = json.loads((table / "head/head.json").read_text())
    curve = described["learning_curve"]
    assert [step["share"] for step in curve] == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert [step["images"] for step in curve] == sorted(step["images"] for step in curve)
    assert curve[-1]["images"] == described["images"]["train"]
    assert curve[-1]["mauc"] == pytest.approx(described["test"]["mauc"]["value"])
    pictures = {path for path in (table / "head").iterdir() if path.read_bytes().startswith(b"\x89PNG")}
    assert {path.name for path in pictures} == {"roc.png", "confusion.png", "calibration.png", "learning_curve.png"}
    report = (table / "head/report.md").read_text()
    assert all(f"]({path.name})" in report for path in pictures)


def test_state_dict_of_microsofts_adapter_is_taken_as_it_is(table):
    torch.manual_seed(0)
    theirs = Microsofts(254, 3)
    torch.save(theirs.state_dict(), table / "theirs.pth")
    done = train(table, "head", "--kind", "mlp", "--start", table / "theirs.pth", "--epochs", "0")
    assert done.exit_code == 0, done.output
    head, state = Head.load(table / "head"), arrays(theirs)
    assert head.tensors.keys() == state.keys()
    assert all(np.array_equal(head.tensors[name], state[name]) for name in state)
    torch.save(Microsofts(254, 7).state_dict(), table / "other.pth")
    done = train(table, "another", "--kind", "mlp", "--start", table / "other.pth")
    assert done.exit_code == 1 and "other.pth: is an adapter of 1024 numbers and 7 labels" in done.output
    assert not (table / "another").exists()


def test_training_is_the_same_for_the_same_seed_and_stops_early(table):
    options = ["--kind", "mlp", "--hidden", "16", "--epochs", "30", "--patience", "1", "--batch-size", "32"]
    first, second = (train(table, name, *options) for name in ("first", "second"))
    assert first.stderr == second.stderr
    assert 1 < first.stderr.count("epoch") < 30
    assert (table / "first/weights.safetensors").read_bytes() == (table / "second/weights.safetensors").read_bytes()


def test_adapter_without_pytorch_names_the_extra(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "medimage_training.adapter", None)
    done = train(table, "head", "--kind", "mlp")
    assert done.exit_code == 1 and "pip install 'medimage-triton[training]'" in done.stderr


def test_class_weights_find_more_of_a_rare_label(tmp_path):
    rng = np.random.default_rng(0)
    rare = np.arange(600) % 12 == 0
    vectors = unit(rng.normal(size=(600, 1024)) + 2.5 * rare[:, None] * (np.arange(1024) < 8))
    columns = {"id": [f"{n}" for n in range(600)], "image_features": to_column(vectors)}
    write(tmp_path / "vectors", pa.table({**columns, "mass": ["yes" if value else "no" for value in rare]}), MODEL)

    def recall(name, *options):
        done = run(
            "head",
            "train",
            tmp_path / "vectors",
            "--label-column",
            "mass",
            "--to",
            tmp_path / name,
            *options,
            "--bootstrap",
            "0",
        )
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / name / "head.json").read_text())["test"]["labels"]["yes"]["recall"]["value"]

    assert recall("weighted", "--class-weights") > recall("plain")


BAD = {
    "one-member": (
        lambda rows: [rows[0] | {"finding": "Rare"}, *rows[1:]],
        "'Rare' has 1 images of 1 groups (by study or image); expected at least 3",
    ),
    "ids-twice": (lambda rows: [*rows, rows[4]], "rows 5 and 181: have the same id 'p01-1.png'"),
    "no-image": (lambda rows: [row | {"id": f"x{row['id']}"} for row in rows], "none of its ids is in"),
    "one-label": (lambda rows: [row | {"finding": "Mass"} for row in rows], "has 'Mass' alone; expected two labels"),
    "reserved": (lambda rows: [row | {"finding": row["finding"].replace("Mass", "id")} for row in rows], "label 'id'"),
}


@pytest.mark.parametrize("case", BAD)
def test_labels_that_cannot_be_learnt_get_one_line(table, case):
    change, told = BAD[case]
    rows = change(read_csv(table / "labels.csv"))
    write_csv(table / "bad.csv", rows[0].keys(), [row.values() for row in rows])
    done = train(table, "head", labels="bad.csv")
    assert done.exit_code == 1
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (table / "head").exists() and not [*table.glob(".head*")]


def test_labels_without_image_and_images_without_label_are_counted(table):
    rows = read_csv(table / "labels.csv")
    write_csv(table / "some.csv", rows[0].keys(), [row.values() for row in [*rows[5:], rows[0] | {"id": "lost.png"}]])
    done = train(table, "head", labels="some.csv")
    assert done.exit_code == 0, done.output
    assert "1 of 176 ids have no image in" in done.stderr and "first 'lost.png'" in done.stderr
    assert "5 of 180 images have no label and are left out, first 'p00-0.png'" in done.stderr
    assert len(read_csv(table / "head/splits.csv")) == 175


def test_split_that_leaks_a_patient_is_refused(table):
    rows = read_csv(table / "labels.csv")
    names = [SPLITS[int(row["patient"][1:]) % 3] for row in rows]
    names[1] = "test"
    write_csv(
        table / "split.csv", [*rows[0], "split"], [[*row.values(), name] for row, name in zip(rows, names, strict=True)]
    )
    options = ["--split-column", "split", "--group-column", "patient"]
    done = train(table, "head", *options, labels="split.csv")
    assert done.exit_code == 1
    assert "the group 'p00' is in train (id 'p00-0.png') and in test (id 'p00-1.png')" in done.stderr
    names[1] = "train"
    write_csv(
        table / "split.csv", [*rows[0], "split"], [[*row.values(), name] for row, name in zip(rows, names, strict=True)]
    )
    assert train(table, "head", *options, labels="split.csv").exit_code == 0
    assert [row["split"] for row in read_csv(table / "head/splits.csv")] == names


def test_vectors_of_another_encoder_and_vectors_that_are_no_numbers_are_refused(table):
    assert train(table, "head").exit_code == 0
    vectors = clouds(4)[0]
    other = Model("medimageinsight", "1" * 64, "fp32", "reference", "file")
    write(table / "others", pa.table({"id": list("abcd"), "image_features": to_column(vectors)}), other)
    done = run("head", "predict", table / "head", table / "others")
    assert done.exit_code == 1
    assert "others is of medimageinsight (checkpoint 111111111111" in done.stderr and "000000000000" in done.stderr
    vectors[2, 7] = np.nan
    write(table / "broken", pa.table({"id": list("abcd"), "image_features": to_column(vectors)}), MODEL)
    done = run("head", "predict", table / "head", table / "broken")
    assert done.exit_code == 1 and "broken, id 'c': image_features has numbers that are not finite" in done.stderr


def test_damaged_head_gets_one_line(tmp_path):
    with pytest.raises(InvalidInput, match=r"a head is a folder that `medimage head train` wrote"):
        Head.load(tmp_path)
    Head("linear", ["a", "b"], False, MODEL, {"weight": np.zeros((2, 1024), "f4"), "bias": np.zeros(2, "f4")}).save(
        tmp_path
    )
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"weights\.safetensors: damaged"):
        Head.load(tmp_path)
