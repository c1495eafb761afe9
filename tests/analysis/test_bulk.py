"""`medimage embed --to`, against a Triton in memory: what is in the table, and that a run goes on where it ended."""

import base64
import csv
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from medimage_analysis import bulk, throttle
from medimage_analysis.table import Table
from medimage_client.cli.group import medimage
from medimage_client.errors import ServerError, TransportError, Unavailable
from tests.analysis.conftest import png
from tests.client.dicom_files import RAMP, dicom, file_of
from tests.client.dicom_studies import radiograph, text_object, uid
from tests.client.fake_triton import FakeTriton, unit_vectors, values_of
from tests.client.http_server import serving
from tests.client.stub_archive import Handler, StubArchive


@pytest.fixture
def triton():
    return FakeTriton()


@pytest.fixture
def run(triton, monkeypatch, tmp_path):
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: triton)
    monkeypatch.setattr("medimage_client.wire.retries.FIRST_DELAY_S", 0.001)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        return CliRunner().invoke(medimage, ["embed", *map(str, args)])

    return run


def vectors_by_id(table) -> dict[str, int]:
    opened = Table.open(table)
    return dict(zip(opened.read(["id"])["id"].to_pylist(), opened.vectors().argmax(axis=1).tolist(), strict=True))


EXPECTED = {f"images/{n}.png": 10 + n for n in range(9)}


def failures(table) -> dict[str, str]:
    rows = pq.read_table(f"{table}.run/failures.parquet").to_pylist()
    return {row["id"]: row["reason"] for row in rows}


def test_a_folder_becomes_shards_in_its_order(run, images):
    result = run("images", "--to", "t", "--shard-size", 4)
    assert result.exit_code == 0, result.output
    assert "9 of 9 images" in result.stderr and "0 failed" in result.stderr
    assert sorted(path.name for path in (images.parent / "t").iterdir()) == [f"part-0000{n}.parquet" for n in range(3)]
    assert list(vectors_by_id("t").items()) == list(EXPECTED.items())
    table = Table.open("t")
    assert table.read()["source"].to_pylist() == list(EXPECTED)
    assert (table.model.name, table.model.precision, table.model.profile) == ("medimageinsight", "fp32", "azure")
    assert (table.model.checkpoint, table.model.windowing) == ("c0ffee" * 10, "file")


def test_a_second_start_embeds_only_what_is_missing(run, images, triton):
    run("images", "--to", "t", "--shard-size", 4)
    (images.parent / "t" / "part-00001.parquet").unlink()
    before = (images.parent / "t" / "part-00000.parquet").stat().st_mtime_ns
    triton.calls.clear()
    result = run("images", "--to", "t", "--shard-size", 4)
    assert result.exit_code == 0, result.output
    assert sum(len(values_of(call)) for call in triton.calls) == 4
    assert vectors_by_id("t") == EXPECTED
    assert (images.parent / "t" / "part-00000.parquet").stat().st_mtime_ns == before


def test_parts_are_embedded_by_themselves_and_make_one_table(run, images):
    for part in ("2/2", "1/2"):
        assert run("images", "--to", "t", "--shard-size", 2, "--shard", part).exit_code == 0
    assert vectors_by_id("t") == EXPECTED


def test_what_cannot_be_embedded_is_listed_and_can_be_tried_again(run, images):
    (images / "3.png").write_bytes(b"")
    (images / "5.dcm").write_bytes(bytes(128) + b"DICM, and no more")
    result = run("images", "--to", "t", "--shard-size", 4)
    assert result.exit_code == 0
    assert "2 images could not be embedded; t.run/failures.parquet says why" in result.stderr
    assert failures("t")["images/3.png"] == "is empty; expected the bytes of an image file"
    assert vectors_by_id("t") == {name: at for name, at in EXPECTED.items() if name != "images/3.png"}

    (images / "3.png").write_bytes(png(13))
    (images / "5.dcm").write_bytes(png(99))
    result = run("images", "--to", "t", "--shard-size", 4, "--retry-failed")
    assert result.exit_code == 0, result.output
    expected = sorted((EXPECTED | {"images/5.dcm": 99}).items())
    assert list(vectors_by_id("t").items()) == expected  # in the order of the plan
    assert not list((images.parent / "t.run/failures.parquet").iterdir())


