"""A chest X-ray report as the client returns it."""

from dataclasses import dataclass
from typing import cast, get_args

from PIL import Image

from medimage_client.archive.choice import Choice
from medimage_client.errors import ResponseError
from medimage_client.images.encoding import ImageInput
from medimage_client.images.windowing import DicomWindow
from medimage_client.reports.finding import Finding, read_findings
from medimage_client.reports.picture import draw_findings
from medimage_client.schema.reports import Status


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a study.

    `status` is `complete`, `truncated` (cut by max_new_tokens or the model's length; an unfinished finding is dropped)
    or `malformed` (the model broke its own grammar; what could be read is there).
    """

    findings: tuple[Finding, ...]
    status: Status
    choice: Choice | None = None  # of the images, where they were chosen of a study

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


def read_report(output: str, status: str, choice: Choice | None = None) -> Report:
    """A report from the server's `output`, the JSON of `[[text, null | [[x_min, y_min, x_max, y_max], …]], …]`.

    Raises:
        ResponseError: anything else; the message shows nothing of it.
    """
    if status not in get_args(Status):
        raise ResponseError(f"unknown status of a report; expected one of {list(get_args(Status))}", status=200)
    return Report(read_findings(output), cast(Status, status), choice)
