"""`medimage outliers` on tables whose distances are known, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from medimage_client.cli.group import medimage
from medimage_client.cli.table import in_one_line
from tests.analysis.tables import MODEL, chord, make_table


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command beside two tables: `some` at 5, 12, 90 and -4 degrees, and the reference at 0, 10, 20, 30."""
    monkeypatch.chdir(tmp_path)
    make_table(
        tmp_path / "some",
        [5, 12, 90, -4],
        prefix="s",
        pictures=tmp_path / "pictures",
        kind=["hand", "hand", "shoe", "hand"],
        study_uid=["1", "1", "2", "3"],
        site=["x", "y", "y", "y"],
    )
    make_table(tmp_path / "reference", [0, 10, 20, 30], prefix="r", study_uid=["8", "8", "9", "9"])

    def run(*args):
        return CliRunner().invoke(medimage, ["outliers", *map(str, args)])

    return run


def test_distances_are_told_the_most_unusual_first(run):
    found = json.loads(run("some", "--reference", "reference", "--json").stdout)
    assert [row["id"] for row in found["rows"]] == ["s2", "s3", "s0", "s1"]
    expected = [(chord(60) + chord(70)) / 2, (chord(4) + chord(14)) / 2, chord(5), (chord(2) + chord(8)) / 2]
    assert [row["distance"] for row in found["rows"]] == pytest.approx(expected, rel=1e-5)
    assert [row["nearest"] for row in found["rows"]][:2] == ["r3", "r0"]
    # each of the reference from the rest of it: 10 and 20 degrees at the ends, 10 and 10 between them
    own = np.quantile([(chord(10) + chord(20)) / 2, chord(10), chord(10), (chord(10) + chord(20)) / 2], 0.95)
    assert found["threshold"] == pytest.approx(own, rel=1e-5)
    assert [row["outlier"] for row in found["rows"]] == [True, False, False, False]
    assert (found["n_outliers"], found["n_reference"]) == (1, 4)


def test_table_is_printed_with_the_threshold(run):
    lines = run("some", "--reference", "reference", "-k", 1, "--top", 2, "--quantile", 0.5).stdout.splitlines()
    assert lines[0] == "1 of 4 are outliers, by 4 of the reference"
    assert lines[1] == f"threshold {chord(10):.4f}, as far as 0.5 of the reference is from the rest of it"
    assert lines[3].split() == ["id", "distance", "outlier"]
    assert [line.split()[0] for line in lines[4:]] == ["s2", "s0"] or [line.split()[0] for line in lines[4:]] == [
        "s2",
        "s1",
    ]


def test_labels_give_a_roc_and_its_threshold(run):
    options = ["--label", "kind", "--usual", "hand", "--roc", "roc.png", "--picture", "odd.png", "--top", 3]
    found = json.loads(run("some", "--reference", "reference", *options, "--json").stdout)
    assert (found["auc"], found["sensitivity"], found["specificity"]) == (1, 1, 1)
    between = ((chord(60) + chord(70)) / 2 + (chord(4) + chord(14)) / 2) / 2
    assert found["threshold"] == pytest.approx(between, rel=1e-5)
    with Image.open("roc.png") as roc, Image.open("odd.png") as picture:
        assert roc.width > 900
        assert picture.size == (3 * 200, 230)
        tiles = [np.asarray(picture.convert("L"))[30 + 100, column] for column in (100, 300, 500)]
    assert tiles == [2, 3, 0]  # each picture has the grey of its row


def test_threshold_of_a_quantile_is_kept_with_labels(run):
    options = ["--label", "kind", "--usual", "hand", "--quantile", 0.95, "--json"]
    assert json.loads(run("some", "--reference", "reference", *options).stdout)["threshold"] < 0.27


@pytest.mark.parametrize("name", ["found.csv", "found.parquet"])
def test_file_has_every_row(run, name):
    result = run("some", "--reference", "reference", "--to", name, "--label", "kind", "--usual", "hand", "--top", 1)
    assert result.exit_code == 0
    table = pyarrow.csv.read_csv(name) if name.endswith("csv") else pq.read_table(name)
    assert table.column_names == ["id", "distance", "outlier", "nearest", "label"]
    assert table["id"].to_pylist()[:2] == ["s2", "s3"]
    assert table["outlier"].to_pylist() == [True, False, False, False]