def test_strict_ends_at_the_first_failure_and_keeps_what_is_finished(run, images):
    (images / "8.png").write_bytes(b"")
    result = run("images", "--to", "t", "--shard-size", 4, "--strict")
    assert result.exit_code == 1
    assert result.stderr.endswith("Error: images/8.png: is empty; expected the bytes of an image file\n")
    assert vectors_by_id("t").items() <= EXPECTED.items()


def test_azures_batch_format_with_other_columns(run, tmp_path):
    rows = [[base64.b64encode(png(n)).decode(), "x" * n, f"label {n}"] for n in (20, 0, 21)]
    rows[1][0] = "images are not like this"
    with (tmp_path / "batch.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "text", "label"], *rows])
    assert run("batch.csv", "--to", "t").exit_code == 0
    table = Table.open("t").read()
    assert table.column_names[-1] == "label" and table["label"].to_pylist() == ["label 20", "label 21"]
    assert table["id"].to_pylist() == ["batch.csv#0", "batch.csv#2"]
    np.testing.assert_array_equal(Table.open("t").vectors(), unit_vectors([20, 21]))
    np.testing.assert_array_equal(Table.open("t").vectors("text_features"), unit_vectors([20, 21]))
    assert "is a str of 24 characters" in failures("t")["batch.csv#1"]


def test_a_parquet_table_of_paths_keeps_types_and_ids(run, images, tmp_path):
    rows = {"file": ["0.png", "gone.png", "2.png"], "id": ["a", "b", "c"], "age": [1, 2, 3], "text": ["", None, "abc"]}
    pq.write_table(pa.table(rows), images / "list.parquet")
    assert run("images/list.parquet", "--image-column", "file", "--to", "t").exit_code == 0
    table = Table.open("t").read()
    assert table["id"].to_pylist() == ["a", "c"] and table["age"].to_pylist() == [1, 3]
    assert table["source"].to_pylist() == ["images/0.png", "images/2.png"]
    assert table["text"].to_pylist() == [None, "abc"] and table["text_features"].null_count == 1
    assert failures("t") == {"b": "cannot read images/gone.png: No such file or directory"}


def test_dicom_files_and_zips_of_them_have_their_uids(run, tmp_path):
    (tmp_path / "in").mkdir()
    dataset = dicom(RAMP)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.2", "1.2.3", "1.2.3.4"
    file = file_of(dataset)
    (tmp_path / "in" / "IM0001").write_bytes(file)
    with zipfile.ZipFile(tmp_path / "in" / "more.zip", "w") as archive:
        archive.writestr("b/IM2", file)
        archive.writestr("a.png", png(9))
        archive.writestr("notes.txt", "no image")
    assert run("in", "--to", "t").exit_code == 0
    table = Table.open("t").read(["id", "study_uid", "series_uid", "sop_uid"]).to_pylist()
    uids = {"study_uid": "1.2", "series_uid": "1.2.3", "sop_uid": "1.2.3.4"}
    assert table == [
        {"id": "in/IM0001", **uids},
        {"id": "in/more.zip/a.png", **dict.fromkeys(uids)},
        {"id": "in/more.zip/b/IM2", **uids},
    ]


def test_volumes_are_embedded_slice_by_slice(run, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    assert run("v.nii.gz", "--slices", "every=2", "--to", "t").exit_code == 0
    table = Table.open("t").read()
    assert table["id"].to_pylist() == ["v.nii.gz#0", "v.nii.gz#2", "v.nii.gz#4"]
    assert table["frame"].to_pylist() == [0, 2, 4] and set(table["source"].to_pylist()) == {"v.nii.gz"}


def test_a_server_that_goes_away_is_waited_for(run, images, triton):
    triton.failures = [TransportError("connection refused") for _ in range(5)]
    result = run("images", "--to", "t", "--shard-size", 4)
    assert result.exit_code == 0, result.output
    assert "connection refused; waiting for up to 600 s" in result.stderr
    assert vectors_by_id("t") == EXPECTED


def test_a_server_that_stays_away_ends_the_run_with_what_is_finished(run, images, triton):
    assert run("images", "--to", "t", "--shard-size", 4, "--shard", "1/3").exit_code == 0
    triton.failures = [TransportError("connection refused") for _ in range(100_000)]
    result = run("images", "--to", "t", "--shard-size", 4, "--wait", "0.05")
    assert result.exit_code == 1 and "connection refused" in result.stderr.splitlines()[-1]
    assert len(vectors_by_id("t")) == 4


def test_an_overloaded_server_slows_the_run_down(run, images, triton, monkeypatch):
    allowed = []
    refused = throttle.Throttle.refused
    monkeypatch.setattr(throttle.Throttle, "refused", lambda self: (refused(self), allowed.append(self.allowed))[0])
    refusals = iter([Unavailable("queue is full")] * 3)

    def refuse(call):
        for error in refusals:
            raise error

    triton.refuse = refuse
    result = run("images", "--to", "t")
    assert result.exit_code == 0, result.output
    assert allowed == [2, 1, 1]
    assert vectors_by_id("t") == EXPECTED and "waiting" not in result.stderr


def test_an_image_that_the_server_fails_on_is_a_failure_of_its_own(run, images, triton):
    bad = png(14)

    def refuse(call):
        if bad in values_of(call):
            raise ServerError("internal error")

    triton.refuse = refuse
    assert run("images", "--to", "t").exit_code == 0
    assert failures("t") == {"images/4.png": "the server failed on it 3 times: internal error"}
    assert len(vectors_by_id("t")) == 8


def test_a_server_that_fails_on_everything_ends_the_run(run, images, triton, monkeypatch):
    monkeypatch.setattr(bulk, "FAILURES_IN_A_ROW", 3)

    def refuse(call):
        raise ServerError("internal error")

    triton.refuse = refuse
    result = run("images", "--to", "t")
    assert result.exit_code == 1 and result.stderr.endswith("Error: internal error\n")
    assert not (images.parent / "t").exists()


def test_a_server_that_comes_back_with_another_model_ends_the_run(run, images, triton):
    def refuse(call):
        triton.told["medimageinsight_image"] = {"checkpoint_sha256": "beef" * 16, "precision": "int8"}
        triton.refuse = lambda call: None
        raise TransportError("connection reset")

    triton.refuse = refuse
    result = run("images", "--to", "t")
    assert result.exit_code == 1
    assert "checkpoint c0ffeec0ffee, fp32" in result.stderr and "checkpoint beefbeefbeef, int8" in result.stderr
    assert not (images.parent / "t").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["images", "--shard-size", 5], "t was begun with --shard-size 4, not 5; give the same, or another --to"),
        (["images/0.png", "--shard-size", 4], "t was begun with PATHS ['images'], not ['images/0.png']"),
        (["images", "--shard-size", 4, "--dicom-window", "percentile"], "windowing percentile"),
    ],
)
def test_another_run_is_not_written_into_a_table(run, images, changed, message):
    assert run("images", "--to", "t", "--shard-size", 4).exit_code == 0
    result = run(*changed, "--to", "t")
    assert result.exit_code == 1 and message in result.stderr


