"""A chest X-ray report as the client returns it."""

from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast, get_args

from PIL import Image

from medimage_client.errors import MedImageError, ResponseError
from medimage_client.images.encoding import ImageInput
from medimage_client.reports.finding import Finding, read_findings
from medimage_client.reports.origin import Origin, read_images
from medimage_client.reports.picture import draw_findings
from medimage_client.reports.requests import request_of, text_of
from medimage_client.reports.secondary_capture import secondary_capture
from medimage_client.reports.structured_report import structured_report
from medimage_client.schema.reports import ModelIdentity, ReportRequest, Status, read_identity
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

    @property
    def text(self) -> str:
        """All findings, one after the other."""
        return " ".join(finding.text for finding in self.findings)

    def draw(self, image: ImageInput) -> Image.Image:
        """The frontal image with numbered boxes, in a colour for each finding, and all findings below; RGB.

        Raises:
            InvalidInput: not an image.
        """
        return draw_findings(self.findings, image)

    def structured_report(self, frontal: ImageInput, *, again: bool = False, **study: Any) -> "Dataset":
        """The report as a DICOM Comprehensive SR: a measurement group a finding, boxes in pixels of the frontal image.

        It follows TID 1500 of DICOM PS3.16. Patient and study are those of the frontal image. `save_as` of what is
        returned writes the file. Needs the extra `archive`.

        Args:
            frontal: the DICOM file that the report was asked with.
            again: give it a UID that no other has. Otherwise the UID is always the same of the same images, checkpoint,
                precision and options, so that an archive holds a result once.
            study: what else the report was asked with, as in `CXRReportGen.report`. Images have to be DICOM files.

        Raises:
            InvalidInput: an image is no DICOM file, or of another patient.
            MissingExtra: highdicom is not installed.
            MedImageError: the server did not tell its model.
        """
        return structured_report(self.findings, self.status, self._origin(request_of(frontal, **study), again))

    def secondary_capture(self, frontal: ImageInput, *, again: bool = False, **study: Any) -> "Dataset":
        """What `draw` gives, with a notice that it is research output, as a DICOM Secondary Capture Image.

        For viewers that show no structured reports. Arguments and errors are those of `structured_report`.
        """
        origin = self._origin(request_of(frontal, **study), again)
        return secondary_capture(self.draw(frontal), origin)

    def _origin(self, request: ReportRequest, again: bool) -> Origin:
        if self.model is None:
            raise MedImageError(NO_MODEL)
        return Origin(read_images(request), request, self.model, token_hex() if again else None)


def report_of(outputs: Outputs) -> Report:
    """The report in the last outputs of a server, which may have no `model`.

    Raises:
        ResponseError: see `read_report`.
    """
    model = text_of(outputs, "model") if "model" in outputs else None
    return read_report(text_of(outputs, "output"), text_of(outputs, "status"), model)


def read_report(output: str, status: str, model: str | None = None) -> Report:
    """A report from the server's `output`, the JSON of `[[text, null | [[x_min, y_min, x_max, y_max], …]], …]`.

    Raises:
        ResponseError: anything else; the message shows nothing of it.
    """
    if status not in get_args(Status):
        raise ResponseError(f"unknown status of a report; expected one of {list(get_args(Status))}", status=200)
    return Report(read_findings(output), cast(Status, status), None if model is None else read_identity(model))
