"""Stored values of a DICOM file to 8-bit grey: Modality LUT, VOI LUT or window, presentation (PS3.3 C.11)."""

from __future__ import annotations  # pydicom's types, without importing it

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import PERCENTILES
from medimage_client.errors import InvalidInput
from medimage_client.images.dicom_elements import describe, items, number, numbers, text, values
from medimage_client.images.dicom_pixels import EXPLICIT_BIG, Layout, Stored, transfer_syntax
from medimage_client.images.dicom_tables import read_lookup_table
from medimage_client.images.windowing import DicomWindow, Window, apply_window

if TYPE_CHECKING:
    from pydicom import Dataset

BLACK, WHITE = 0, 255
LARGEST = 1e300  # value that can be shown: differences between larger ones, and their multiples, overflow

# Functional group macros of enhanced multi-frame objects, and what each holds instead of the top level (PS3.3 C.7.6.16)
FRAME_MACROS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
}
OTHER_WINDOW = "dicom_window 'percentile' or (low, high) shows it in another way"


def is_little_endian(dataset: Dataset) -> bool:
    return transfer_syntax(dataset) != EXPLICIT_BIG


def frame_attributes(dataset: Dataset, index: int) -> Dataset:
    """The rescale and window that hold for one frame: top level, overlaid by the functional groups if there are any."""
    from pydicom import Dataset

    attributes = Dataset(dataset)
    attributes.file_meta = dataset.file_meta
    shared = values(dataset, "SharedFunctionalGroupsSequence")
    per_frame = values(dataset, "PerFrameFunctionalGroupsSequence")
    for group in (*shared[:1], *per_frame[index : index + 1]):
        for macro, keywords in FRAME_MACROS.items():
            for item in items(group, macro)[:1]:
                given = [keyword for keyword in keywords if values(item, keyword)]
                if given:
                    for keyword in keywords:
                        attributes.pop(keyword, None)
                for keyword in given:
                    attributes[keyword] = item[keyword]
    return attributes


def show_grey(
    stored: Stored, attributes: Dataset, layout: Layout, window: DicomWindow, *, is_whole_image: bool = True
) -> NDArray[np.uint8]:
    """(H, W) as it is meant to be seen: padding and what is not finite is black.

    Args:
        is_whole_image: whether there is nothing to be seen but this, so that it may not be lost in the file's window.

    Raises:
        InvalidInput: an element makes no sense, or nothing would be seen; names the element.
    """
    values = apply_modality(stored.values, attributes, layout)
    is_background = background(values, stored.is_padding)
    seen = values if is_background is None else values[~is_background]
    if not seen.size:
        raise InvalidInput(
            f"is a DICOM file whose pixels are all padding, {describe('PixelPaddingValue')}, or not finite numbers; "
            "expected an image"
        )
    if is_background is not None:
        values = np.where(is_background, seen.min(), values)  # so that nothing is made of what is no value
    with np.errstate(over="ignore", invalid="ignore"):  # of a window beyond all values, whose display is looked at
        shown, keywords = apply_display_window(values, seen, attributes, layout, window)
    if keywords and is_whole_image:
        check_shown(shown, values, keywords)
    if is_inverted(attributes, layout):
        shown = np.invert(shown)
    if is_background is not None:
        shown[is_background] = BLACK
    return shown