def test_bad_input_is_said_before_the_run(run, images, tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n0.png,x\n")
    result = run("a.csv", "--to", "t")
    assert result.stderr == (
        "Error: a.csv: no column 'image'; it has path, label; name that of the images with --image-column\n"
    )
    (tmp_path / "b.csv").write_text("image,image\n0.png,x\n")
    assert run("b.csv", "--to", "t").stderr == "Error: b.csv: has the column 'image' 2 times; expected it once\n"
    (tmp_path / "c.csv").write_text("image,name\n0.png,x\n1.png,Doe,John\n")
    result = run("c.csv", "--to", "t")
    assert result.stderr == "Error: c.csv: row 1 has 3 cells; expected 2\n"
    (tmp_path / "d.csv").write_text("image,frame\n0.png,first\n")
    assert run("d.csv", "--to", "t").stderr == "Error: d.csv: row 0, column 'frame' is no whole number\n"
    pq.write_table(pa.table({"image": ["0.png"], "text": [1]}), tmp_path / "e.parquet")
    assert run("e.parquet", "--to", "t").stderr == "Error: e.parquet: column 'text' is of int64; expected string\n"
    result = run("images", "images/0.png", "--to", "t")
    assert result.stderr == (
        "Error: the sources: 1 ids come twice or more, the first is images/0.png; give each source once, or the rows "
        "of a table a column `id`\n"
    )
    (tmp_path / "empty").mkdir()
    assert "Error: no images in empty; expected .bmp" in run("empty", "--to", "t").stderr
    assert not (tmp_path / "t").exists() and not list((tmp_path / "t.run").glob("*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a line with the names of its columns"),
        (b"image\n", "no images in a.csv; expected a row for each image"),
        (b"image;text\n0.png;x\n", "its columns are parted by other than a comma"),
        ("image\nM\xfcller.png\n".encode("cp1252"), "it is not UTF-8; save it as CSV UTF-8"),
        (b'image,text\n0.png,"x\n1.png,y\n', "is a table that cannot be read: unexpected end of data"),
    ],
)
def test_a_csv_that_cannot_be_read_is_said_in_one_line(run, images, tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    result = run("a.csv", "--to", "t")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and message in result.stderr
    assert not (tmp_path / "t").exists()


def test_cells_that_are_no_names_are_failures(run, images, tmp_path):
    """A NUL is in no path; base64 without a slash is longer than a name may be."""
    plain = base64.b64encode(png(20) + b"\0" * 300)
    assert b"/" not in plain[-300:]
    (tmp_path / "a.csv").write_bytes(b"image\nimages/1.png\n\0.png\n" + b"e" * 300 + b".png\n" + plain + b"\n")
    assert run("a.csv", "--to", "t").exit_code == 0
    assert vectors_by_id("t") == {"images/1.png": 11, "a.csv#3": 20}
    assert failures("t") == {
        "\0.png": "cannot read '\\x00.png': no file has such a name",
        "e" * 300 + ".png": f"cannot read {'e' * 300}.png: File name too long",
    }


def test_what_cannot_be_read_in_a_folder_is_a_failure(run, images, monkeypatch):
    (images / "a.zip").write_bytes(b"PK\x03\x04, and no more")
    (images / "b.png").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(images) + b"/\xff.png")).write_bytes(png(30))
    (images / "closed").mkdir()
    scandir = os.scandir

    def scan(path):
        if str(path).endswith("closed"):  # root may look into any
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", scan)
    result = run("images", "--to", "t")
    assert result.exit_code == 0, result.output
    assert r"images/\xff.png: has a name that is not UTF-8; rename it" in result.stderr
    assert vectors_by_id("t") == EXPECTED
    reasons = failures("t")
    assert reasons.pop("images/closed").startswith("cannot read images/closed: ")
    assert reasons == {
        "images/a.zip": "is a zip that is damaged or cannot be read",
        "images/b.png": "cannot read images/b.png: No such file or directory",
        r"images/\xff.png": r"cannot read images/\xff.png: No such file or directory",
    }