def test_studies_are_compared_by_statistics_of_their_images(run):
    found = json.loads(run("some", "--reference", "reference", "--group-by", "study", "-k", 1, "--json").stdout)

    def seven(*degrees):
        x = np.array([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in degrees])
        spread = x.std(axis=0, ddof=1) if len(x) > 1 else 0 * x[0]
        return np.concatenate([x.mean(0), spread, x.min(0), *np.percentile(x, [25, 50, 75], axis=0), x.max(0)])

    reference = [seven(0, 10), seven(20, 30)]
    expected = {
        name: min(np.linalg.norm(seven(*angles) - other) for other in reference)
        for name, angles in {"1": (5, 12), "2": (90,), "3": (-4,)}.items()
    }
    assert {row["id"]: row["distance"] for row in found["rows"]} == pytest.approx(expected, rel=1e-4)


def test_table_may_be_its_own_reference(run):
    found = json.loads(run("some", "--reference", "some", "-k", 1, "--json").stdout)
    assert found["rows"][0]["id"] == "s2"
    assert found["rows"][0]["distance"] == pytest.approx(chord(78), rel=1e-5)


def test_images_that_are_not_there_are_counted_and_drawn_dark(run, tmp_path):
    (tmp_path / "pictures" / "s2.png").unlink()
    (tmp_path / "pictures" / "s0.png").write_text("no image")
    result = run("some", "--reference", "reference", "--picture", "odd.png")
    assert result.exit_code == 0
    assert result.stderr == "2 of 4 images of the picture cannot be read where the table says\n"
    with Image.open("odd.png") as picture:
        assert np.asarray(picture.convert("L"))[230 - 10, 10] == 0x22


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--group-by", "patient"], "some: no column 'patient'; it has id, source, study_uid"),
        (["--group-by", "series"], "some, id 's0': 'series_uid' is empty; expected a value in each row"),
        (["--label", "age", "--usual", "1"], "some: no column 'age'; it has id, source"),
        (["--label", "kind"], "--label and --usual go together"),
        (["--roc", "r.png"], "--roc needs --label and --usual"),
        (
            ["--label", "kind", "--usual", "foot"],
            "some, column 'kind': no row has 'foot', which --usual names; there are 'hand', 'shoe'",
        ),
        (["--label", "kind", "--usual", "hand", "--usual", "shoe"], "column 'kind': all rows are usual by --usual"),
        (
            ["--label", "site", "--usual", "x", "--group-by", "study"],
            "some, column 'site': '1' has both 'x' and 'y'; expected one label in all rows of a group",
        ),
        (["-k", "5"], "the reference has 4 to compare with; 5 nearest ones need as many"),
        (["--to", "found.txt"], "found.txt is not one of .csv, .parquet"),
        (["--picture", "none/p.png"], "folder none does not exist"),
        (["--roc", "p.png", "--picture", "p.png"], "--roc and --picture name the same file"),
        (
            ["--group-by", "image_features"],
            "[1024]; expected texts or numbers",
        ),
    ],
)
def test_bad_options_end_with_one_line(run, args, message):
    result = run("some", "--reference", "reference", *args)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]


def test_names_of_files_do_not_move_the_cursor():
    assert in_one_line("a\nb\x1b[2J.png") == "a b [2J.png"


def test_tables_of_two_models_are_refused(run, tmp_path):
    make_table(tmp_path / "other", [1, 2, 3], model=replace(MODEL, precision="int8"))
    result = run("some", "--reference", "other")
    assert result.exit_code == 1
    assert "fp32" in result.stderr and "int8" in result.stderr and len(result.stderr.splitlines()) == 1


def test_vector_that_is_not_finite_is_named(run, tmp_path):
    make_table(tmp_path / "bad", [1, float("nan"), 3], prefix="b")
    result = run("some", "--reference", "bad")
    assert result.stderr == "Error: bad, id 'b1': image_features has numbers that are not finite; embed it anew\n"


def test_table_without_rows_is_refused(run, tmp_path):
    make_table(tmp_path / "empty", [])
    assert run("some", "--reference", "empty").stderr == "Error: empty has no rows\n"
    assert run("empty", "--reference", "some").stderr == "Error: empty has no rows\n"
