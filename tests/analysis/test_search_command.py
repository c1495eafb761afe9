"""`medimage index`, `search` and `evaluate search`, against a Triton in memory, on tables that `embed --to` made."""

import json

import nibabel
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from medimage_analysis.table import to_column, write
from medimage_client.cli.group import medimage
from tests.analysis.tables import MODEL, make_table
from tests.client.fake_triton import FakeTriton, grey, unit_vectors


@pytest.fixture
def triton():
    return FakeTriton()


@pytest.fixture
def run(triton, monkeypatch, tmp_path):
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: triton)
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(medimage, [*map(str, args)])


@pytest.fixture
def images(tmp_path):
    """Files 0.png to 5.png, of which the n-th is answered by the unit vector 40 n."""
    (tmp_path / "images").mkdir()
    for n in range(6):
        Image.fromarray(grey(40 * n)).save(tmp_path / "images" / f"{n}.png")
    return tmp_path / "images"


@pytest.fixture
def index(run, images):
    for command in ("embed images --to t", "index t --to i"):
        result = run(*command.split())
        assert result.exit_code == 0, result.output
    assert result.stdout.startswith("i: 6 images, copied in ") and result.stdout.endswith("search is exact\n")
    return images.parent / "i"


def test_an_image_finds_itself_and_a_text_what_is_like_it(run, index, images):
    lines = run("search", "i", "--image", images / "3.png", "-k", 2).stdout.splitlines()
    assert lines[0].split() == ["id", "distance"]
    assert lines[1].split() == ["images/3.png", "0.0000"] and lines[2].split()[1] == "1.0000"
    # a text of 80 characters is answered by the unit vector 80, as 2.png is
    found = json.loads(run("search", "i", "--text", "x" * 80, "-k", 1, "--json").stdout)
    assert [(row["id"], row["source"], row["distance"]) for row in found] == [("images/2.png", "images/2.png", 0.0)]


def test_an_id_needs_no_server_and_is_not_found_itself(run, index, triton):
    n_calls = len(triton.calls)
    found = json.loads(run("search", "i", "--id", "images/3.png", "--json", "--where", "id < 'images/5'").stdout)
    assert {row["id"] for row in found} == {f"images/{n}.png" for n in (0, 1, 2, 4)}
    assert len(triton.calls) == n_calls


def test_a_picture_shows_what_was_found_in_its_order(run, index, images):
    result = run("search", "i", "--image", images / "5.png", "-k", 6, "--picture", "found.png")
    assert result.exit_code == 0 and not result.stderr
    picture = Image.open("found.png")
    first, *_ = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert first == "images/5.png"
    assert picture.size == (1000, 460)  # five in a row, with captions
    assert picture.getpixel((100, 130)) == (200, 200, 200)  # the middle of 5.png
    (images / "5.png").unlink()
    result = run("search", "i", "--text", "x" * 200, "-k", 1, "--picture", "found.png")
    assert result.exit_code == 0
    assert result.stderr == "1 of 1 images cannot be read where the index says\n"


def test_a_server_with_another_model_is_refused_and_both_are_named(run, index, images, triton):
    triton.told["medimageinsight_image"]["precision"] = "int8"
    n_calls = len(triton.calls)
    for query in (["--image", images / "3.png"], ["--text", "a"]):
        result = run("search", "i", *query)
        assert result.exit_code == 1
        assert ", fp32, profile azure" in result.stderr and ", int8, profile azure" in result.stderr
        assert result.stderr.endswith("vectors of two models cannot be compared\n")
    assert len(triton.calls) == n_calls  # before it embeds


def test_dicom_files_are_shown_as_those_of_the_table_were(run, images, triton, monkeypatch):
    run("embed", "images", "--to", "t", "--dicom-window=-160,240")
    run("index", "t", "--to", "i")
    seen = []
    embed_items = "medimage_client.cli.progress.embed_items"
    from medimage_client.cli import progress

    real = progress.embed_items

    async def noted(client, items, resize, dicom_window):
        seen.append(dicom_window)
        return await real(client, items, resize, dicom_window)

    monkeypatch.setattr(embed_items, noted)
    assert run("search", "i", "--image", images / "3.png").exit_code == 0
    assert seen == [(-160.0, 240.0)]


def test_texts_of_a_table_are_found(run, tmp_path):
    texts = ["knee", "chest", "knee"]
    vectors = unit_vectors([4, 5, 4])
    rows = {"id": ["a", "b", "c"], "text": texts, "text_features": to_column(vectors)}
    write(tmp_path / "t", pa.table(rows | {"image_features": to_column(unit_vectors([4, 5, 6]))}), MODEL)
    run("index", "t", "--to", "i")
    lines = run("search", "i", "--id", "a", "--among", "texts").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["text", "id", "distance"],
        ["knee", "c", "0.0000"],
        ["chest", "b", "1.0000"],
    ]


