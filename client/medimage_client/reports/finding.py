"""What a chest X-ray report is made of: findings, and the boxes that say where.

Findings are clinical text: no repr and no message shows them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medimage_client.constants import REPORT_IMAGE_SIZE_PX
from medimage_client.errors import ResponseError
from medimage_client.schema.json_text import decode_json


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in fractions of the picture it is on: 0 is its left or top edge, 1 its right or bottom edge.

    The boxes of a report are on the square that the model saw, the middle of the image; the two methods carry them over
    to the original image.
    """

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def to_original(self, width: int, height: int) -> "Box":
        """On the original image of `width` x `height` pixels, by the function of the model's card.

        That function, `adjust_box_for_original_image_size`, cuts edges down to whole pixels, and crops before it
        resizes where the model does so after: a box may lie up to about two pixels beside where it belongs.
        """
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return Box(
            int(self.x_min * side + left) / width,
            int(self.y_min * side + top) / height,
            int(self.x_max * side + left) / width,
            int(self.y_max * side + top) / height,
        )

    def to_original_exact(self, width: int, height: int, image_size: int = REPORT_IMAGE_SIZE_PX) -> "Box":
        """On the original image of `width` x `height` pixels, where the model saw it.

        The inverse of the model's own preprocessing: the shorter side resized to `image_size`, the longer one to a
        whole number of pixels in proportion, then a square cut from the middle.
        """
        short = min(width, height)
        resized_width, resized_height = int(image_size * width / short), int(image_size * height / short)
        left, top = (resized_width - image_size) // 2, (resized_height - image_size) // 2
        return Box(
            (self.x_min * image_size + left) / resized_width,
            (self.y_min * image_size + top) / resized_height,
            (self.x_max * image_size + left) / resized_width,
            (self.y_max * image_size + top) / resized_height,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    text: str = field(repr=False)
    boxes: tuple[Box, ...]  # where it can be seen on the square that the model saw; none if it has no place


def read_findings(output: str) -> tuple[Finding, ...]:
    try:
        return findings_of(decode_json(output.encode()))
    except (ValueError, TypeError):  # a message of theirs may quote the text
        raise ResponseError(
            "the output is not the JSON of findings; expected [[text, null or a list of boxes], …]", status=200
        ) from None


def findings_of(value: Any) -> tuple[Finding, ...]:
    """Findings from the decoded JSON.

    Raises:
        ValueError, TypeError: not of the form above.
    """
    findings = []
    for text, boxes in check_list(value):
        if not isinstance(text, str):
            raise TypeError
        findings.append(Finding(text, tuple(box_of(box) for box in check_list([] if boxes is None else boxes))))
    return tuple(findings)


def box_of(value: Any) -> Box:
    if not all(isinstance(edge, int | float) and 0 <= edge <= 1 for edge in check_list(value)):
        raise ValueError
    x_min, y_min, x_max, y_max = map(float, value)
    return Box(x_min, y_min, x_max, y_max)


def check_list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value
