"""Slices of series and of NIfTI volumes, and what `medimage embed` writes of them."""

import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import Dataset
from pydicom.sequence import Sequence

from medimage_client import AsyncMedImageInsight, InvalidInput, TransportError, read_studies
from medimage_client.archive.nifti import count_slices, read_nifti
from medimage_client.archive.slices import Slice, WhichSlices, slices_of
from medimage_client.cli.group import medimage
from medimage_client.cli.progress import embed_items
from medimage_client.constants import DEFAULT_CONCURRENCY, IMAGES_PER_REQUEST
from tests.client.dicom_studies import ct_slice, file_of, radiograph, text_object, uid, write
from tests.client.fake_triton import FakeTriton, values_of

STEP = 2560  # between the grey values of slices: 10 after the window


@pytest.fixture
def run(monkeypatch):
    triton = FakeTriton()
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: triton)
    return lambda *args: CliRunner().invoke(medimage, [str(arg) for arg in args])


@pytest.fixture
def volume(tmp_path):
    """Seven slices, whose names are in another order than their heights; slice k from below is grey 10 k."""
    slices = {f"f{(5 * k) % 7}": ct_slice(3 * k, 7 - k, value=k * STEP) for k in range(7)}
    return write(tmp_path / "ct", **slices)


@pytest.mark.parametrize(
    ("which", "n", "indices"),
    [
        ("all", 4, [0, 1, 2, 3]),
        ("every=3", 8, [0, 3, 6]),
        ("every=9", 8, [0]),
        ("centre=0", 5, [2]),
        ("centre=1", 6, [2, 3, 4]),
        ("centre=9", 3, [0, 1, 2]),
    ],
)
def test_which_slices(which, n, indices):
    assert list(WhichSlices.parse(which).of(n)) == indices


@pytest.mark.parametrize("which", ["", "every=0", "every=-1", "centre", "middle", "every=x"])
def test_other_words_are_refused(run, tmp_path, which):
    with pytest.raises(InvalidInput, match=r"is not all, every=N \(N from 1\) or centre=N"):
        WhichSlices.parse(which)
    result = run("embed", tmp_path, "--slices", which, "--output", tmp_path / "x.npz")
    assert result.exit_code == 2


def test_embed_writes_slices_in_order_with_their_uids_and_positions(run, volume, tmp_path):
    output = tmp_path / "out.npz"
    result = run("embed", volume, "--slices", "every=2", "--text", "abc", "--output", output)
    assert (result.exit_code, result.output) == (0, "")
    with np.load(output) as arrays:
        assert arrays["vectors"].argmax(axis=1).tolist() == [0, 20, 40, 60, 3]
        assert arrays["sop_uid"].tolist() == [uid(2, 1, 7), uid(2, 1, 5), uid(2, 1, 3), uid(2, 1, 1), ""]
        assert arrays["study_uid"].tolist() == [uid(2)] * 4 + [""]
        assert arrays["series_uid"].tolist() == [uid(2, 1)] * 4 + [""]
        assert arrays["position"][:4].tolist() == [[-10, -20, z] for z in (0, 6, 12, 18)]
        assert np.isnan(arrays["position"][4]).all()
        assert arrays["names"][4] == "abc"


def test_folder_without_the_option_is_files_by_name_as_ever(run, volume, tmp_path):
    output = tmp_path / "out.npz"
    assert run("embed", volume, "--output", output).exit_code == 0
    with np.load(output) as arrays:
        assert sorted(arrays) == ["names", "vectors"]
        assert arrays["names"].tolist() == [str(volume / f"f{n}") for n in range(7)]


def test_zip_is_a_study_and_what_is_no_image_is_named(run, volume, tmp_path):
    path = tmp_path / "ct.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(volume.iterdir()):
            archive.write(file, file.name)
        archive.writestr("sr", file_of(text_object()))
    output = tmp_path / "out.npz"
    result = run("embed", path, "--output", output)
    assert (result.exit_code, result.stderr) == (0, f"{path}/sr: has no pixels (Basic Text SR Storage)\n")
    with np.load(output) as arrays:
        assert arrays["vectors"].argmax(axis=1).tolist() == [10 * k for k in range(7)]
    assert run("classify", path, "--label", "a", "--slices", "centre=0").stdout.count(str(path)) == 1


