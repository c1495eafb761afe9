"""Reports as DICOM structured reports and Secondary Captures: valid, read back, and of the right patient and pixels."""

import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock
from zipfile import ZipFile

import highdicom.sr
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import (
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from medimage_client import Box, CXRReportGen, Finding, InvalidInput, MedImageError, MissingExtra, Report, ResponseError
from medimage_client.archive.dicomweb import Stored
from medimage_client.archive.sources import Sources
from medimage_client.cli.group import medimage
from medimage_client.images.encoding import encode_image
from medimage_client.reports.origin import NOTICE, read_header
from medimage_client.reports.picture import colour_of
from tests.client.fake_reports import MODEL, FakeReports
from tests.client.radiographs import STUDY, radiograph

LOW, LEFT, RIGHT = Box(0.1, 0.62, 0.9, 0.95), Box(0.1, 0.1, 0.4, 0.5), Box(0.615, 0.105, 0.905, 0.495)
GROUNDED = Report(
    (
        Finding("The heart is normal.", ()),
        Finding("Opacity at the bases, “new” 漢.", (LOW,)),
        Finding("Both lungs are hazy.", (LEFT, RIGHT)),
    ),
    "complete",
    MODEL,
)
FREE_TEXT = Report((Finding("The heart is normal. The lungs are clear.", ()),), "complete", MODEL)


TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PatientOrientation", "SpecificCharacterSet",
)  # fmt: skip
RADIOGRAPHS = {
    "portrait": {},
    "landscape": {"size": (900, 700)},
    "multi-frame": {"frames": 2},
    "one-frame": {"NumberOfFrames": 1},
    "computed": {"SOPClassUID": ComputedRadiographyImageStorage},
    "bare": {"dropped": TYPE_2},
    "japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
    "cyrillic": {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Щукин^Юлия"},
    "lossy": {"LossyImageCompression": "01", "LossyImageCompressionRatio": 9, "BurnedInAnnotation": "NO"},
}


@pytest.fixture(params=RADIOGRAPHS.values(), ids=RADIOGRAPHS)
def file(request):
    return radiograph(**request.param)


def written(result):
    """The result's file, read again."""
    file = BytesIO()
    result.save_as(file)
    return dcmread(BytesIO(file.getvalue()))


def groups(document):
    (measurements,) = items(document, codes.DCM.ImagingMeasurements)
    return items(measurements, codes.DCM.MeasurementGroup)


def items(parent, name):
    return [item for item in parent.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == name.value]


def texts(parent, name):
    return [item.TextValue for item in items(parent, name)]


def polylines(document):
    """Of each group the (5, 2) points of its regions."""
    regions = [items(group, codes.DCM.ImageRegion) for group in groups(document)]
    return [[np.array(region.GraphicData).reshape(-1, 2) for region in of_group] for of_group in regions]


# ---- validity


@pytest.fixture
def errors_of(tmp_path):
    """The errors that dicom3tools' validator finds in a dataset."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed; it is in Debian's package dicom3tools")

    def validate(result):
        result.save_as(tmp_path / "result.dcm", enforce_file_format=True)
        done = subprocess.run(["dciodvfy", tmp_path / "result.dcm"], capture_output=True, text=True, timeout=60)
        return [line for line in done.stderr.splitlines() if line.startswith("Error")]

    return validate


@pytest.mark.parametrize(
    "report",
    [
        GROUNDED,
        FREE_TEXT,
        replace(FREE_TEXT, status="truncated"),
        Report((), "malformed", replace(MODEL, checkpoint_sha256=None)),
        Report((Finding("", (LOW,)),), "complete", MODEL),
    ],
    ids=["grounded", "free-text", "truncated", "no-finding", "no-text"],
)
def test_validator_finds_no_fault_in_a_structured_report(errors_of, report):
    assert errors_of(report.structured_report(radiograph())) == []


def test_validator_finds_no_fault_in_results_of_any_radiograph(errors_of, file):
    others = {"lateral": radiograph(number=2, dropped=("PatientID",)), "prior": radiograph(number=3, **EARLIER)}
    assert errors_of(GROUNDED.structured_report(file, **others)) == []
    assert errors_of(GROUNDED.secondary_capture(file, **others)) == []


def test_validator_finds_what_is_missing(errors_of):
    document = GROUNDED.structured_report(radiograph())
    del document.PatientID
    assert any("PatientID" in line for line in errors_of(document))


# ---- structured reports


def test_structured_report_has_the_findings_the_algorithm_and_a_notice():
    document = written(GROUNDED.structured_report(radiograph(), indication="Cough of Jane", max_new_tokens=99))
    assert document.SOPClassUID == ComprehensiveSRStorage
    assert (document.CompletionFlag, document.VerificationFlag, document.PreliminaryFlag) == (
        "COMPLETE", "UNVERIFIED", "PRELIMINARY",
    )  # fmt: skip
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert texts(document, codes.DCM.Comment) == [NOTICE]
    assert NOTICE.startswith("Research output")
    (observer,) = items(document, codes.DCM.ObserverType)
    assert observer.ConceptCodeSequence[0].CodeValue == codes.DCM.Device.value
    assert texts(document, codes.DCM.DeviceObserverName) == ["CXRReportGen"]
    told = groups(document)
    assert [texts(group, codes.DCM.Finding) for group in told] == [[finding.text] for finding in GROUNDED.findings]
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in told] == ["1501", "1410", "1411"]
    assert len({items(group, codes.DCM.TrackingUniqueIdentifier)[0].UID for group in told}) == 3
    for group in told:
        assert texts(group, codes.DCM.AlgorithmName) == ["CXRReportGen"]
        assert texts(group, codes.DCM.AlgorithmVersion) == [MODEL.version]
        (family,) = items(group, codes.DCM.AlgorithmFamily)
        assert family.ConceptCodeSequence[0].CodeMeaning == "Artificial Intelligence"
        assert texts(group, codes.DCM.AlgorithmParameters) == [
            "checkpoint: maira-2",
            f"checkpoint SHA-256: {MODEL.checkpoint_sha256}",
            "precision: fp16",
            "mode: grounded",
            "max_new_tokens: 99",
            "dicom_window: file",
        ]
    assert "Jane" not in str(document)


def test_structured_report_is_read_by_highdicom(tmp_path):
    GROUNDED.structured_report(radiograph()).save_as(tmp_path / "report.dcm", enforce_file_format=True)
    content = highdicom.sr.srread(tmp_path / "report.dcm").content
    (planar,) = content.get_planar_roi_measurement_groups()
    assert planar.tracking_identifier == "Finding 2"
    assert planar.roi.graphic_type.value == "POLYLINE"
    (volumetric,) = content.get_volumetric_roi_measurement_groups()
    assert len(volumetric.roi) == 2
    assert len(content.get_image_measurement_groups()) == 1
    assert content.get_observer_contexts()[0].observer_identifying_attributes.model_name == MODEL.checkpoint


def test_free_text_is_a_text_item_without_a_region():
    document = written(FREE_TEXT.structured_report(radiograph(), mode="findings"))
    (group,) = groups(document)
    assert texts(group, codes.DCM.Finding) == ["The heart is normal. The lungs are clear."]
    assert polylines(document) == [[]]
    assert "mode: findings" in texts(group, codes.DCM.AlgorithmParameters)


@pytest.mark.parametrize(
    ("status", "description"),
    [
        ("truncated", "the model's text was cut before its end"),
        ("malformed", "parts of the model's text could not be read"),
    ],
)
def test_report_that_is_not_complete_is_partial(status, description):
    document = written(replace(GROUNDED, status=status).structured_report(radiograph()))
    assert (document.CompletionFlag, document.CompletionFlagDescription) == ("PARTIAL", description)


def test_report_without_a_finding_says_so():
    document = written(Report((), "complete", MODEL).structured_report(radiograph()))
    assert texts(groups(document)[0], codes.DCM.Finding) == ["The model wrote no finding."]


@pytest.mark.parametrize("size", [(640, 640), (640, 801), (901, 700), (1500, 1901)], ids=str)
def test_boxes_read_back_fall_where_draw_puts_them(size):
    file = radiograph(size)
    boxes = [LOW, LEFT, RIGHT, Box(0.9, 0.8, 0.7, 0.6), Box(0.005, 0.005, 0.995, 0.995)]
    report = Report(tuple(Finding("Opacity.", (box,)) for box in boxes), "complete", MODEL)
    of_findings = polylines(written(report.structured_report(file)))
    film = Image.open(BytesIO(encode_image(file)))
    assert film.size == size
    for (points,), box in zip(of_findings, boxes, strict=True):  # one by one, so that none hides another
        assert points.shape == (5, 2)
        assert points[0].tolist() == points[-1].tolist()
        assert (points >= 0).all()
        assert (points <= size).all()
        drawn = np.asarray(Report((Finding("Opacity.", (box,)),), "complete", MODEL).draw(film))[: size[1]]
        ys, xs = np.nonzero((drawn == colour_of(1)).all(axis=-1))
        edges = *points.min(axis=0), *points.max(axis=0)
        assert edges == pytest.approx((xs.min(), ys.min(), xs.max(), ys.max()), abs=1)


def test_regions_are_on_the_frontal_image_and_its_first_frame():
    one = radiograph(NumberOfFrames=1)
    for file, frame in ((radiograph(), None), (one, None), (radiograph(frames=3), 1)):
        document = written(GROUNDED.structured_report(file, lateral=radiograph(number=2)))
        for group in groups(document):
            for region in items(group, codes.DCM.ImageRegion):
                (image,) = region.ContentSequence
                assert image.RelationshipType == "SELECTED FROM"
                (reference,) = image.ReferencedSOPSequence
                assert reference.ReferencedSOPInstanceUID == f"{STUDY}.9.1"
                assert reference.get("ReferencedFrameNumber") == frame


def test_file_without_a_preamble_gives_the_same_result():
    document = GROUNDED.structured_report(radiograph()[132:])
    assert document.SOPInstanceUID == GROUNDED.structured_report(radiograph()).SOPInstanceUID


EARLIER = {"StudyInstanceUID": f"{STUDY}.5", "SeriesInstanceUID": f"{STUDY}.5.1"}


def referenced(sequence):
    series = [series for study in sequence for series in study.ReferencedSeriesSequence]
    return [image.ReferencedSOPInstanceUID for each in series for image in each.ReferencedSOPSequence]


def test_evidence_is_of_all_images_used():
    document = written(
        GROUNDED.structured_report(
            radiograph(), lateral=radiograph(number=2), prior=radiograph(number=3, **EARLIER), prior_report="Clear."
        )
    )
    assert referenced(document.CurrentRequestedProcedureEvidenceSequence) == [f"{STUDY}.9.1", f"{STUDY}.9.2"]
    assert referenced(document.PertinentOtherEvidenceSequence) == [f"{STUDY}.9.3"]


# ---- patient and study


def test_results_are_of_the_patient_and_study_of_the_frontal_image(file):
    source = dcmread(BytesIO(file))
    for result in (GROUNDED.structured_report(file), GROUNDED.secondary_capture(file)):
        result = written(result)
        assert result.StudyInstanceUID == STUDY
        assert result.SeriesInstanceUID not in (None, source.SeriesInstanceUID)
        assert result.SpecificCharacterSet == "ISO_IR 192"
        for name in TYPE_2:
            if name not in ("SpecificCharacterSet", "PatientOrientation"):
                assert str(result.get(name) or "") == str(source.get(name) or ""), name


WRONG = {"PatientBirthDate": "Jane", "StudyDate": "2026.13.45", "StudyTime": "25:61", "PatientSex": "JANE"}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of writing these
def test_values_that_are_no_date_or_sex_are_emptied_and_others_kept(errors_of):
    file = radiograph(**WRONG, PatientName="Jane Doe", PatientID="Jane-42")
    for result in (GROUNDED.structured_report(file), GROUNDED.secondary_capture(file)):
        assert errors_of(result) == []
        result = written(result)
        assert [str(result[name].value or "") for name in WRONG] == [""] * 4
        assert (result.PatientName, result.PatientID) == ("Jane Doe", "Jane-42")


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of writing these
def test_nothing_of_the_patient_is_logged_or_warned_of(caplog, recwarn):
    file = radiograph(**WRONG, PatientName="Jane Doe", PatientID="Jane" * 20, AccessionNumber="Jane" * 9)
    recwarn.clear()
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        GROUNDED.structured_report(file)
        GROUNDED.secondary_capture(file)
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"PIL"}  # of its own PNG
    assert "Jane" not in caplog.text
    assert [*recwarn] == []
    assert logging.getLogger("highdicom").level == logging.NOTSET


# ---- UIDs


def uids(file, report=GROUNDED, **study):
    results = report.structured_report(file, **study), report.secondary_capture(file, **study)
    return [result.SOPInstanceUID for result in results]


def test_uids_are_those_of_study_checkpoint_and_options():
    file = radiograph(size=(64, 64))
    first = uids(file, indication="Cough.")
    assert uids(file, indication="Cough.", lateral=None, technique="", mode="grounded") == first
    others = [
        uids(radiograph(size=(64, 64), number=2), indication="Cough."),
        uids(file),
        uids(file, indication="Cough.", lateral=radiograph(size=(64, 64), number=2)),
        uids(file, indication="Cough.", mode="findings"),
        uids(file, indication="Cough.", dicom_window="percentile"),
        uids(file, indication="Cough.", dicom_window=(0, 100)),
        uids(file, replace(GROUNDED, model=replace(MODEL, checkpoint_sha256="00" * 32)), indication="Cough."),
        uids(file, replace(GROUNDED, model=replace(MODEL, precision="int4")), indication="Cough."),
        uids(file, indication="Cough.", again=True),
        uids(file, indication="Cough.", again=True),
    ]
    every = [uid for pair in (first, *others) for uid in pair]
    assert len(set(every)) == len(every)
    assert all(len(uid) <= 64 for uid in every)


def test_results_of_one_report_are_in_series_of_their_own():
    file = radiograph(size=(64, 64))
    document, capture = GROUNDED.structured_report(file), GROUNDED.secondary_capture(file)
    assert len({document.SeriesInstanceUID, capture.SeriesInstanceUID, f"{STUDY}.8"}) == 3
    assert document.SeriesInstanceUID == GROUNDED.structured_report(file).SeriesInstanceUID


# ---- Secondary Captures


def test_secondary_capture_is_the_picture_with_a_notice_below():
    file = radiograph()
    capture = written(GROUNDED.secondary_capture(file, lateral=radiograph(number=2)))
    picture = np.asarray(GROUNDED.draw(file))
    assert capture.SOPClassUID == SecondaryCaptureImageStorage
    assert np.array_equal(capture.pixel_array[: len(picture)], picture)
    assert capture.pixel_array[len(picture) :].max() > 200
    assert capture.ImageComments == NOTICE
    assert capture.ImageType[:2] == ["DERIVED", "SECONDARY"]
    sources = [source.ReferencedSOPInstanceUID for source in capture.SourceImageSequence]
    assert sources == [f"{STUDY}.9.1", f"{STUDY}.9.2"]


def test_secondary_capture_is_shown_as_the_model_saw_the_image():
    file = radiograph()
    captures = [GROUNDED.secondary_capture(file, dicom_window=window) for window in ("file", "percentile")]
    drawn = [np.asarray(GROUNDED.draw(file, dicom_window=window)) for window in ("file", "percentile")]
    assert not np.array_equal(*drawn)
    for capture, picture in zip(captures, drawn, strict=True):
        assert np.array_equal(written(capture).pixel_array[: len(picture)], picture)


def test_secondary_capture_of_a_lossy_image_says_so():
    capture = written(GROUNDED.secondary_capture(radiograph(**RADIOGRAPHS["lossy"])))
    assert (capture.LossyImageCompression, capture.LossyImageCompressionRatio) == ("01", 9)
    assert "LossyImageCompression" not in written(GROUNDED.secondary_capture(radiograph()))


# ---- what is refused


def png():
    file = BytesIO()
    Image.new("L", (9, 9)).save(file, "PNG")
    return file.getvalue()


NO_DICOM = "is not a DICOM file; a DICOM result refers to the images it was made of, so expected DICOM files"


@pytest.mark.parametrize("method", ["structured_report", "secondary_capture"])
@pytest.mark.parametrize(
    ("frontal", "study", "message"),
    [
        (png(), {}, f"frontal_image: {NO_DICOM}"),
        (np.zeros((9, 9), np.uint8), {}, f"frontal_image: {NO_DICOM}"),
        (Image.new("L", (9, 9)), {}, f"frontal_image: {NO_DICOM}"),
        (radiograph(), {"lateral": png()}, f"lateral_image: {NO_DICOM}"),
        (radiograph(dropped=("StudyInstanceUID",)), {}, "frontal_image: is a DICOM file without Study Instance UID "
         "(0020,000D), by which a result refers to it"),
        (radiograph()[:400], {}, "frontal_image: is a DICOM file "),
        (radiograph(NumberOfFrames=1).replace(b"\x28\0\x08\0IS\x02\x001 ", b"\x28\0\x08\0IS\x02\x001A"), {},
         "frontal_image: is a DICOM file that cannot be read: its Number of Frames (0028,0008) is damaged"),
        (Path("nowhere.dcm"), {}, "frontal_image: cannot read nowhere.dcm: No such file or directory"),
        (radiograph(), {"prior": radiograph(PatientID="P-43")}, "prior_image: has another Patient ID (0010,0020) than "
         "frontal_image; a result is of one"),
    ],
    ids=["png", "array", "pillow", "lateral", "no-study", "cut", "frames", "no-file", "other-patient"],
)  # fmt: skip
def test_image_that_a_result_cannot_refer_to_is_refused(method, frontal, study, message):
    with pytest.raises(InvalidInput) as refused:
        getattr(GROUNDED, method)(frontal, **study)
    assert str(refused.value).startswith(message)
    assert "P-4" not in str(refused.value)


def test_image_of_an_unknown_class_is_refused():
    with pytest.raises(InvalidInput, match=r"frontal_image: is of the SOP Class 1\.2\.3, which is none of an image"):
        GROUNDED.structured_report(radiograph(SOPClassUID="1.2.3"))


def test_report_of_no_known_model_is_refused():
    with pytest.raises(MedImageError, match="the server did not tell which checkpoint wrote the report"):
        replace(GROUNDED, model=None).structured_report(radiograph())


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom.sr", None)
    with pytest.raises(MissingExtra, match=r"pip install 'medimage-triton\[archive\]'"):
        GROUNDED.structured_report(radiograph())


# ---- the command


@pytest.fixture
def reports():
    return FakeReports(model=MODEL)


@pytest.fixture
def run(reports, monkeypatch, tmp_path):
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: reports)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frontal.dcm").write_bytes(radiograph())
    (tmp_path / "film.png").write_bytes(png())
    return lambda *args: CliRunner().invoke(medimage, ["report", *args])


def test_command_writes_both_results(run, tmp_path):
    options = ("--sr", "report.dcm", "--secondary-capture", "picture.dcm")
    assert run("frontal.dcm", *options).exit_code == 0
    document, capture = dcmread(tmp_path / "report.dcm"), dcmread(tmp_path / "picture.dcm")
    assert [texts(group, codes.DCM.Finding) for group in groups(document)] == [["Heart is normal."], ["Opacity."]]
    assert capture.SOPClassUID == SecondaryCaptureImageStorage
    assert run("frontal.dcm", *options).exit_code == 0
    assert dcmread(tmp_path / "report.dcm").SOPInstanceUID == document.SOPInstanceUID
    assert run("frontal.dcm", *options, "--again").exit_code == 0
    assert dcmread(tmp_path / "report.dcm").SOPInstanceUID != document.SOPInstanceUID
    assert dcmread(tmp_path / "picture.dcm").SOPInstanceUID != capture.SOPInstanceUID


def test_command_refuses_before_the_work_what_is_no_dicom_file(run, reports, tmp_path):
    result = run("film.png", "--sr", "report.dcm")
    assert (result.exit_code, result.stderr) == (1, f"Error: frontal_image: {NO_DICOM}\n")
    assert "folder" in run("frontal.dcm", "--sr", "nowhere/report.dcm").stderr
    assert reports.calls == []
    assert not (tmp_path / "report.dcm").exists()


def test_command_prints_the_report_of_a_server_that_tells_no_model(run, reports, tmp_path):
    reports.model = None
    result = run("frontal.dcm", "--sr", "report.dcm")
    assert result.stdout.startswith("1. Heart is normal.")
    assert (result.exit_code, result.stderr.startswith("Error: the server did not tell which checkpoint")) == (1, True)


class FakeArchive:
    """Holds objects by their UID, as `Archive.store` does."""

    def __init__(self):
        self.objects = {}
        self.is_closed = False

    def has(self, study, instance):
        if self.is_closed:
            raise ResponseError("HTTP 401, the archive refuses the credentials or needs some", status=401)
        return instance in self.objects

    def store(self, instances):
        known = {result.SOPInstanceUID: result for result in instances}
        found = tuple(known.keys() & self.objects.keys())
        self.objects |= known
        return Stored(tuple(known.keys() - set(found)), found)


@pytest.fixture
def archives(monkeypatch):
    """By the url of the service."""
    made = {}
    monkeypatch.setattr(Sources, "archive", lambda sources, url: made.setdefault(url, FakeArchive()))
    return made


def test_command_stores_results_once_and_again_when_asked(run, archives):
    to = ("--store-to", "dicomweb+http://127.0.0.1:8042/dicom-web/")
    first = run("frontal.dcm", *to)
    archive = archives["http://127.0.0.1:8042/dicom-web"]
    (uid,) = archive.objects
    assert (first.exit_code, first.stderr) == (0, f"Stored the structured report {uid}.\n")
    assert archive.objects[uid].SOPClassUID == ComprehensiveSRStorage
    second = run("frontal.dcm", *to, "--secondary-capture", "picture.dcm")
    assert (
        second.stderr.splitlines()[0] == f"The archive has the structured report {uid} already; --again stores another."
    )
    assert second.stderr.splitlines()[1].startswith("Stored the secondary capture ")
    assert len(archive.objects) == 2
    assert run("frontal.dcm", *to, "--again").exit_code == 0
    assert len(archive.objects) == 3


def test_command_asks_the_archive_before_the_work(run, reports, archives):
    archives["http://127.0.0.1:8042/d"] = FakeArchive()
    archives["http://127.0.0.1:8042/d"].is_closed = True
    result = run("frontal.dcm", "--store-to", "dicomweb+http://127.0.0.1:8042/d")
    assert (result.exit_code, reports.calls) == (1, [])
    assert result.stderr == "Error: HTTP 401, the archive refuses the credentials or needs some\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--again"], "--again is for --sr, --secondary-capture and --store"),
        (["--store", "--store-to", "dicomweb+http://host/d"], "--store and --store-to are both given; expected one"),
    ],
)
def test_command_refuses_options_without_effect(run, reports, options, message):
    result = run("frontal.dcm", *options)
    assert (result.exit_code, message in result.stderr, reports.calls) == (2, True, [])


def test_command_stores_a_file_nowhere_without_an_archive(run, reports, archives):
    result = run("frontal.dcm", "--store")
    assert result.exit_code == 2
    assert "STUDY is in no archive; name one with --store-to" in result.stderr
    result = run("frontal.dcm", "--store-to", "https://host/dicom-web")
    assert (result.exit_code, "expected an archive, dicomweb+https://host/dicom-web" in result.stderr) == (2, True)
    assert (reports.calls, archives) == ([], {})


def test_results_of_a_study_are_of_the_images_chosen(tmp_path):
    (tmp_path / "frontal.dcm").write_bytes(radiograph(ViewPosition="PA"))
    (tmp_path / "lateral.dcm").write_bytes(radiograph(number=2, ViewPosition="LL"))
    with CXRReportGen("grpc://unused", transport=FakeReports(model=MODEL)) as client:
        report = client.report(study=tmp_path)
    document = report.structured_report()
    assert referenced(document.CurrentRequestedProcedureEvidenceSequence) == [f"{STUDY}.9.1", f"{STUDY}.9.2"]
    files = (tmp_path / "frontal.dcm", tmp_path / "lateral.dcm")
    assert document.SOPInstanceUID == report.structured_report(files[0], lateral=files[1]).SOPInstanceUID
    with pytest.raises(InvalidInput, match="frontal is None; expected the DICOM file"):
        GROUNDED.structured_report()


@pytest.mark.parametrize(
    ("args", "option", "what"),
    [
        (["frontal.dcm", "--sr", "frontal.dcm"], "--sr", "an image of the report"),
        (["frontal.dcm", "--prior", "prior.dcm", "--sr", "./prior.dcm"], "--sr", "an image of the report"),
        (["frontal.dcm", "--lateral", "link.dcm", "--sr", "prior.dcm"], "--sr", "an image of the report"),
        (["study", "--secondary-capture", "study/frontal.dcm"], "--secondary-capture", "an image of the report"),
        (["study.zip", "--sr", "study.zip"], "--sr", "an image of the report"),
        (["frontal.dcm", "--sr", "x.dcm", "--secondary-capture", "x.dcm"], "--secondary-capture", "the place of --sr"),
        (["frontal.dcm", "--picture", "x.png", "--sr", "x.png"], "--sr", "the place of --picture"),
    ],
)
def test_command_takes_no_place_of_an_image_or_of_another_result(run, reports, tmp_path, args, option, what):
    for name in ("prior.dcm", "study/frontal.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(radiograph(ViewPosition="PA"))
    (tmp_path / "link.dcm").symlink_to("prior.dcm")
    with ZipFile(tmp_path / "study.zip", "w") as study:
        study.write(tmp_path / "study" / "frontal.dcm", "frontal.dcm")
    result = run(*args)
    assert (result.exit_code, what in result.stderr, option in result.stderr) == (2, True, True)
    assert reports.calls == []
    assert {dcmread(path).SOPClassUID for path in tmp_path.rglob("*.dcm")} == {DigitalXRayImageStorageForPresentation}


def test_command_reads_the_headers_once_for_all_results(run, monkeypatch):
    read = Mock(wraps=read_header)
    monkeypatch.setattr("medimage_client.reports.origin.read_header", read)
    assert run("frontal.dcm", "--sr", "report.dcm", "--secondary-capture", "picture.dcm").exit_code == 0
    assert [call.args[0] for call in read.call_args_list] == ["frontal_image"]