@pytest.fixture
def volumes(tmp_path):
    """Four of three slices, which the Triton in memory tells apart by their noise."""
    (tmp_path / "volumes").mkdir()
    for n in range(4):
        data = np.random.default_rng(n).uniform(0, 255, (5, 5, 3)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "volumes" / f"{n}.nii.gz")
    return tmp_path / "volumes"


def test_a_volume_finds_itself_among_volumes(run, volumes):
    result = run("embed", *sorted(volumes.iterdir()), "--to", "t")
    assert result.exit_code == 0, result.output
    result = run("index", "t", "--to", "i", "--group-by", "source", "--pool", "max")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("i: 4 groups by source, copied in ")
    (found,) = json.loads(run("search", "i", "--image", volumes / "2.nii.gz", "-k", 1, "--json").stdout)
    assert (found["id"], found["n_images"], found["distance"]) == (
        str(volumes / "2.nii.gz"),
        3,
        pytest.approx(0, abs=1e-6),
    )
    # of single images it is asked for with three
    run("index", "t", "--to", "j")
    result = run("search", "j", "--image", volumes / "2.nii.gz")
    assert result.stderr.startswith("Error: the query has 3 images, and j is of single images")


def test_scores_are_printed_by_label_and_macro(run, tmp_path):
    make_table(
        tmp_path / "t", [0, 1, 30, 50, 90], label=["a", "a", "b", "a", None], study_uid=["s", "s", "t", "u", "v"]
    )
    run("index", "t", "--to", "i")
    result = run("evaluate", "search", "i", "--labels", "label")
    head, a, macro = [line.split() for line in result.stdout.splitlines()]
    assert head == ["label", "queries", "P@1", "P@3", "P@5", "P@10", "mAP"]
    # each finds b first; from 0 and 1 the one of study u then, from there the two of study s
    assert a == ["a", "3", "0.000", "0.444", "0.267", "0.133", f"{(1 / 2 + 1 / 2 + (1 / 2 + 2 / 3) / 2) / 3:.3f}"]
    assert macro == ["macro", *a[1:]]
    assert result.stderr.splitlines() == [
        "1 of 5 rows have no label",
        "1 of 5 rows were asked for and left out: no other study has their label",
    ]
    scores = json.loads(run("evaluate", "search", "i", "--labels", "label", "--json").stdout)
    assert (scores["labels"]["a"]["queries"], scores["without_match"], scores["unlabelled"]) == (3, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search i", "give --image, --text or --id, one of them"),
        ("search i --text a --id b", "give --image, --text or --id, one of them"),
        ("search i --id images/9.png", "i: no id 'images/9.png'"),
        ("search i --id images/3.png --label modality", "i: no column 'modality'; it has id, source"),
        ("search i --id images/3.png --picture found.jpg", "found.jpg is not a .png"),
        ("search i --id images/3.png --picture nowhere/found.png", "folder nowhere does not exist"),
        ("search nowhere --id a", "nowhere: no index; expected what `medimage index TABLE --to nowhere` writes"),
        ("search i --image images", "the query has 6 images, and i is of single images"),
        ("search i --text a --url http://localhost/score", "a table names its model, which a scoring URI does not"),
        ("index t --to i", "i: there is an index already; --replace makes it anew"),
        ("index t --to j --pool max", "--pool needs --group-by"),
        ("index t --to j --kind ivf-pq", "6 vectors are too few for an IVF-PQ index, which needs 256; leave it exact"),
        ("index i --to j", "i: no table; expected a folder with part-00000.parquet"),
        ("evaluate search i --labels modality", "i: no column 'modality'"),
        ("evaluate search i --labels text", "i: column 'text' has no labels"),
        ("evaluate search i --labels id", "i, column 'id': no label is that of two studies"),
    ],
)
def test_what_is_wrong_is_one_line(run, index, arguments, message):
    result = run(*arguments.split())
    assert result.exit_code in (1, 2) and message in result.stderr.splitlines()[-1]
    assert not (index.parent / "j").exists() and not (index.parent / "nowhere").exists()


def test_a_text_is_like_no_standard_deviation(run, tmp_path):
    make_table(tmp_path / "t", [0, 10], study_uid=["a", "a"])
    assert run("index", "t", "--to", "i", "--group-by", "study", "--pool", "std").exit_code == 0
    result = run("search", "i", "--text", "a")
    assert result.stderr == "Error: i: is of standard deviations, which no text is like; make one with --pool mean\n"