def test_source_without_images_is_no_empty_result(run, tmp_path):
    write(tmp_path / "sr", a=text_object())
    result = run("embed", tmp_path / "sr", "--slices", "all", "--output", tmp_path / "out.npz")
    assert (result.exit_code, (tmp_path / "out.npz").exists()) == (2, False)
    assert f"no images in {tmp_path}/sr" in result.stderr


def test_parquet_has_a_column_of_each(run, volume, tmp_path):
    pq = pytest.importorskip(
        "pyarrow.parquet", reason="no pyarrow that suits the installed NumPy", exc_type=ImportError
    )
    output = tmp_path / "out.parquet"
    assert run("embed", volume, "--slices", "centre=0", "--output", output).exit_code == 0
    (row,) = pq.read_table(output).to_pylist()
    assert (row["sop_uid"], row["frame"], row["position"]) == (uid(2, 1, 4), -1, [-10, -20, 9])


def enhanced(heights):
    """One object with a frame at each height; frame k is grey 10 k."""
    ds = ct_slice(0, 1, NumberOfFrames=len(heights))
    del ds.ImagePositionPatient
    ds.PixelData = b"".join(np.full((8, 10), k * STEP, np.uint16).tobytes() for k in range(len(heights)))
    frames = []
    for z in heights:
        plane, frame = Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, z]
        frame.PlanePositionSequence = Sequence([plane])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return ds


def test_frames_are_slices_in_the_order_of_their_positions(run, tmp_path):
    write(tmp_path / "mf", a=enhanced([4, 2, 6]))
    output = tmp_path / "out.npz"
    assert run("embed", tmp_path / "mf", "--slices", "all", "--output", output).exit_code == 0
    with np.load(output) as arrays:
        assert arrays["frame"].tolist() == [1, 0, 2]
        assert arrays["vectors"].argmax(axis=1).tolist() == [10, 0, 20]
        assert arrays["position"].tolist() == [[0, 0, 2], [0, 0, 4], [0, 0, 6]]
    (first,) = slices_of(read_studies(tmp_path / "mf"), None)
    assert first.frame is None


def test_frames_are_shown_by_the_window_that_is_asked_for(run, tmp_path):
    write(tmp_path / "mf", a=enhanced([0, 1, 2]))
    output = tmp_path / "out.npz"
    options = ["--slices", "all", "--dicom-window", f"0,{2 * STEP}", "--output", output]
    assert run("embed", tmp_path / "mf", *options).exit_code == 0
    with np.load(output) as arrays:
        assert arrays["vectors"].argmax(axis=1).tolist() == [0, 128, 255]


def test_archive_that_fails_in_the_middle_costs_what_was_not_read_alone(run, volume, tmp_path, monkeypatch):
    """The fourth slice and those after it; what is embedded is written."""
    reads = []

    def read_zipped(path, info):
        reads.append(info.filename)
        if len(reads) > 7 + 3:  # after the headers
            raise TransportError("cannot reach the archive (ConnectionError)")
        return original(path, info)

    from medimage_client.archive import files

    original = files.read_zipped
    path = tmp_path / "ct.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in volume.iterdir():
            archive.write(file, file.name)
    monkeypatch.setattr(files, "read_zipped", read_zipped)
    monkeypatch.setattr("medimage_client.cli.progress.DEFAULT_CONCURRENCY", 1)
    output = tmp_path / "out.npz"
    result = run("embed", path, "--output", output)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].endswith(": cannot reach the archive (ConnectionError)")
    assert [line.rpartition(": ")[2] for line in lines[1:4]] == ["is not read, for the archive failed before"] * 3
    assert lines[4] == "Error: 4 of 7 images are left out"
    with np.load(output) as arrays:
        assert arrays["vectors"].argmax(axis=1).tolist() == [0, 10, 20]


