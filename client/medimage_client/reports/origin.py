"""The DICOM images that a report was made of: what its DICOM results say of them, and what they copy of the patient.

Values of a patient are in no message and no log. pydicom and highdicom, of the extra `archive`, quote them in warnings;
those are kept quiet.
"""

from __future__ import annotations  # pydicom's types, without importing it

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from medimage_client.errors import InvalidInput, MissingExtra
from medimage_client.images.dicom import Bounded, is_dicom
from medimage_client.images.dicom_elements import describe, quiet, whole
from medimage_client.images.encoding import ImageInput, read_file
from medimage_client.images.windowing import DicomWindow
from medimage_client.schema.reports import IMAGE_INPUTS, ModelIdentity, ReportRequest

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER = "medimage-triton"
ALGORITHM = "CXRReportGen"
SERIES_DESCRIPTION = f"{ALGORITHM}, research output"
NOTICE = (
    "Research output of a machine learning model, not reviewed by a physician. Not for diagnosis or treatment. "
    "Boxes are where the model places a finding; they are no measurements."
)
# Of an image that a result refers to.
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
# Of patient and study, type 2: results have them, if without a value (PS3.3, C.7.1.1 and C.7.2.1).
COPIED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
CHECKED = ("PatientBirthDate", "StudyDate", "StudyTime")  # highdicom refuses what is no date or time
SEXES = ("M", "F", "O")
UTF_8 = "ISO_IR 192"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a DICOM result was made of."""

    images: tuple[Dataset, ...] = field(repr=False)  # headers, in the order of the request, the frontal one first
    request: ReportRequest
    model: ModelIdentity
    dicom_window: DicomWindow = "file"  # how the model saw the images
    salt: str | None = None  # makes UIDs that no other run makes

    @property
    def frontal(self) -> Dataset:
        return self.images[0]

    @property
    def frame_number(self) -> int | None:
        """That of the frame that the model saw, from 1; None where there is no other, whose number is left out."""
        return 1 if whole(self.frontal, "NumberOfFrames", 1) > 1 else None

    @property
    def options(self) -> dict[str, object]:
        """What the model was asked with, beside the images. The sections are texts of the patient."""
        names = [option.name for option in fields(self.request) if option.name not in IMAGE_INPUTS]
        return {name: getattr(self.request, name) or None for name in names} | {"dicom_window": self.dicom_window}

    def uid(self, *names: str) -> str:
        """A UID that is always the same of the same names, images, checkpoint, precision and options.

        It is a hash, which does not tell what it was made of.
        """
        from pydicom.uid import generate_uid

        made_of = {
            "names": names,
            "images": [str(image.SOPInstanceUID) for image in self.images],
            "model": [self.model.checkpoint_sha256 or self.model.checkpoint, self.model.precision],
            "options": self.options,
            "salt": self.salt,
        }
        return str(generate_uid(entropy_srcs=[json.dumps(made_of, sort_keys=True)]))

    def attributes(self, kind: str, series_number: int) -> dict[str, Any]:
        """What highdicom asks of a result of a kind, which is alone in its series: its UIDs and who made it."""
        return {
            "series_instance_uid": self.uid(kind, "series"),
            "series_number": series_number,
            "series_description": SERIES_DESCRIPTION,
            "sop_instance_uid": self.uid(kind),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": ALGORITHM,
            "software_versions": self.model.version,
            "specific_character_set": UTF_8,
        }


def read_images(request: ReportRequest) -> tuple[Dataset, ...]:
    """The headers of a request's images.

    Raises:
        InvalidInput: names the image that is no DICOM file, lacks what a result refers to, or is of another patient.
        MissingExtra: highdicom is not installed.
    """
    try:
        import highdicom.sr  # noqa: F401  # looked for before the work, of which it is a part
    except ModuleNotFoundError:
        raise MissingExtra("writing DICOM results", "highdicom", "archive") from None
    images = {name: image for name in IMAGE_INPUTS if (image := getattr(request, name)) is not None}
    headers = {name: read_header(name, image) for name, image in images.items()}
    patient, *others = (header.PatientID for header in headers.values())
    for name, other in zip(list(headers)[1:], others, strict=True):
        if patient and other and other != patient:
            raise InvalidInput("has another Patient ID (0010,0020) than frontal_image; a result is of one", column=name)
    return tuple(headers.values())


def read_header(column: str, image: ImageInput) -> Dataset:
    """All but the pixels of a DICOM file, with the attributes of COPIED, in a form that can be copied."""
    from pydicom import dcmread

    try:
        file = b"" if isinstance(image, Image.Image | np.ndarray) else read_file(image)
    except InvalidInput as error:
        raise error.at(column=column) from error
    if not is_dicom(file):
        raise InvalidInput(
            "is not a DICOM file; a DICOM result refers to the images it was made of, so expected DICOM files",
            column=column,
        )
    with discreet():
        try:
            header = dcmread(Bounded(BytesIO(file)), stop_before_pixels=True, force=True)  # is_dicom has looked
            header.decode()
            missing = [keyword for keyword in NEEDED if not header.get(keyword)]
            if not missing:
                tidy(header)
                whole(header, "NumberOfFrames", 1)  # refused by its name if it is none
        except InvalidInput as error:
            raise error.at(column=column) from None
        except Exception as error:  # of pydicom almost any type, whose text may quote the file
            raise InvalidInput(
                f"is a DICOM file that cannot be read ({type(error).__name__}); expected a complete image object",
                column=column,
            ) from None
    if missing:
        raise InvalidInput(
            f"is a DICOM file without {describe(missing[0])}, by which a result refers to it", column=column
        )
    return header


def tidy(header: Dataset) -> None:
    """Empty what is missing or no date, time or sex, so that it can be copied."""
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    for keyword in COPIED:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    for keyword in CHECKED:
        try:
            validate_value(header[keyword].VR, str(header[keyword].value), RAISE)
        except ValueError:
            setattr(header, keyword, "")
    if header.PatientSex not in SEXES:
        header.PatientSex = ""


@contextmanager
def discreet() -> Iterator[None]:
    """Nothing of a patient is logged, warned of or refused for its value by pydicom and highdicom."""
    from pydicom.config import disable_value_validation

    log = logging.getLogger("highdicom")
    with quiet(), disable_value_validation():  # one thread at a time
        level = log.level
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(level)