def test_a_file_that_changes_during_the_run_is_a_failure_until_it_is_tried_again(run, images, triton):
    def refuse(call):
        (images / "8.png").write_bytes(png(40))

    triton.refuse = refuse
    assert run("images", "--to", "t", "--shard-size", 4, "--shard", "1/3").exit_code == 0
    assert run("images", "--to", "t", "--shard-size", 4).exit_code == 0
    assert failures("t") == {
        "images/8.png": "has changed since the run was planned; --retry-failed takes it as it is then"
    }
    triton.refuse = lambda call: None
    assert run("images", "--to", "t", "--shard-size", 4, "--retry-failed").exit_code == 0
    assert vectors_by_id("t") == EXPECTED | {"images/8.png": 40}


def test_a_truncated_shard_is_made_anew_once_it_is_removed(run, images, tmp_path):
    run("images", "--to", "t", "--shard-size", 4)
    shard = tmp_path / "t" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    again = run("images", "--to", "t", "--shard-size", 4)
    assert again.exit_code == 1
    assert again.stderr == (
        "Error: t/part-00001.parquet: cannot be read: it is truncated or damaged; remove it and give the command that "
        "wrote the table again, which makes this shard anew\n"
    )
    shard.unlink()
    assert run("images", "--to", "t", "--shard-size", 4).exit_code == 0
    assert vectors_by_id("t") == EXPECTED


def test_a_shard_of_another_model_ends_a_second_start(run, images, tmp_path):
    run("images", "--to", "t", "--shard-size", 4)
    shard = tmp_path / "t" / "part-00001.parquet"
    rows = pq.read_table(shard)
    key = b"medimage.model"
    changed = {key: rows.schema.metadata[key].replace(b"fp32", b"int8")}
    pq.write_table(rows.replace_schema_metadata(changed), shard)
    result = run("images", "--to", "t", "--shard-size", 4)
    assert result.exit_code == 1 and "t/part-00001.parquet is of medimageinsight" in result.stderr
    assert "int8" in result.stderr and "fp32" in result.stderr


