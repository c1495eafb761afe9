"""Grey values of any depth to 8 bits through a window."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput

Window = tuple[float, float]  # (low, high) in the units of the values: shown as 0 and 255


def apply_window(values: NDArray[Any], window: Window) -> NDArray[np.uint8]:
    """Linear from `low` -> 0 to `high` -> 255, clipped outside; where low equals high, a threshold."""
    low, high = window
    if high <= low:
        return np.where(values > low, 255, 0).astype(np.uint8)
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    shown: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return shown


def check_window(window: Window) -> None:
    """Raise InvalidInput unless the window a caller gave is finite and increasing."""
    low, high = window
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InvalidInput(f"window is ({low}, {high}); expected two finite numbers, low < high")
