"""The picture of a report as a DICOM Secondary Capture, for viewers that show no structured reports."""

from __future__ import annotations  # pydicom's types, without importing it

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from medimage_client.reports.origin import ALGORITHM, NOTICE, Origin, discreet
from medimage_client.reports.picture import BLACK, WHITE, font_of, stack, wrap

if TYPE_CHECKING:
    from pydicom import Dataset

KIND = "secondary capture"
SERIES_NUMBER = 9702  # of few other series
# Of the image below the boxes, which the picture does not undo (PS3.3, C.7.6.1.1.5 and C.7.6.1.1.6).
INHERITED = (
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def secondary_capture(picture: Image.Image, origin: Origin) -> Dataset:
    """See `Report.secondary_capture`.

    Args:
        picture: as `Report.draw` gives it.
    """
    from highdicom.sc import SCImage
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    frontal = origin.frontal
    with discreet():
        capture = SCImage.from_ref_dataset(
            ref_dataset=frontal,
            pixel_array=np.asarray(stack(picture, draw_notice(picture.width))),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # asked for here; see below
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **origin.attributes(KIND, SERIES_NUMBER),
        )
        capture.ConversionType = "WSD"  # made by a workstation
        setattr(capture, "PatientOrientation", frontal.get("PatientOrientation") or "")  # noqa: B010  # typed as a list
        capture.BodyPartExamined = "CHEST"
        capture.ImageComments = NOTICE
        capture.DerivationDescription = f"Boxes and sentences of {ALGORITHM} drawn on the frontal image"
        capture.SourceImageSequence = []
        for image in origin.images:
            source = Dataset()
            source.ReferencedSOPClassUID = image.SOPClassUID
            source.ReferencedSOPInstanceUID = image.SOPInstanceUID
            source.PurposeOfReferenceCodeSequence = [
                CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
            ]
            capture.SourceImageSequence.append(source)
        for keyword in INHERITED:
            if keyword in frontal:
                capture[keyword] = frontal[keyword]
    return capture


def draw_notice(width: int) -> Image.Image:
    """The notice on a strip of the picture's width."""
    font = font_of(width)
    line_height = round(1.4 * font.getbbox("Åg")[3])
    lines = list(wrap(NOTICE, width - line_height, font))
    strip = Image.new("RGB", (width, line_height * (len(lines) + 1)), BLACK)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((line_height // 2, line_height // 2 + number * line_height), line, WHITE, font)
    return strip
