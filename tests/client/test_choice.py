"""Which images of a study a report takes: by which element, which of several, and what the report is told."""

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.sr import _concepts_dict
from pydicom.uid import DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing

from medimage_client import AsyncCXRReportGen, CXRReportGen, InvalidInput, choose, read_studies
from medimage_client.archive.choice import CODES
from tests.client.dicom_studies import ct_slice, file_of, radiograph, uid, write
from tests.client.fake_reports import FakeReports, sent
from tests.client.test_cli_reports import run  # noqa: F401


def chosen(tmp_path, *objects, **named):
    write(tmp_path, **{f"f{n}": ds for n, ds in enumerate(objects)})
    return choose(read_studies(tmp_path), **named)


def code(value, scheme="SCT"):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, scheme
    return Sequence([item])


def test_view_position_tells_frontal_and_lateral(tmp_path):
    choice = chosen(tmp_path, radiograph(1, 1, ViewPosition="LL"), radiograph(1, 2, ViewPosition="AP"))
    assert (choice.frontal.sop_uid, choice.lateral.sop_uid) == (uid(1, 1, 2), uid(1, 1, 1))
    assert choice.why == (
        f"frontal: image 2 of series 1 ({uid(1, 1, 2)}), View Position AP",
        f"lateral: image 1 of series 1 ({uid(1, 1, 1)}), View Position LL",
        "prior: no earlier study",
    )


def test_view_code_tells_where_there_is_no_position(tmp_path):
    objects = [
        radiograph(1, 1, ViewCodeSequence=code("R-10236", "SRT")),
        radiograph(1, 2, ViewCodeSequence=code("399348003")),
    ]
    choice = chosen(tmp_path, *objects)
    assert (choice.frontal.number, choice.lateral.number) == (2, 1)
    assert choice.why[0].endswith("view code 399348003")


def test_oblique_image_is_not_frontal_and_a_vendors_code_tells_nothing(tmp_path):
    oblique = radiograph(1, 1, ViewCodeSequence=code("399160007"), SeriesDescription="PA")
    other = radiograph(1, 2, ViewCodeSequence=code("17", "99ACME"), SeriesDescription="AP")
    choice = chosen(tmp_path, oblique, other)
    assert choice.frontal.number == 2
    assert choice.why[0].endswith("description 'AP'")


def test_codes_mean_what_pydicoms_table_of_cid_4010_says():
    meanings = {
        value: meaning
        for concept in _concepts_dict.concepts["SCT"].values()
        for value, (meaning, groups) in concept.items()
        if 4010 in groups
    }
    ours = {value: view for value, view in CODES.items() if value.isdecimal()}
    assert {value: meanings[value] for value in ours} == {
        "272479007": "postero-anterior",
        "399348003": "antero-posterior",
        "399033003": "frontal",
        "399067008": "lateral",
        "399173006": "left lateral",
        "399198007": "right lateral",
    }
    assert {"postero-anterior": "PA", "antero-posterior": "AP"}.items() <= {
        meanings[value]: view for value, view in ours.items()
    }.items()


@pytest.mark.parametrize(
    ("description", "view"),
    [
        ("CHEST P.A.", "frontal"),
        ("Chest AP/PA portable", "frontal"),
        ("W034 Thorax frontal", "frontal"),
        ("Chest, lat.", "lateral"),
        ("Thorax seitlich", "lateral"),
        ("PA and lateral", None),
        ("LAT DECUB AP", None),
        ("Papillon", None),
    ],
)
def test_descriptions_tell_where_nothing_else_does(tmp_path, description, view):
    others = [radiograph(1, n, series=n, SeriesDescription="Chest") for n in (2, 3)]
    objects = [radiograph(1, 1, SeriesDescription=description), *others]
    if view == "frontal":
        assert chosen(tmp_path, *objects).frontal.number == 1
    elif view == "lateral":
        assert chosen(tmp_path, *objects, frontal=uid(1, 2, 2)).lateral.number == 1
    else:
        with pytest.raises(InvalidInput, match="no image is told to be frontal; say which is, by its SOP Instance UID"):
            chosen(tmp_path, *objects)


def test_only_radiograph_of_no_view_is_the_frontal_one(tmp_path):
    choice = chosen(tmp_path, radiograph(1, 1), radiograph(1, 2, ViewPosition="LL"))
    assert choice.frontal.number == 1
    assert choice.why[0].endswith("the only one whose view is not told")


def test_several_frontal_images_are_named_and_the_last_pa_one_is_taken(tmp_path):
    objects = [
        radiograph(1, 1, ViewPosition="AP", AcquisitionDate="20260102", AcquisitionTime="120000"),
        radiograph(1, 2, ViewPosition="PA", AcquisitionDate="20260102", AcquisitionTime="100000"),
        radiograph(1, 3, ViewPosition="PA", AcquisitionDate="20260102", AcquisitionTime="110000"),
    ]
    choice = chosen(tmp_path, *objects)
    assert choice.frontal.number == 3
    assert choice.why[0].endswith(
        f"View Position PA; not taken: image 2 of series 1 ({uid(1, 1, 2)}); image 1 of series 1 ({uid(1, 1, 1)})"
    )


