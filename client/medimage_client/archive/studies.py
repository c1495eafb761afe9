"""Studies, their series and instances, as the headers of DICOM objects tell them, in the order of reading.

An instance knows where its object is and reads it when asked: a study of 300 slices takes the memory of its headers.
"""

from __future__ import annotations  # pydicom's types, without importing it

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

# What is read of a header, beside the UIDs
KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "InstanceNumber",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "ViewCodeSequence",
    "ImageLaterality",
    "Laterality",
    "ImageType",
    "PatientID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
SNOMED = ("SCT", "SRT", "SNM3", "99SDM", "")  # Coding Scheme Designators, the latter ones of older objects
PARALLEL = 1e-3  # orientations that differ by less are one: cosines are written with six digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One DICOM object with pixels. What could name the patient is in no repr."""

    name: str  # by which its user knows it: a path, or a URL
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    modality: str
    view: str  # View Position (0018,5101); empty if absent, as each text here
    view_code: str  # Code Value of the View Code Sequence (0054,0220), if it is of SNOMED
    laterality: str
    body_part: str
    descriptions: tuple[str, ...]  # of series, protocol and processing, those that there are
    image_type: tuple[str, ...]
    date: str = field(repr=False)  # of the study, YYYYMMDD
    acquired: str = field(repr=False)  # date and time, YYYYMMDDHHMMSS
    patient_id: str = field(repr=False)
    series_number: int | None
    number: int | None
    rows: int
    columns: int
    n_frames: int
    position: tuple[float, ...] | None  # (3,) mm, of the first frame's upper left pixel; None if there is none
    orientation: tuple[float, ...] | None  # (6,) cosines of its rows and columns
    frame_positions: tuple[tuple[float, ...], ...] = field(repr=False)  # of each frame; empty unless all have one
    read: Callable[[], bytes] = field(repr=False, compare=False)  # the whole object as a DICOM file

    @property
    def depth(self) -> float | None:
        """Millimetres along the normal of the image; None without position and orientation."""
        if self.position is None or self.orientation is None:
            return None
        return float(np.cross(self.orientation[:3], self.orientation[3:]) @ np.array(self.position))


@dataclass(frozen=True, slots=True)
class Series:
    uid: str
    instances: tuple[Instance, ...]  # in order, at least one

    @property
    def first(self) -> Instance:
        return self.instances[0]


@dataclass(frozen=True, slots=True)
class Study:
    uid: str
    series: tuple[Series, ...]  # in order, at least one

    @property
    def date(self) -> str:
        """YYYYMMDD, empty if no image says it."""
        return min((instance.date for instance in self.instances if instance.date), default="")

    @property
    def instances(self) -> tuple[Instance, ...]:
        return tuple(instance for series in self.series for instance in series.instances)


@dataclass(frozen=True, slots=True)
class Studies:
    """What a source holds."""

    studies: tuple[Study, ...]  # by date
    left_out: tuple[str, ...] = ()  # name and reason of each file or object that is no image
    notes: tuple[str, ...] = ()  # what else a reader should know, such as that the study still grows

    @classmethod
    def of(cls, instances: Iterable[Instance], left_out: Sequence[str] = (), notes: Sequence[str] = ()) -> Self:
        """Grouped and ordered; an object that comes twice, by its SOP Instance UID, is taken once."""
        unique: dict[str, Instance] = {}
        twice = []
        for instance in instances:
            first = unique.setdefault(instance.sop_uid, instance)
            if first is not instance:
                twice.append(f"{instance.name}: is the object of {first.name} again")
        by_study: dict[str, list[Instance]] = {}
        for instance in unique.values():
            by_study.setdefault(instance.study_uid, []).append(instance)
        studies = [Study(uid, series_of(group)) for uid, group in by_study.items()]
        studies.sort(key=lambda study: (study.date, study.uid))
        return cls(tuple(studies), (*left_out, *twice), tuple(notes))

    @property
    def instances(self) -> tuple[Instance, ...]:
        return tuple(instance for study in self.studies for instance in study.instances)


def series_of(instances: Sequence[Instance]) -> tuple[Series, ...]:
    """By series number, those without one last."""
    by_series: dict[str, list[Instance]] = {}
    for instance in instances:
        by_series.setdefault(instance.series_uid, []).append(instance)
    series = [Series(uid, tuple(ordered(group))) for uid, group in by_series.items()]
    return tuple(sorted(series, key=lambda one: (*number_key(one.first.series_number), one.uid)))


def ordered(instances: Sequence[Instance]) -> list[Instance]:
    """By position along the normal where every image has one, each orientation for itself; else by instance number."""
    by_number = sorted(instances, key=lambda one: (*number_key(one.number), one.name))
    if any(instance.depth is None for instance in instances):
        return by_number
    orientations: list[NDArray[Any]] = []  # in the order of their first image

    def orientation_of(instance: Instance) -> int:
        cosines = np.array(instance.orientation)
        for index, known in enumerate(orientations):
            if np.abs(known - cosines).max() < PARALLEL:
                return index
        orientations.append(cosines)
        return len(orientations) - 1

    # rounded, so that images of one position, such as phases of the heart, stay in the order of their numbers
    keys = {one.sop_uid: (orientation_of(one), round(one.depth or 0.0, 3)) for one in by_number}
    return sorted(by_number, key=lambda one: keys[one.sop_uid])


