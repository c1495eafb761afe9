"""A chest X-ray report as the client returns it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast, get_args

from PIL import Image

from medimage_client.archive.choice import Choice
from medimage_client.errors import InvalidInput, MedImageError, ResponseError
from medimage_client.images.encoding import ImageInput
from medimage_client.images.windowing import DicomWindow
from medimage_client.reports.finding import Finding, read_findings
from medimage_client.reports.origin import Origin, read_images
from medimage_client.reports.picture import draw_findings
from medimage_client.reports.requests import request_of, text_of
from medimage_client.reports.secondary_capture import secondary_capture
from medimage_client.reports.structured_report import structured_report
from medimage_client.schema.reports import (
    ModelIdentity,
    ReportRequest,
    ReportTiming,
    Status,
    read_identity,
    read_timing,
)
from medimage_client.wire.transport import Outputs

if TYPE_CHECKING:
    from pydicom import Dataset

NO_MODEL = (
    "the server did not tell which checkpoint wrote the report, and a DICOM result has to; expected a Triton with "
    "cxrreportgen_stream of this version"
)


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a study.

    `status` is `complete`, `truncated` (cut by max_new_tokens or the model's length; an unfinished finding is dropped)
    or `malformed` (the model broke its own grammar; what could be read is there).
    """

    findings: tuple[Finding, ...]
    status: Status
    model: ModelIdentity | None = None  # what wrote it; None where the server does not tell
    choice: Choice | None = None  # of the images, where they were chosen of a study
    # Where its time went on the server; None where that does not tell. Two reports are equal whatever they took.
    timing: ReportTiming | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """All findings, one after the other."""
        return " ".join(finding.text for finding in self.findings)

    def draw(self, image: ImageInput, *, dicom_window: DicomWindow = "file") -> Image.Image:
        """The frontal image with numbered boxes, in a colour for each finding, and all findings below; RGB.

        Args:
            dicom_window: as the report was asked for.

        Raises:
            InvalidInput: not an image.
        """
        return draw_findings(self.findings, image, dicom_window)

    def structured_report(
        self,
        frontal: ImageInput | None = None,
        *,
        dicom_window: DicomWindow = "file",
        again: bool = False,
        **study: Any,
    ) -> "Dataset":
        """The report as a DICOM Comprehensive SR: a measurement group a finding, boxes in pixels of the frontal image.

        It follows TID 1500 of DICOM PS3.16. Patient and study are those of the frontal image. `save_as` of what is
        returned writes the file. Needs the extra `archive`.

        Args:
            frontal: the DICOM file that the report was asked with; None for the images that were chosen of a study.
            dicom_window: as in `draw`.
            again: give it a UID that no other has. Otherwise the UID is always the same of the same images, checkpoint,
                precision and options, so that an archive holds a result once.
            study: what else the report was asked with, as in `CXRReportGen.report`. Images have to be DICOM files.

        Raises:
            InvalidInput: an image is no DICOM file, or of another patient.
            MissingExtra: highdicom is not installed.
            MedImageError: the server did not tell its model.
        """
        request = self._request(frontal, study)
        origin = origin_of(self, request, read_images(request), dicom_window, again=again)
        return structured_report(self.findings, self.status, origin)

    def secondary_capture(
        self,
        frontal: ImageInput | None = None,
        *,
        dicom_window: DicomWindow = "file",
        again: bool = False,
        **study: Any,
    ) -> "Dataset":
        """What `draw` gives, with a notice that it is research output, as a DICOM Secondary Capture Image.

        For viewers that show no structured reports. Arguments and errors are those of `structured_report`.
        """
        request = self._request(frontal, study)
        images = read_images(request)  # before the drawing: it names the image at fault
        origin = origin_of(self, request, images, dicom_window, again=again)
        return secondary_capture(self.draw(request.frontal_image, dicom_window=dicom_window), origin)

    def _request(self, frontal: ImageInput | None, study: Mapping[str, Any]) -> ReportRequest:
        """What the report was asked with."""
        if frontal is not None:
            return request_of(frontal, **study)
        if self.choice is None:
            raise InvalidInput("frontal is None; expected the DICOM file, as the images were not chosen of a study")
        others = {"lateral": self.choice.lateral, "prior": self.choice.prior}
        chosen = {name: image.read() for name, image in others.items() if image is not None and name not in study}
        return request_of(self.choice.frontal.read(), **chosen, **study)


def origin_of(
    report: Report, request: ReportRequest, images: tuple["Dataset", ...], dicom_window: DicomWindow, *, again: bool
) -> Origin:
    """What the DICOM results of a report are made of.

    Args:
        images: as `read_images` reads those of the request.

    Raises:
        MedImageError: the server did not tell its model.
    """
    if report.model is None:
        raise MedImageError(NO_MODEL)
    return Origin(images, request, report.model, dicom_window, token_hex() if again else None)


def report_of(outputs: Outputs, choice: Choice | None = None) -> Report:
    """The report in the last outputs of a server, which may have no `model` and no `timing`.

    Raises:
        ResponseError: see `read_report`.
    """
    model = text_of(outputs, "model") if "model" in outputs else None
    timing = read_timing(text_of(outputs, "timing")) if "timing" in outputs else None
    report = read_report(text_of(outputs, "output"), text_of(outputs, "status"), model)
    return replace(report, choice=choice, timing=timing)


def read_report(output: str, status: str, model: str | None = None) -> Report:
    """A report from the server's `output`, the JSON of `[[text, null | [[x_min, y_min, x_max, y_max], …]], …]`.

    Raises:
        ResponseError: anything else; the message shows nothing of it.
    """
    if status not in get_args(Status):
        raise ResponseError(f"unknown status of a report; expected one of {list(get_args(Status))}", status=200)
    return Report(read_findings(output), cast(Status, status), None if model is None else read_identity(model))