def test_damaged_files_of_a_run_are_said_with_a_remedy_that_works(run, images, tmp_path):
    (images / "9.png").write_bytes(b"")
    arguments = ("images", "--to", "t", "--shard-size", 4)
    assert run(*arguments).exit_code == 0
    listed, shard = tmp_path / "t.run/failures.parquet/part-00002.parquet", tmp_path / "t/part-00002.parquet"
    listed.write_bytes(listed.read_bytes()[:-20])
    result = run(*arguments, "--retry-failed")
    assert result.stderr == (
        "Error: t.run/failures.parquet/part-00002.parquet: cannot be read: it is truncated or damaged; remove it and "
        "t/part-00002.parquet, and give the same command again, which makes both anew\n"
    )
    listed.unlink()
    shard.unlink()
    assert run(*arguments).exit_code == 0
    assert failures("t") == {"images/9.png": "is empty; expected the bytes of an image file"}

    planned = tmp_path / "t.run/plan/part-00002.parquet"
    whole = planned.read_bytes()
    shard.unlink()
    for damaged in (whole[:-20], b"PAR1" + bytes(200) + whole[204:]):  # its end, and what is within
        planned.write_bytes(damaged)
        result = run(*arguments)
        assert result.exit_code == 1 and result.stderr.endswith(
            "Error: t.run/plan/part-00002.parquet: cannot be read: it is truncated or damaged; the run cannot go on; "
            "choose another --to\n"
        )


def test_a_full_disk_ends_the_run_with_the_finished_shards_untouched(run, images, monkeypatch):
    assert run("images", "--to", "t", "--shard-size", 4, "--shard", "1/3").exit_code == 0

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    result = run("images", "--to", "t", "--shard-size", 4)
    assert result.exit_code == 1
    assert "Error: t: No space left on device; the finished shards stay" in result.stderr
    assert len(vectors_by_id("t")) == 4


def test_a_place_that_cannot_be_written_is_said(run, images):
    result = run("images", "--to", "images/0.png/t")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: images/0.png/t.run/plan/settings.json: Not a directory")


def test_what_killed_runs_left_is_removed_at_the_end(run, images, tmp_path):
    left = tmp_path / ".t-part-00001-4711.partial"
    left.touch()
    (tmp_path / "t.run" / ".plan-4711").mkdir(parents=True)
    (tmp_path / "t.run" / ".part-00001-4711.partial").touch()
    assert run("images", "--to", "t", "--shard-size", 4, "--shard", "1/2").exit_code == 0
    assert left.exists()
    assert run("images", "--to", "t", "--shard-size", 4).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "t", "t.run"]
    assert [path.name for path in (tmp_path / "t.run").iterdir()] == ["plan"]


def test_the_folder_of_the_run_itself_can_be_the_table(run, images, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("../images", "--to", ".").exit_code == 0
    assert len(Table.open(".").vectors()) == 9 and (tmp_path / "here.run").is_dir()


def test_an_archive_is_a_source(run):
    stub = StubArchive([radiograph(1, 1, ViewPosition="PA"), radiograph(1, 2, ViewPosition="LL"), text_object()])
    with serving(type("ArchiveHandler", (Handler,), {"archive": stub})) as root:
        result = run(f"dicomweb+{root}/dicom-web/studies/{uid(1)}", "--to", "t")
    assert result.exit_code == 0, result.output
    assert "has no pixels" in result.stderr
    table = Table.open("t").read()
    assert len(table["sop_uid"].unique()) == 2 and set(table["study_uid"].to_pylist()) == {uid(1)}
    assert table["id"].to_pylist() == [
        f"dicomweb+{root}/dicom-web/studies/{uid(1)}/series/{row['series_uid']}/instances/{row['sop_uid']}"
        for row in table.select(["series_uid", "sop_uid"]).to_pylist()
    ]


def test_a_scoring_uri_does_not_tell_its_model(run, images):
    result = run("images", "--to", "t", "--url", "http://127.0.0.1:5001/score")
    assert result.exit_code == 1 and "a scoring URI does not tell; give the url of its Triton" in result.stderr
