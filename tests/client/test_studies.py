"""Studies of files: what is found, in which order, and what `medimage studies` prints of it."""

import json
import logging
import os
import re
import sys
import warnings
import zipfile

import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence

from medimage_client import InvalidInput, MissingExtra, read_studies
from medimage_client.cli.group import medimage
from tests.client.dicom_studies import ct_slice, file_of, radiograph, text_object, uid, write
from tests.garbage import new_garbage


def run(*args):
    return CliRunner().invoke(medimage, [str(arg) for arg in args])


@pytest.fixture
def folder(tmp_path):
    """A chest study with two views, a text, a note and a damaged file."""
    folder = write(
        tmp_path / "studies",
        a=radiograph(1, 2, ViewPosition="LL", lateral=True, ImageLaterality="U"),
        b=radiograph(1, 1, ViewPosition="PA"),
        c=text_object(),
    )
    (folder / "notes.txt").write_text("Jane Doe, 4711")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "cut").write_bytes(file_of(radiograph(1, 3))[:200])
    return folder


def sop_uids(studies):
    return [one.sop_uid for one in studies.instances]


def test_folder_is_grouped_and_ordered_and_what_is_no_image_is_named(folder):
    found = read_studies(folder)
    (study,) = found.studies
    (series,) = study.series
    assert (study.uid, study.date, series.uid) == (uid(1), "20260102", uid(1, 1))
    assert [(one.sop_uid, one.view, one.laterality) for one in series.instances] == [
        (uid(1, 1, 1), "PA", ""),
        (uid(1, 1, 2), "LL", "U"),
    ]
    assert series.first.read() == (folder / "b").read_bytes()
    assert found.left_out == (
        f"{folder}/c: has no pixels (Basic Text SR Storage)",
        f"{folder}/deeper/cut: is no DICOM object",
        f"{folder}/notes.txt: is no DICOM object",
    )


def test_zip_and_dicomdir_hold_what_the_folder_does(folder, tmp_path):
    zipped = tmp_path / "studies.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in ("a", "b", "c"):
            archive.write(folder / name, f"in/{name}")
    found = read_studies(zipped)
    assert sop_uids(found) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert found.instances[0].read() == (folder / "b").read_bytes()
    assert found.instances[0].name == f"{zipped}/in/b"

    found = read_studies(dicomdir(tmp_path / "disc", folder / "a", folder / "b"))
    assert sop_uids(found) == [uid(1, 1, 1), uid(1, 1, 2)]
    whole = read_studies(tmp_path / "disc")
    assert sop_uids(whole) == sop_uids(found)
    assert whole.left_out == (f"{tmp_path}/disc/DICOMDIR: has no pixels (Media Storage Directory Storage)",)


def dicomdir(folder, *files):
    """A DICOMDIR with copies of files."""
    with warnings.catch_warnings(), new_garbage() as collect:
        warnings.simplefilter("ignore", ResourceWarning)  # pydicom leaves a temporary folder to the garbage collector
        file_set = FileSet()
        for file in files:
            file_set.add(file)
        file_set.write(folder)
        del file_set
        collect()
    return folder / "DICOMDIR"


def test_dicomdir_that_names_a_file_elsewhere_is_refused(folder, tmp_path):
    path = dicomdir(tmp_path / "disc", folder / "a")
    directory = dcmread(path)
    with disable_value_validation():
        directory.DirectoryRecordSequence[-1].ReferencedFileID = ["..", "studies", "b"]
        directory.save_as(path)
    with pytest.raises(InvalidInput, match="DICOMDIR names a file outside its folder"):
        read_studies(path)


def test_file_without_preamble_is_found(tmp_path):
    write(tmp_path, a=radiograph())
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[132:])
    assert sop_uids(read_studies(tmp_path)) == [uid(1, 1, 1)]


def test_damaged_and_encrypted_zips_are_told(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", file_of(radiograph()))
        archive.writestr("b", file_of(radiograph(1, 2)))
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)  # within the deflated first member
    flags = content.rindex(b"PK\x01\x02") + 8  # of the last member, in the directory
    content[flags] |= 1
    path.write_bytes(content)
    assert read_studies(path).left_out == (
        f"{path}/a: is a damaged member of its zip",
        f"{path}/b: is encrypted; unpack the zip and give its folder",
    )
    with pytest.raises(InvalidInput, match="no file or folder"):
        read_studies(tmp_path / "missing")


def test_slices_are_ordered_by_position_and_those_of_another_orientation_by_their_own(tmp_path):
    sagittal = (0, 1, 0, 0, 0, -1)  # its normal is (-1, 0, 0)
    heights = {1: 20, 2: 0, 3: 10, 4: -10}
    slices = {f"f{n}": ct_slice(z, n) for n, z in heights.items()}
    slices["f0"] = ct_slice(0, 0, normal=sagittal)  # a localizer comes first, by its number
    found = read_studies(write(tmp_path, **slices))
    assert [one.number for one in found.instances] == [0, 4, 2, 3, 1]
    assert [one.depth for one in found.instances] == [10.0, -10, 0, 10, 20]
    assert found.instances[1].position == (-10, -20, -10)


