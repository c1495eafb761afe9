"""`medimage classify` with prompts, files of predictions and a truth, and `medimage evaluate classification`."""

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medimage_client.cli.group import medimage
from medimage_client.labels.pictures import confusion_matrix
from medimage_client.labels.predictions import read_predictions
from tests.client.fake_triton import values_of

LABELS = ["--label", "five5", "--label", "seven!!"]  # answered by the unit vectors 5 and 7


@pytest.fixture
def run(triton, monkeypatch, tmp_path, grey):
    """Run the command against the Triton in memory, beside images of which a to d are answered by the unit vector 5, e
    and f by 7."""
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: triton)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, value in zip("abcdef", (5, 5, 5, 5, 7, 7), strict=True):
        Image.fromarray(grey(value)).save(f"images/{name}.png")
    (tmp_path / "truth.csv").write_text(
        "id,label\na.png,five5\nb.png,five5\nc.png,five5\nd.png,seven!!\ne.png,seven!!\nf.png,seven!!\ng.png,five5\n"
    )

    def run(*args):
        return CliRunner().invoke(medimage, [str(arg) for arg in args])

    return run


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.parquet"])
def test_classify_writes_predictions_that_evaluate_reads(run, name):
    result = run("classify", "images", *LABELS, "--output", name)
    assert (result.exit_code, result.output) == (0, "")
    assert read_predictions_of(name) == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 1, "f": 1}
    scores = json.loads(run("evaluate", "classification", name, "--truth", "truth.csv", "--json").stdout)
    # d is seven, and five was answered; g has no prediction
    assert scores["confusion"] == [[3, 0], [1, 2]]
    assert (scores["n_images"], scores["n_without_prediction"]) == (6, 1)
    assert scores["accuracy"]["value"] == pytest.approx(5 / 6)
    assert scores["accuracy"]["low"] < 5 / 6 < scores["accuracy"]["high"]
    assert scores["mauc"]["value"] == pytest.approx((1 + 2 / 3) / 2)  # of each label 9 pairs, of which 3 are equal
    of_seven = scores["labels"]["seven!!"]
    assert of_seven["n_images"] == 3
    assert of_seven["recall"] == {"value": pytest.approx(2 / 3), "low": 0, "high": 1}  # of three images


def read_predictions_of(name):
    found = read_predictions(Path(name))
    return {path.removeprefix("images/")[0]: answer for path, answer in zip(found.ids, found.answers, strict=True)}


def test_classify_with_a_truth_prints_what_evaluate_prints(run):
    direct = run("classify", "images", *LABELS, "--truth", "truth.csv", "--output", "predictions.csv")
    later = run("evaluate", "classification", "predictions.csv", "--truth", "truth.csv")
    assert direct.stdout == later.stdout
    assert direct.exit_code == later.exit_code == 0
    lines = direct.stdout.splitlines()
    assert lines[0] == (
        "6 images, 2 labels; 1 more images of the truth have no prediction; in brackets 95 % intervals of 1000 "
        "bootstrap samples"
    )
    assert lines[2].split()[:2] == ["accuracy", "0.833"]
    plain = run("classify", "images", *LABELS, "--truth", "truth.csv", "--bootstrap", 0).stdout.splitlines()
    assert [line.split() for line in plain[2:]] == [
        ["accuracy", "0.833"],
        ["balanced", "accuracy", "0.833"],
        ["mAUC", "0.833"],
        ["macro", "F1", "0.829"],
        ["MCC", "0.707"],
        [],
        ["label", "images", "precision", "recall", "F1", "AUC", "MCC"],
        ["five5", "3", "0.750", "1.000", "0.857", "0.833", "0.707"],
        ["seven!!", "3", "1.000", "0.667", "0.800", "0.833", "0.707"],
    ]


def test_prompts_of_a_label_come_from_a_table_and_templates(run, triton, tmp_path):
    (tmp_path / "labels.csv").write_text("label,prompt\nheart,abc\nheart,abcdef\nlung,abcd\n")
    options = ["--labels", "labels.csv", "--template", "{}", "--template", "a {}", "--json"]
    result = run("classify", "images/a.png", *options)
    (row,) = json.loads(result.stdout)
    assert row["scores"].keys() == {"heart", "lung"}
    (texts,) = [values_of(call) for call in triton.calls if "text" in call.inputs]
    assert texts == [b"abc", b"abcdef", b"a abc", b"a abcdef", b"abcd", b"a abcd"]
    # image 5; the prompts of heart are 3, 6, 5, 8 letters long, of which one is 5: the mean has a cosine of 1/2 with it
    assert row["scores"]["heart"] == pytest.approx(1, abs=1e-6)


