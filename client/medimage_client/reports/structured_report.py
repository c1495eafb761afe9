"""A report as a DICOM structured report: Comprehensive SR by template TID 1500, Measurement Report (PS3.16).

One measurement group a finding, with its sentence as text, its boxes, and the algorithm that wrote it. A group without
boxes is of TID 1501, with one of TID 1410; of several regions only TID 1411 allows more than one in a group.

Boxes are closed polylines of five points in pixels of the frontal image: (column, row), where (0, 0) is the top left
corner of the first pixel, not its middle (PS3.3, C.18.6.1).
"""

from __future__ import annotations  # pydicom's types, without importing it

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput
from medimage_client.reports.finding import Box, Finding
from medimage_client.reports.origin import ALGORITHM, MANUFACTURER, NOTICE, Origin, discreet
from medimage_client.schema.reports import ModelIdentity, Status

if TYPE_CHECKING:
    from pydicom import Dataset

KIND = "structured report"
SERIES_NUMBER = 9701  # of few other series
NO_FINDINGS = "The model wrote no finding."
NO_TEXT = "The model wrote no text for this finding."
PARTIAL = {  # why a document is not complete, by the report's status
    "truncated": "the model's text was cut before its end",
    "malformed": "parts of the model's text could not be read",
}
CHEST_X_RAY = ("399208008", "SCT", "Chest X-ray")


def structured_report(findings: Sequence[Finding], status: Status, origin: Origin) -> Dataset:
    """See `Report.structured_report`."""
    from highdicom.sr import ComprehensiveSR

    with discreet(), known_class(origin.frontal):
        document = ComprehensiveSR(
            evidence=origin.images,
            content=content(findings, origin)[0],
            is_complete=status == "complete",
            **origin.attributes(KIND, SERIES_NUMBER),
        )
        if status != "complete":
            document.CompletionFlagDescription = PARTIAL[status]
    return document


@contextmanager
def known_class(image: Dataset) -> Iterator[None]:
    """highdicom looks up what an image of its class has.

    Raises:
        InvalidInput: it does not know the class.
    """
    try:
        yield
    except KeyError as error:
        if image.SOPClassUID not in str(error):
            raise
        raise InvalidInput(
            f"is of the SOP Class {image.SOPClassUID}, which is none of an image in DICOM; expected a radiograph",
            column="frontal_image",
        ) from None


def content(findings: Sequence[Finding], origin: Origin) -> Any:
    """The tree of the document: a sequence with its root."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
        TextContentItem,
    )
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    model = origin.model
    device = DeviceObserverIdentifyingAttributes(
        uid=device_uid(model), name=ALGORITHM, manufacturer_name=MANUFACTURER, model_name=model.checkpoint
    )
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, observer_identifying_attributes=device)
        ),
        procedure_reported=Code(*CHEST_X_RAY),
        imaging_measurements=[
            group(number, finding, origin)
            for number, finding in enumerate(findings or [Finding(NO_FINDINGS, ())], start=1)
        ],
    )
    notice = TextContentItem(codes.DCM.Comment, NOTICE, relationship_type="CONTAINS")
    report[0].ContentSequence.insert(-1, notice)  # before the findings
    return report


def group(number: int, finding: Finding, origin: Origin) -> Any:
    """The measurement group of a finding: a sequence with its container."""
    from highdicom.sr import (
        AlgorithmIdentification,
        ImageRegion,
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        SourceImageForRegion,
        TextContentItem,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom.sr.codedict import codes

    image = origin.frontal
    frames = None if origin.frame_number is None else [origin.frame_number]
    source = SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID, frames)
    regions = [ImageRegion("POLYLINE", polyline(box, image.Columns, image.Rows), source) for box in finding.boxes]
    about: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(origin.uid(KIND, "finding", str(number)), f"Finding {number}"),
        "algorithm_id": AlgorithmIdentification(
            ALGORITHM,
            origin.model.version,
            parameters(origin),
            family=codes.cid7162.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        ),
    }
    made: Any  # its classes have no base but a list
    match regions:
        case []:
            made = MeasurementsAndQualitativeEvaluations(**about)
        case [region]:
            made = PlanarROIMeasurementsAndQualitativeEvaluations(**about, referenced_region=region)
        case _:
            made = VolumetricROIMeasurementsAndQualitativeEvaluations(**about, referenced_regions=regions)
    sentence = TextContentItem(codes.DCM.Finding, finding.text or NO_TEXT, relationship_type="CONTAINS")
    made[0].ContentSequence.append(sentence)
    return made


def polyline(box: Box, columns: int, rows: int) -> NDArray[np.float64]:
    """(5, 2) corners of a box on the image that the model saw the middle of, back to the first."""
    box = box.to_original_exact(columns, rows)
    # a box may be inside out: the grammar does not forbid it
    left, right = sorted((box.x_min * columns, box.x_max * columns))
    top, bottom = sorted((box.y_min * rows, box.y_max * rows))
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])


def parameters(origin: Origin) -> list[str]:
    """What else the algorithm is known by; of the options only those that are no text of the patient."""
    model, options = origin.model, origin.options
    return [
        f"checkpoint: {model.checkpoint}",
        f"checkpoint SHA-256: {model.checkpoint_sha256 or 'none, its weights are random'}",
        f"precision: {model.precision}",
        *(
            f"{name}: {options[name]}"
            for name in ("mode", "max_new_tokens", "constrained", "dicom_window")
            if options[name]
        ),
    ]


def device_uid(model: ModelIdentity) -> str:
    """The same for all reports of a checkpoint in a precision."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[ALGORITHM, model.checkpoint_sha256 or model.checkpoint, model.precision]))