async def test_few_images_are_in_memory_at_once(monkeypatch):
    reads, most = [], 0
    triton = FakeTriton()

    def read(dicom_window):
        nonlocal most
        reads.append(1)
        answered = sum(len(values_of(call)) for call in triton.calls)
        most = max(most, len(reads) - answered)
        return np.zeros((4, 4), np.uint8)

    slices = [Slice(name=str(n), read=read) for n in range(100)]
    async with AsyncMedImageInsight("grpc://unused", transport=triton) as client:
        embedded = await embed_items(client, slices, "server", "file")
    assert (len(reads), len(embedded.features)) == (100, 100)
    assert most <= DEFAULT_CONCURRENCY * IMAGES_PER_REQUEST


# ---- NIfTI

nibabel = pytest.importorskip("nibabel")


def saved(path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def test_nifti_is_sliced_as_dicom_would_be(tmp_path):
    """A bright corner at the right, front and head of the patient, in a file whose axes go left, back and feet."""
    array = np.zeros((4, 5, 3), np.int16)  # x to the left from x = 30, y to the back from y = 8, z to the feet from 7
    array[3, 0, 0] = 100  # leftmost, foremost, topmost
    affine = np.array([[-2, 0, 0, 30], [0, -1, 0, 8], [0, 0, -3, 7], [0, 0, 0, 1.0]])
    slices = read_nifti(saved(tmp_path / "v.nii.gz", array, affine), None)
    assert [one.name for one in slices] == [f"{tmp_path}/v.nii.gz#{z}" for z in range(3)]
    top = np.asarray(slices[2].read("file"))
    assert top.shape == (5, 4)
    assert np.argwhere(top).tolist() == [[0, 3]]  # front is up, the patient's left is on the right
    assert not np.asarray(slices[0].read("file")).any()
    # the upper left pixel: rightmost x = 30 and foremost y = 8 of NIfTI, which are -30 and -8 of DICOM
    assert [one.position for one in slices] == [(-30, -8, 1), (-30, -8, 4), (-30, -8, 7)]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_slices_are_counted_by_the_header(tmp_path, axes):
    affine = np.eye(4)
    affine[:3] = affine[:3, [*np.argsort(axes), 3]]
    path = saved(tmp_path / "v.nii.gz", np.zeros((4, 5, 6), np.int16).transpose(axes), affine)
    assert count_slices(path) == len(read_nifti(path, None))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InvalidInput, match="is a NIfTI file that cannot be read"):
        count_slices(path)


def test_embed_takes_nifti(run, tmp_path):
    """A ramp whose 1st and 99th percentile are its ends."""
    array = np.repeat(np.arange(3, dtype=np.float32), 100).reshape(3, 10, 10).transpose(1, 2, 0)
    path = saved(tmp_path / "v.nii", array, np.eye(4))
    output = tmp_path / "out.npz"
    assert run("embed", path, "--slices", "all", "--output", output).exit_code == 0
    with np.load(output) as arrays:
        assert arrays["vectors"].argmax(axis=1).tolist() == [0, 128, 255]
        assert arrays["position"][:, 2].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 2, 3), np.int16), r"has the shape \(2, 2, 2, 3\); expected a volume of three axes"),
        (np.full((2, 2, 2), np.nan, np.float32), "has values that are not finite"),
    ],
)
def test_other_nifti_files_are_refused(tmp_path, array, message):
    with pytest.raises(InvalidInput, match=message):
        read_nifti(saved(tmp_path / "v.nii", array, np.eye(4)), None)


def test_damaged_nifti_is_refused(tmp_path):
    (tmp_path / "v.nii.gz").write_bytes(b"Jane Doe" * 50)
    with pytest.raises(InvalidInput, match="is a NIfTI file that cannot be read") as caught:
        read_nifti(tmp_path / "v.nii.gz", None)
    assert "Jane" not in str(caught.value)


def test_slice_of_a_single_image_is_its_file(tmp_path):
    (one,) = slices_of(read_studies(write(tmp_path, a=radiograph())), WhichSlices())
    assert one.read("file") == (tmp_path / "a").read_bytes()
