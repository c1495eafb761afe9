"""Azure's TSV files and tables are read, and bad ones are refused with the file and the row."""

import base64
import csv
import json

import pandas as pd
import pytest

from medimage_client.errors import InvalidInput
from medimage_training.config import Files
from medimage_training.examples import check_apart, read_examples, read_labels, warnings_of
from medimage_training.images import ServedImages, digests_of

LABELS = ["endoscopy upper ulcer", "endoscopy lower polyps"]
NAMES = ["Ulcer/a.jpg", "Polyps, raised/b 1.jpg", 'Polyps/"c".jpg']
CONTENTS = [b"first", b"second", b"third"]


def said(number, text):
    return json.dumps({"class_id": number, "class_name": text, "source": "gastrovision", "task": "classification"})


@pytest.fixture
def tsv(tmp_path):
    """Written as Microsoft's notebook writes them, with pandas."""
    images = pd.DataFrame({"name": NAMES, "image": [base64.b64encode(content).decode() for content in CONTENTS]})
    images.to_csv(tmp_path / "images.tsv", sep="\t", index=False, header=False)
    texts = pd.DataFrame({"name": NAMES, "text": [said(0, LABELS[0]), said(1, LABELS[1]), said(1, LABELS[1])]})
    texts.to_csv(tmp_path / "texts.tsv", sep="\t", index=False, header=False, quoting=csv.QUOTE_NONE)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return Files(image_tsv=tmp_path / "images.tsv", text_tsv=tmp_path / "texts.tsv")


def test_azures_files_are_read_as_they_are(tsv, tmp_path):
    examples = read_examples(tsv, read_labels(tmp_path / "labels.txt"), "training")
    assert [example.id for example in examples] == NAMES
    assert [example.label for example in examples] == [LABELS[0], LABELS[1], LABELS[1]]
    assert [example.read() for example in examples] == CONTENTS


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("texts.tsv", [f"a\t{said(0, 'x')}", "b\t{"], r"texts.tsv, row 2: .*JSON"),
        ("texts.tsv", [f"a\t{said(2, 'x')}"], "row 1: class_id is 2; the label file has the ids 0 to 1"),
        ("texts.tsv", [f"a\t{said(1, LABELS[0])}"], "class_id is 1, which the label file calls .* its id 0"),
        ("texts.tsv", [f"{NAMES[0]}\t{said(0, 'x')}"] * 2, "rows 1 and 2: have the same id 'Ulcer/a.jpg'"),
        ("texts.tsv", [f"{NAMES[0]}\t{said(0, 'x')}"], "images.tsv, row 2: the image has no row in .* as 1 more"),
        ("images.tsv", [f"{NAMES[0]}\tAAAA"], "texts.tsv, row 2: the text has no image in .* as 1 more have none"),
        ("images.tsv", ["a\tAAAA", "a\tAAAA"], "images.tsv, rows 1 and 2: have the same id 'a'"),
        ("images.tsv", ["a AAAA"], "images.tsv, row 1: has one column; expected an id, a tab and base64"),
        ("images.tsv", [], "images.tsv is empty; expected a row for each image"),
    ],
)
def test_bad_row_is_named(tsv, tmp_path, file, lines, message):
    (tmp_path / file).write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InvalidInput, match=message):
        read_examples(tsv, LABELS, "training")


def test_broken_base64_is_found_by_its_row_and_the_others_stay(tsv, tmp_path):
    path = tmp_path / "images.tsv"
    path.write_text(path.read_text().replace(base64.b64encode(CONTENTS[1]).decode(), "c2Vjb25k!"))
    found = digests_of(ServedImages((64, 64)), read_examples(tsv, LABELS, "training"))
    assert str(found[1]) == f"{path}, row 2: the second column is not base64 of an image"
    assert str(found[0]).startswith(f"{path}, row 1: ")  # base64, and no image


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no labels"), ("a\n\nb\n", "row 2: is empty"), ("a\nb\na\n", "rows 1 and 3: are the same label")],
)
def test_bad_label_file_is_refused(tmp_path, text, message):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        read_labels(tmp_path / "labels.txt")


def table(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return read_examples(Files(table=path), None, "training")


def test_table_gives_paths_in_its_folder_and_texts_of_their_own(tmp_path):
    first, second = table(
        tmp_path / "train.csv",
        [{"image": "a.png", "label": "x", "text": "an x"}, {"image": "sub/b.png", "label": "y", "text": "a y"}],
    )
    assert (first.file, first.label, first.text) == (tmp_path / "a.png", "x", "an x")
    assert (second.file, second.place) == (tmp_path / "sub/b.png", f"{tmp_path / 'train.csv'}, row 2")


def test_patient_in_two_sets_is_refused(tmp_path):
    training = table(tmp_path / "train.csv", [{"image": "a.png", "label": "x", "patient": "7"}])
    other = table(tmp_path / "new.csv", [{"image": "b.png", "label": "x", "patient": "7"}])
    with pytest.raises(
        InvalidInput, match=r"new.csv, row 1: its patient is in the training set, too \(.*train.csv, row 1\)"
    ):
        check_apart(training, other, "new")
    with pytest.raises(InvalidInput, match="its image is in the training set"):
        check_apart(training, training, "new")


def test_labels_without_images_and_classes_of_one_are_said(tmp_path):
    rows = [{"image": f"{number}.png", "label": label} for number, label in enumerate("xxy")]
    unseen, single = warnings_of(table(tmp_path / "train.csv", rows), ["x", "y", "z"])
    assert unseen.startswith("1 of 3 labels have no training image, the first is 'z'")
    assert single.startswith("1 of 2 labels have one training image, the first is 'y'")