def test_image_for_presentation_comes_before_the_one_for_processing(tmp_path):
    raw = radiograph(1, 1, ViewPosition="PA", SOPClassUID=DigitalXRayImageStorageForProcessing, Modality="DX")
    shown = radiograph(1, 2, ViewPosition="AP", SOPClassUID=DigitalXRayImageStorageForPresentation, Modality="DX")
    for ds in (raw, shown):
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    assert chosen(tmp_path, raw, shown).frontal.number == 2


def test_what_is_no_radiograph_of_a_chest_is_not_taken(tmp_path):
    hand = radiograph(1, 1, ViewPosition="PA", BodyPartExamined="HAND")
    chest = radiograph(1, 2, ViewPosition="AP", BodyPartExamined="CHEST")
    assert chosen(tmp_path / "both", hand, chest).frontal.number == 2
    with pytest.raises(InvalidInput, match=r"no radiograph of a chest \(CR or DX\), but CT; say which"):
        chosen(tmp_path / "ct", ct_slice(0, 1))
    with pytest.raises(InvalidInput, match="there is no DICOM image"):
        chosen(tmp_path / "nothing")


def earlier(study, date, **attributes):
    return radiograph(study, 1, seed=study, StudyDate=date, **attributes)


def test_latest_study_is_reported_and_the_one_before_it_is_the_prior(tmp_path):
    objects = [
        radiograph(1, 1, ViewPosition="PA", StudyDate="20260301"),
        earlier(2, "20250101", ViewPosition="PA"),
        earlier(3, "20250601", ViewPosition="AP"),
        earlier(4, "20251201", ViewPosition="LL"),  # without a frontal image
    ]
    choice = chosen(tmp_path, *objects)
    assert (choice.frontal.study_uid, choice.prior.study_uid) == (uid(1), uid(3))
    assert choice.why[2] == f"prior: image 1 of series 1 ({uid(3, 1, 1)}), View Position AP; of the study of 20250601"


def test_two_studies_of_one_day_are_told_apart_by_time(tmp_path):
    objects = [
        radiograph(n, 1, ViewPosition="PA", AcquisitionDate="20260102", AcquisitionTime=time)
        for n, time in ((1, "090000"), (2, "080000"))
    ]
    choice = chosen(tmp_path, *objects)
    assert (choice.frontal.study_uid, choice.prior.study_uid) == (uid(1), uid(2))


def test_studies_of_the_same_time_are_not_guessed_between(tmp_path):
    both = [radiograph(n, 1, ViewPosition="PA") for n in (1, 2)]
    with pytest.raises(InvalidInput, match=f"their times are the same: {uid(1)}, {uid(2)}; give one"):
        chosen(tmp_path, *both)
    choice = chosen(tmp_path, frontal=uid(2, 1, 1))
    assert (choice.frontal.study_uid, choice.prior) == (uid(2), None)


def test_images_of_several_patients_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="studies of several patients"):
        chosen(tmp_path, radiograph(1, ViewPosition="PA"), radiograph(2, ViewPosition="PA", PatientID="other"))


def test_names_overrule_the_choice(tmp_path):
    objects = [
        radiograph(1, 1, ViewPosition="PA"),
        radiograph(1, 2, ViewPosition="LL"),
        radiograph(1, 3, ViewPosition="AP"),
        earlier(2, "20250101", ViewPosition="PA"),
    ]
    choice = chosen(tmp_path, *objects, frontal=uid(1, 1, 3), lateral="none", prior="none")
    assert (choice.frontal.number, choice.lateral, choice.prior) == (3, None, None)
    assert choice.why[1:] == ("lateral: none, as asked", "prior: none, as asked")
    of_the_earlier = chosen(tmp_path, frontal=uid(2, 1, 1))
    assert (of_the_earlier.frontal.study_uid, of_the_earlier.lateral) == (uid(2), None)
    assert of_the_earlier.prior is None
    with pytest.raises(InvalidInput, match=r"there is no image 1\.2\.3"):
        chosen(tmp_path, lateral="1.2.3")


# ---- reports of a study


@pytest.fixture
def study(tmp_path):
    return write(
        tmp_path / "study",
        frontal=radiograph(1, 1, ViewPosition="PA"),
        lateral=radiograph(1, 2, ViewPosition="LL", lateral=True),
        prior=earlier(2, "20250101", ViewPosition="PA"),
    )


IMAGES = ("frontal_image", "lateral_image", "prior_image")


def images_of(call):
    return {name: sent(call).get(name) for name in IMAGES}


@pytest.fixture
def three_images(study, tmp_path):
    """What the three files of the study are sent as, each by itself."""
    reports = FakeReports()
    with CXRReportGen("grpc://unused", transport=reports) as client:
        client.report(study / "frontal", lateral=study / "lateral", prior=study / "prior")
    images = images_of(reports.calls[0])
    assert len(set(images.values())) == 3
    return images