def test_pictures_of_a_confusion_matrix_and_of_roc_curves(run):
    run("classify", "images", *LABELS, "--output", "p.csv")
    pictures = ["--confusion", "c.png", "--roc", "r.png"]
    assert run("evaluate", "classification", "p.csv", "--truth", "truth.csv", *pictures).exit_code == 0
    for name, width in (("c.png", 300), ("r.png", 900)):
        with Image.open(name) as picture:
            assert picture.width > width
            assert np.asarray(picture.convert("L")).min() < 128, name  # something is drawn


def test_confusion_matrix_is_blue_where_images_are(run):
    labels = ["a", "b", "$c$", "_d"]  # the last two as they stand, not as a formula or hidden
    picture = Image.open(BytesIO(confusion_matrix(labels, 7 * np.eye(4, dtype=int)))).convert("RGB")
    picture = np.asarray(picture).astype(int)
    blue = picture[..., 2] - picture[..., 0] > 60
    rows, columns = np.nonzero(blue)
    left, top, side = columns.min(), rows.min(), (columns.max() - columns.min() + 1) / 4
    centres = [int((i + 0.2) * side) for i in range(4)]
    grid = blue[np.ix_([top + c for c in centres], [left + c for c in centres])]
    assert np.array_equal(grid, np.eye(4, dtype=bool))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--truth", "none.csv"], "Invalid value for '--truth': File 'none.csv' does not exist."),
        (["--truth", "unknown.csv"], "unknown.csv, row 1: 'label' is 'nine', which is none of the 2 labels"),
        (["--truth", "short.csv"], "short.csv has no row for 'b.png', nor for 4 more of 6 images"),
        (["--truth", "one.csv"], "one image alone has the label 'seven!!' in the truth"),
        (["--truth", "all5.csv"], "no image has the label 'seven!!' in the truth"),
        (["--output", "p.txt"], "p.txt is not one of .csv, .parquet"),
        (["--output", "none/p.csv"], "folder none does not exist"),
        (["--output", "p.csv", "--json"], "--output takes the place of what --json prints; leave one of them out"),
        (["--output", "p.csv", "--label", "id"], "the label 'id' is the name of another column"),
    ],
)
def test_bad_options_are_refused_before_any_work(run, triton, tmp_path, args, message):
    (tmp_path / "unknown.csv").write_text("id,label\na.png,nine\n")
    (tmp_path / "short.csv").write_text("id,label\na.png,five5\n")
    (tmp_path / "one.csv").write_text("id,label\n" + "".join(f"{n}.png,five5\n" for n in "abcde") + "f.png,seven!!\n")
    (tmp_path / "all5.csv").write_text("id,label\n" + "".join(f"{n}.png,five5\n" for n in "abcdef"))
    result = run("classify", "images", *LABELS, *args)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]
    assert triton.calls == []


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--confusion", "c.jpg", "c.jpg is not .png"),
        ("--roc", "none/r.png", "folder none does not exist"),
    ],
)
def test_bad_pictures_are_refused(run, option, value, message):
    run("classify", "images", *LABELS, "--output", "p.csv")
    result = run("evaluate", "classification", "p.csv", "--truth", "truth.csv", option, value)
    assert message in result.stderr.splitlines()[-1]
    assert result.exit_code == 2


def test_two_pictures_in_one_file_are_refused(run):
    run("classify", "images", *LABELS, "--output", "p.csv")
    result = run(
        "evaluate", "classification", "p.csv", "--truth", "truth.csv", "--confusion", "a.png", "--roc", "a.png"
    )
    assert result.exit_code == 2 and "--confusion and --roc name the same file" in result.stderr


def test_picture_without_matplotlib_names_the_extra(run, monkeypatch):
    run("classify", "images", *LABELS, "--output", "p.csv")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("evaluate", "classification", "p.csv", "--truth", "truth.csv", "--roc", "r.png")
    assert result.stderr == "Error: a picture needs matplotlib: pip install 'medimage-triton[evaluate]'\n"


def test_refused_image_is_left_out_of_the_scores_and_reported(run, tmp_path):
    (tmp_path / "images" / "h.png").touch()
    with (tmp_path / "truth.csv").open("a") as truth:
        truth.write("h.png,five5\n")
    result = run("classify", "images", *LABELS, "--truth", "truth.csv")
    assert result.exit_code == 1
    assert result.stdout.startswith("6 images, 2 labels; 2 more images of the truth have no prediction")
    assert result.stderr.endswith("Error: 1 of 7 images are left out\n")