def number_key(number: int | None) -> tuple[bool, int]:
    return (number is None, number or 0)


def instance_of(header: Dataset, *, name: str, read: Callable[[], bytes]) -> Instance | None:
    """The instance of a header, of a file or of an archive's metadata; None if the object has no pixels.

    An element that is damaged or of another kind counts as absent: a study is shown as far as it can be.
    """
    rows, columns = whole(header, "Rows"), whole(header, "Columns")
    if not rows or not columns:
        return None
    shared = next(iter(items(header, "SharedFunctionalGroupsSequence")), None)
    frames = items(header, "PerFrameFunctionalGroupsSequence")
    frame = next(iter(frames), None)
    code = next(iter(items(header, "ViewCodeSequence")), None)
    acquired = header_date(header, "AcquisitionDate", "ContentDate", "StudyDate")
    time = header_text(header, "AcquisitionTime", "ContentTime", "StudyTime").replace(":", "")
    described = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
    return Instance(
        name=name,
        read=read,
        study_uid=header_text(header, "StudyInstanceUID"),
        series_uid=header_text(header, "SeriesInstanceUID"),
        sop_uid=header_text(header, "SOPInstanceUID"),
        sop_class_uid=header_text(header, "SOPClassUID"),
        modality=header_text(header, "Modality"),
        view=header_text(header, "ViewPosition"),
        view_code=snomed_code(code),
        laterality=header_text(header, "ImageLaterality", "Laterality"),
        body_part=header_text(header, "BodyPartExamined"),
        descriptions=tuple(value for keyword in described if (value := header_text(header, keyword))),
        image_type=header_texts(header, "ImageType"),
        date=header_date(header, "StudyDate"),
        acquired=acquired + time if acquired else "",
        patient_id=header_text(header, "PatientID"),
        series_number=whole(header, "SeriesNumber"),
        number=whole(header, "InstanceNumber"),
        rows=rows,
        columns=columns,
        n_frames=whole(header, "NumberOfFrames") or 1,
        position=place_of_image(header, shared, frame, "PlanePositionSequence", "ImagePositionPatient", 3),
        frame_positions=positions_of(frames),
        orientation=place_of_image(header, shared, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
    )


def snomed_code(code: Dataset | None) -> str:
    """Its value; empty for codes of a vendor, which mean nothing to others."""
    if code is None or header_text(code, "CodingSchemeDesignator") not in SNOMED:
        return ""
    return header_text(code, "CodeValue")


def place_of_image(
    header: Dataset, shared: Dataset | None, frame: Dataset | None, macro: str, keyword: str, size: int
) -> tuple[float, ...] | None:
    """A position or an orientation, which enhanced objects have in functional groups (PS3.3 C.7.6.16)."""
    places = [header, *(item for group in (frame, shared) if group is not None for item in items(group, macro))]
    return next((values for place in places if (values := vector(place, keyword, size)) is not None), None)


def positions_of(frames: Sequence[Dataset]) -> tuple[tuple[float, ...], ...]:
    """Of each frame (PS3.3 C.7.6.16.2.3); empty unless all have one."""
    planes = [next(iter(items(frame, "PlanePositionSequence")), None) for frame in frames]
    positions = [None if plane is None else vector(plane, "ImagePositionPatient", 3) for plane in planes]
    known = tuple(position for position in positions if position is not None)
    return known if len(known) == len(frames) else ()


def vector(header: Dataset, keyword: str, size: int) -> tuple[float, ...] | None:
    try:
        values = tuple(float(value) for value in header.get(keyword) or ())
    except Exception:  # pydicom's, of almost any type, for a value that is not of its VR
        return None
    return values if len(values) == size and all(np.isfinite(values)) else None


def items(header: Dataset, keyword: str) -> list[Dataset]:
    value = value_of(header, keyword)
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else []


def header_text(header: Dataset, *keywords: str) -> str:
    """The first value of the first element that has one, as text without white space around it."""
    return next((value for keyword in keywords for value in header_texts(header, keyword) if value), "")


def header_date(header: Dataset, *keywords: str) -> str:
    """The first date, YYYYMMDD; older objects have YYYY.MM.DD. What is no date counts as absent."""
    dates = (header_text(header, keyword).replace(".", "") for keyword in keywords)
    return next((date for date in dates if re.fullmatch(r"[0-9]{8}", date)), "")


def header_texts(header: Dataset, keyword: str) -> tuple[str, ...]:
    value = value_of(header, keyword)
    if value is None:
        return ()
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return tuple(printable(str(one)).strip() for one in values)


def printable(text: str) -> str:
    """Without what a terminal would act on or cannot show; a header may hold anything."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def whole(header: Dataset, keyword: str) -> int | None:
    try:
        return int(header_text(header, keyword))
    except ValueError:
        return None


def value_of(header: Dataset, keyword: str) -> Any:
    try:
        return header.get(keyword)
    except Exception:  # pydicom's, of almost any type, for a value that is not of its VR
        return None