async def test_report_of_a_study_sends_its_images_and_says_which(study, three_images):
    reports = FakeReports()
    with CXRReportGen("grpc://unused", transport=reports) as client:
        report = client.report(study=study)
        with client.stream(study=str(study)) as stream:
            assert "".join(stream)
        assert stream.report == client.report(study=report.choice)
    async with AsyncCXRReportGen("grpc://unused", transport=FakeReports()) as client:
        assert (await client.report(study=read_studies(study))).choice.why == report.choice.why
    assert [images_of(call) for call in reports.calls] == [three_images] * 3
    assert [one.sop_uid for one in report.choice.images] == [uid(1, 1, 1), uid(1, 1, 2), uid(2, 1, 1)]


def test_images_that_are_given_take_the_place_of_chosen_ones(study, three_images, tmp_path):
    reports = FakeReports()
    before = write(tmp_path / "before", a=earlier(3, "20240101", ViewPosition="PA", PatientID="other"))
    with CXRReportGen("grpc://unused", transport=reports) as client:
        report = client.report(study=study, lateral="none", prior=study / "lateral")
        assert (report.choice.lateral, report.choice.prior, report.choice.why[2]) == (None, None, "prior: as given")
        report = client.report(study=study, prior=before)
        assert report.choice.prior.study_uid == uid(3)
        assert report.choice.why[2].endswith("its Patient ID is another than the study's")
        with pytest.raises(InvalidInput, match="frontal and study are both given"):
            client.report("film.png", study=study)
    first, second = map(images_of, reports.calls)
    assert first == three_images | {"lateral_image": None, "prior_image": three_images["lateral_image"]}
    assert second["prior_image"] not in (None, three_images["prior_image"])


@pytest.fixture
def reports():
    return FakeReports()


def test_command_takes_a_study_and_tells_its_choice_on_standard_error(run, reports, study, three_images):  # noqa: F811
    result = run("report", study)
    assert result.exit_code == 0
    assert result.stdout.startswith("1. Heart is normal.\n")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["frontal", "lateral", "prior"]
    overruled = ["--frontal", uid(1, 1, 2), "--lateral", "none", "--prior", study / "frontal"]
    assert run("report", study, *overruled).exit_code == 0
    assert [images_of(call) for call in reports.calls] == [
        three_images,
        {
            "frontal_image": three_images["lateral_image"],
            "lateral_image": None,
            "prior_image": three_images["frontal_image"],
        },
    ]


def test_command_names_the_images_that_it_cannot_tell_apart(run, reports, tmp_path):  # noqa: F811
    write(tmp_path, a=radiograph(1, 1), b=radiograph(1, 2))
    result = run("report", tmp_path)
    assert (result.exit_code, reports.calls) == (1, [])
    assert f"image 1 of series 1 ({uid(1, 1, 1)}); image 2 of series 1 ({uid(1, 1, 2)})" in result.stderr
    (tmp_path / "film").write_bytes(file_of(radiograph(1, 1)))
    single = run("report", tmp_path / "film", "--lateral", uid(1, 1, 2))
    assert (single.exit_code, reports.calls) == (2, [])
    assert f"{uid(1, 1, 2)} is for a study; STUDY is a single image" in single.stderr


def test_image_is_not_taken_twice_and_frontal_is_not_none(tmp_path):
    objects = (radiograph(1, 1, ViewPosition="PA"), radiograph(1, 2, ViewPosition="LL"))
    one = uid(1, 1, 2)
    with pytest.raises(InvalidInput, match=rf"image 2 of series 1 \({one}\) is taken for two of frontal, lateral and"):
        chosen(tmp_path, *objects, frontal=one, lateral=one)
    with pytest.raises(InvalidInput, match="is taken for two"):
        chosen(tmp_path, *objects, prior=uid(1, 1, 1))
    with pytest.raises(InvalidInput, match="frontal is none; a report needs a frontal image"):
        chosen(tmp_path, *objects, frontal="none")
    with (
        CXRReportGen("grpc://unused", transport=FakeReports()) as client,
        pytest.raises(InvalidInput, match="is taken for two"),
    ):
        client.report(study=tmp_path, prior=tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, as the files are made
def test_dates_of_older_objects_are_in_order_with_others_and_what_is_none_is_absent(tmp_path):
    objects = [
        radiograph(n, 1, ViewPosition="PA", StudyDate=date, AcquisitionDate=date)
        for n, date in enumerate(("2025.12.01", "20250601", "unknown", "2026.01.02"), start=1)
    ]
    choice = chosen(tmp_path, *objects)
    assert (choice.frontal.study_uid, choice.prior.study_uid) == (uid(4), uid(1))
    assert [study.date for study in read_studies(tmp_path).studies] == ["", "20250601", "20251201", "20260102"]