def test_slices_are_ordered_by_number_where_one_has_no_position(tmp_path):
    without = ct_slice(0, 2)
    del without.ImagePositionPatient
    found = read_studies(write(tmp_path, a=ct_slice(5, 3), b=without, c=ct_slice(9, 1)))
    assert [one.number for one in found.instances] == [1, 2, 3]


def test_phases_of_one_position_stay_in_the_order_of_their_numbers(tmp_path):
    found = read_studies(
        write(tmp_path, a=ct_slice(5, 3), b=ct_slice(5.0000001, 2), c=ct_slice(0, 4), d=ct_slice(5, 1))
    )
    assert [one.number for one in found.instances] == [4, 1, 2, 3]


def test_position_of_an_enhanced_object_is_in_its_groups(tmp_path):
    plane, orientation, shared, frame = Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImagePositionPatient, orientation.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    frame.PlanePositionSequence = Sequence([plane])
    shared.PlaneOrientationSequence = Sequence([orientation])
    ds = ct_slice(0, 1, NumberOfFrames=1)
    del ds.ImagePositionPatient, ds.ImageOrientationPatient
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([frame])
    (one,) = read_studies(write(tmp_path, a=ds)).instances
    assert (one.position, one.orientation, one.depth) == ((1, 2, 3), (1, 0, 0, 0, 1, 0), 3)


def test_pipe_in_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert read_studies(tmp_path).left_out == ()


def test_missing_libraries_name_the_extra(monkeypatch, tmp_path):
    for module, source, message in (
        ("pydicom", str(tmp_path), "reading DICOM needs pydicom: pip install 'medimage-triton[dicom]'"),
        (
            "dicomweb_client",
            "dicomweb+https://h/studies/1",
            "needs dicomweb-client: pip install 'medimage-triton[archive]'",
        ),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtra) as caught:
                read_studies(source)
        assert str(caught.value).endswith(message)


def test_object_that_lies_twice_is_taken_once(tmp_path):
    found = read_studies(write(tmp_path, a=radiograph(), b=radiograph()))
    assert sop_uids(found) == [uid(1, 1, 1)]
    assert found.left_out == (f"{tmp_path}/b: is the object of {tmp_path}/a again",)


def test_elements_that_are_empty_or_of_no_number_count_as_absent(tmp_path):
    ds = radiograph(SeriesNumber="", InstanceNumber="", StudyDate="", ViewPosition="")
    ds.ImagePositionPatient = None
    (one,) = read_studies(write(tmp_path, a=ds)).instances
    assert (one.series_number, one.number, one.date, one.view, one.position) == (None, None, "", "", None)


def test_nothing_of_a_patient_is_in_a_repr_or_a_log(folder, caplog):
    caplog.set_level(logging.DEBUG)
    with disable_value_validation():
        write(folder, bad=radiograph(1, 7, PatientID="4711" * 20, StudyDate="Jane Doe", ViewPosition="Doe" * 9))
    found = read_studies(folder)  # pydicom would warn of each value, which the tests would fail at
    assert "Doe" * 9 in [one.view for one in found.instances]
    assert not re.search("4711|Doe|Jane|20260102", caplog.text)
    assert not re.search("4711|Jane|20260102", repr(found))


def test_table_shows_each_series(folder):
    write(folder, d=ct_slice(0, 1, SeriesDescription="Thin"), e=ct_slice(1, 2, SeriesDescription="Thin"))
    result = run("studies", folder)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["study", f"{uid(1)},", "2026-01-02,", "2", "images"]
    assert lines[3] == ["1", "CR", "LL", "PA", "-", "U", "2", "64x64", "-", uid(1, 1)]
    assert lines[8] == ["1", "CT", "-", "-", "2", "10x8", "Thin", uid(2, 1)]
    assert result.stderr.splitlines()[-1] == "3 files or objects without an image"
    assert f"{folder}/notes.txt: is no DICOM object" in result.stderr
    assert "Doe" not in result.output


def test_instances_and_json_show_each_image(tmp_path):
    write(tmp_path, a=ct_slice(2.5, 7))
    rows = [line.split() for line in run("studies", tmp_path, "--instances").stdout.splitlines()]
    assert rows[-1] == ["7", "-", "-", "1", "10x8", "-10.0", "-20.0", "2.5", uid(2, 1, 7)]
    (study,) = json.loads(run("studies", tmp_path, "--json").stdout)
    (instance,) = study["series"][0]["instances"]
    assert (study["study_uid"], instance["sop_uid"], instance["position"]) == (uid(2), uid(2, 1, 7), [-10, -20, 2.5])


def test_folder_without_images_is_no_failure_and_a_missing_one_is(tmp_path):
    assert run("studies", tmp_path).stdout == "no images\n"
    missing = run("studies", tmp_path / "missing")
    assert (missing.exit_code, missing.stdout) == (2, "")


def test_damaged_file_in_a_folder_does_not_hide_the_others(tmp_path):
    """Of its SOP Class UID in the file meta information, which is read when it is asked for."""
    file = file_of(radiograph(1, 1))
    (tmp_path / "damaged").write_bytes(file.replace(b"\x02\x00\x02\x00UI", b"\x02\x00\x02\x00U\x7f", 1))
    (tmp_path / "whole").write_bytes(file_of(radiograph(1, 2)))
    assert sop_uids(read_studies(tmp_path)) == [uid(1, 1, 1), uid(1, 1, 2)]
