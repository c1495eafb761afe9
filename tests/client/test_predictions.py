"""Tables of predictions and of the truth: what is written is read again, and what cannot be read is named."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from medimage_client import InvalidInput, MissingExtra
from medimage_client.labels.predictions import (
    check_labels,
    predictions_of,
    read_predictions,
    read_truth,
    render_predictions,
    truth_of,
)

IDS = ["a.png", 'b, "two".png', "ü.png"]
LABELS = ["x-ray chest, normal", "MR brain"]
PROBABILITIES = np.array([[0.1, 0.9], [2 / 3, 1 / 3], [1e-9, 1 - 1e-7]], np.float32)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predictions_are_read_as_they_were_written(tmp_path, suffix):
    path = tmp_path / f"predictions{suffix}"
    path.write_bytes(render_predictions(path, predictions_of(IDS, LABELS, PROBABILITIES)))
    found = read_predictions(path)
    assert (found.ids, found.labels, found.answers) == (IDS, LABELS, [1, 0, 1])
    assert np.array_equal(found.probabilities.astype(np.float32), PROBABILITIES)


def test_other_programs_read_the_tables(tmp_path):
    predictions = predictions_of(IDS, LABELS, PROBABILITIES)
    for name in ("p.csv", "p.parquet"):
        (tmp_path / name).write_bytes(render_predictions(tmp_path / name, predictions))
    parquet, text = pq.read_table(tmp_path / "p.parquet"), pyarrow.csv.read_csv(tmp_path / "p.csv")
    assert parquet.column_names == text.column_names == ["id", "predicted", *LABELS]
    assert parquet["id"].to_pylist() == text["id"].to_pylist() == IDS
    assert parquet["MR brain"].type == pa.float32()
    assert text["MR brain"].cast(pa.float32()).equals(parquet["MR brain"])


def test_answer_is_as_given_or_the_label_of_the_highest_probability(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("\ufeffid,predicted,a,b\n1,a,0.2,0.8\n2,b,0.2,0.8\n")  # as a spreadsheet writes UTF-8
    assert read_predictions(path).answers == [0, 1]
    path.write_text("id,a,b\n1,0.2,0.8\n2,0.9,0.1\n")
    assert read_predictions(path).answers == [1, 0]


def test_labels_of_the_truth_may_be_numbers(tmp_path):
    path = tmp_path / "truth.parquet"
    pq.write_table(pa.table({"id": [7, 8], "label": [1, 0], "age": [40, 50]}), path)
    assert read_truth(path, ["0", "1"]) == {"7": 1, "8": 0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "id", "p.txt is not one of .csv, .parquet"),
        ("p.csv", "", "p.csv has no column 'id'; it has no columns"),
        ("p.csv", "name,a,b\n1,0,1\n", "p.csv has no column 'id'; it has 'name', 'a', 'b'"),
        ("p.csv", "id,a,b\n", "p.csv has no rows"),
        (
            "p.csv",
            "id,a\n1,0\n",
            "p.csv has too few labels, 1; expected a column for each, at least two",
        ),
        ("p.csv", "id,a,a\n1,0,1\n", "p.csv has the column 'a' twice; give each column another name"),
        ("p.csv", "id,a,b\n1,0,1\n2,0,1\n1,1,0\n", "p.csv, rows 1 and 3: have the same id '1'; give each image once"),
        ("p.csv", "id,a,b\n1,0,1\n,1,0\n", "p.csv, row 2: 'id' is empty"),
        ("p.csv", "id,a,b\n1,0,1\n2,0\n", "p.csv, row 2: has 2 cells; the first line has 3"),
        (
            "p.csv",
            "id,a,b\n1,0,1\n2,NaN,1\n",
            "p.csv, row 2, column 'a': is not a finite number; expected the probability of a label in every column but "
            "'id' and 'predicted'",
        ),
        (
            "p.csv",
            "id,a,b,note\n1,0,1,good\n",
            "p.csv, row 1, column 'note': is not a finite number; expected the probability of a label in every column "
            "but 'id' and 'predicted'",
        ),
        (
            "p.csv",
            "id,predicted,a,b\n1,c,0,1\n",
            "p.csv, row 1: 'predicted' is 'c', which is none of the 2 labels; they are 'a', 'b'",
        ),
        ("p.csv", b"id,a,b\n\xff,0,1\n", "p.csv is not UTF-8 text; save it as CSV UTF-8"),
        ("p.csv", 'id,a,b\n"1,0,1\n', "p.csv is not CSV: unexpected end of data"),
        ("p.parquet", "id,a,b\n", "p.parquet is not a Parquet file, or not a whole one"),
    ],
)
def test_predictions_that_cannot_be_read_are_named(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInput) as refused:
        read_predictions(type(tmp_path)(name))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,class\n1,a\n", "t.csv has no column 'label'; it has 'id', 'class'"),
        ("id,label\n1,a\n1,b\n", "t.csv, rows 1 and 2: have the same id '1'; give each image once"),
        ("id,label\n1,a\n2,\n", "t.csv, row 2: 'label' is empty"),
        ("id,label\n1,c\n", "t.csv, row 1: 'label' is 'c', which is none of the 2 labels; they are 'a', 'b'"),
    ],
)
def test_truth_that_cannot_be_read_is_named(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = type(tmp_path)("t.csv")
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        read_truth(path, ["a", "b"])
    assert str(refused.value) == message


def test_empty_cell_of_parquet_is_named(tmp_path):
    for label in (None, float("nan")):
        pq.write_table(pa.table({"id": ["1"], "label": pa.array([label], pa.float64())}), tmp_path / "t.parquet")
        with pytest.raises(InvalidInput, match="row 1: 'label' is empty"):
            read_truth(tmp_path / "t.parquet", ["a", "b"])


def test_folders_do_not_count_where_the_truth_has_names_of_files(tmp_path):
    path = tmp_path / "t.csv"
    assert truth_of(["x/a.png", "b.png"], {"a.png": 1, "b.png": 0, "c.png": 1}, path) == [1, 0]
    with pytest.raises(InvalidInput, match=r"names 'a.png', a name of two images; give ids with their folders"):
        truth_of(["x/a.png", "y/a.png"], {"a.png": 1}, path)
    assert truth_of(["x/a.png", "y/a.png"], {"x/a.png": 1, "y/a.png": 0}, path) == [1, 0]


def test_images_without_truth_are_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"has no row for 'x/b.png', nor for 1 more of 3 images; add them, or leave"):
        truth_of(["x/a.png", "x/b.png", "c.png"], {"x/a.png": 0}, tmp_path / "t.csv")


def test_label_with_the_name_of_another_column_is_refused():
    with pytest.raises(InvalidInput, match="the label 'id' is the name of another column"):
        check_labels(["a", "id"])


def test_missing_pyarrow_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"Parquet needs pyarrow: pip install 'medimage-triton\[parquet\]'"):
        read_predictions(tmp_path / "p.parquet")
