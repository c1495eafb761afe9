"""Grey values of any depth to 8 bits through a window."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput

Window = tuple[float, float]  # (low, high) in the units of the values: shown as 0 and 255
DicomWindow = Literal["file", "percentile"] | Window  # the file's own, its 1st to 99th percentile, or (low, high)

GREY_BITS = (8, 10, 12, 14, 16)  # what detectors and scanners deliver inside 16-bit files
BAND_ROWS = 64  # of an image whose floats stay in the processor's cache


def apply_window(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Linear from `low` -> 0 to `high` -> 255, clipped outside; where low equals high, a threshold."""
    low, high = window
    if high <= low:
        return np.where(values > low, 255, 0).astype(np.uint8)
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    shown: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return shown


def apply_bit_range(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Whole numbers from 0 to 65535 over their actual bit range: the fewest of GREY_BITS that hold the maximum.

    A 12-bit film in a 16-bit file thus keeps its contrast, and white (4095) becomes 255; values are rounded.
    """
    brightest = values.max()
    white = next(2**bits - 1 for bits in GREY_BITS if brightest < 2**bits)
    # Single precision is exact here for each of the 65,536 values, and several times as fast as a table of them.
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        scaled = np.multiply(values[band], np.float32(255 / white), dtype=np.float32)
        np.add(scaled, np.float32(0.5), out=levels[band], casting="unsafe")  # cuts off what is behind the point
    return levels


def check_window(window: Window, name: str = "window") -> None:
    """Raise InvalidInput unless the window a caller gave is finite and increasing."""
    try:
        low, high = map(float, window)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} is not of two numbers; expected (low, high)") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InvalidInput(f"{name} is ({low:g}, {high:g}); expected two finite numbers, low < high")


def check_dicom_window(window: DicomWindow) -> DicomWindow:
    """The window for DICOM files that a caller gave, a list of two as a tuple.

    Raises:
        InvalidInput: none of those it can be.
    """
    if isinstance(window, str):
        if window not in ("file", "percentile"):
            raise InvalidInput("dicom_window is another text; expected 'file', 'percentile' or (low, high)")
        return window
    check_window(window, "dicom_window")
    low, high = window
    return float(low), float(high)