def background(values: NDArray[Any], is_padding: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    if values.dtype.kind != "f":
        return is_padding
    is_finite = np.isfinite(values)
    if is_finite.all():
        return is_padding
    hidden: NDArray[np.bool_] = ~is_finite if is_padding is None else ~is_finite | is_padding
    return hidden


def apply_modality(stored: NDArray[Any], attributes: Dataset, layout: Layout) -> NDArray[Any]:
    """The Modality LUT, or the rescale. A slope of 0 is none, as dcmtk has it: it would leave one value of all.

    Raises:
        InvalidInput: an element makes no sense, or the values that it gives are beyond LARGEST.
    """
    for item in items(attributes, "ModalityLUTSequence")[:1]:
        table = read_lookup_table(
            item, "LUTDescriptor", "LUTData", is_little=is_little_endian(attributes), is_signed=layout.is_signed
        )
        if table is not None:
            return table(stored)
    slope, intercept = number(attributes, "RescaleSlope"), number(attributes, "RescaleIntercept")
    if slope == 0 or (slope in (None, 1) and not intercept):
        return checked(stored, stored, layout.element)
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = stored.astype(np.float64) * (1 if slope is None else slope) + (intercept or 0)
    return checked(rescaled, stored, "RescaleSlope")


def checked(values: NDArray[Any], stored: NDArray[Any], keyword: str) -> NDArray[Any]:
    """The values, of which none is beyond LARGEST unless it was not finite before."""
    if values.dtype.kind == "f":
        finite = values[np.isfinite(stored)]
        if finite.size and not np.abs(finite).max() <= LARGEST:
            raise InvalidInput(
                f"is a DICOM file whose {describe(keyword)} makes values beyond {LARGEST:g}, which cannot be shown"
            )
    return values


def apply_display_window(
    values: NDArray[Any], seen: NDArray[Any], attributes: Dataset, layout: Layout, window: DicomWindow
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """To 0 … 255, and the elements of the file that did it; `seen` are the values that are no background."""
    if isinstance(window, tuple):
        return apply_window(values, window), ()
    if window == "file":
        for item in items(attributes, "VOILUTSequence")[:1]:
            is_signed = layout.is_signed or bool(seen.min() < 0)
            table = read_lookup_table(
                item, "LUTDescriptor", "LUTData", is_little=is_little_endian(attributes), is_signed=is_signed
            )
            if table is not None:
                return apply_window(table(values), (0, table.white)), ("VOILUTSequence",)
        found = first_window(attributes)
        if found is not None:
            return apply_file_window(values, *found, attributes), ("WindowCenter", "WindowWidth")
    return apply_window(values, automatic_window(seen)), ()


def automatic_window(seen: NDArray[Any]) -> Window:
    """From the 1st to the 99th percentile; from the least to the most where nearly all values are one."""
    low, high = np.percentile(seen, PERCENTILES)
    if low == high:
        low, high = seen.min(), seen.max()
    return float(low), float(high)


def first_window(attributes: Dataset) -> tuple[float, float] | None:
    """Center and width of the first window that makes sense."""
    pairs = zip(numbers(attributes, "WindowCenter"), numbers(attributes, "WindowWidth"), strict=False)
    return next(
        ((center, width) for center, width in pairs if math.isfinite(center) and math.isfinite(width) and width > 0),
        None,
    )


def apply_file_window(values: NDArray[Any], center: float, width: float, attributes: Dataset) -> NDArray[np.uint8]:
    """A window by its function (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    function = text(attributes, "VOILUTFunction")
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 (x - center) / width)), in the form that does not overflow
        return apply_window(np.tanh(2 * (values - center) / width), (-1, 1))
    # LINEAR is half a value lower and one narrower, because it maps whole numbers: it is not defined below a width of
    # 1, and at 1 it is a threshold, which makes no picture of values between whole numbers.
    is_exact = function == "LINEAR_EXACT" or width < 1 or (width == 1 and not is_whole(values))
    if is_exact:
        return apply_window(values, (center - width / 2, center + width / 2))
    return apply_window(values, (center - width / 2, center + width / 2 - 1))


def is_whole(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool((values == np.rint(values)).all())


def check_shown(shown: NDArray[np.uint8], values: NDArray[Any], keywords: tuple[str, ...]) -> None:
    """Refuse a display in which nothing is seen of an image: one level, or black and white alone of more values."""
    darkest, brightest = int(shown.min()), int(shown.max())
    if darkest == brightest:
        is_lost, left = bool(values.min() < values.max()), "one grey level"
    else:
        is_binary = (darkest, brightest) == (BLACK, WHITE) and bool(((shown == BLACK) | (shown == WHITE)).all())
        is_lost, left = is_binary and len(np.unique(values)) > 2, "black and white"
    if is_lost:
        what = " and ".join(map(describe, keywords))
        raise InvalidInput(f"is a DICOM file whose {what} would leave nothing but {left} of the image; {OTHER_WINDOW}")


def is_inverted(attributes: Dataset, layout: Layout) -> bool:
    """The presentation LUT shape (PS3.3 C.11.6) says it; without one MONOCHROME1 does."""
    shape = text(attributes, "PresentationLUTShape")
    return shape == "INVERSE" if shape in ("IDENTITY", "INVERSE") else layout.photometric == "MONOCHROME1"
