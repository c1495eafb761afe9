"""Pictures to measure with: drawings of chest films in any size, and PNG files."""

from io import BytesIO

import numpy as np
from PIL import Image

from medimage_export.phantoms import CAPTIONS, phantom


def film(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A chest phantom, (height, width) uint8."""
    return phantom(CAPTIONS[0], seed, size=max(width, height)).image[:height, :width]


def png(pixels: np.ndarray) -> bytes:
    """The file of an image as Pillow writes it by default."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the noise of a detector, which PNG cannot compress; float64 of 0 to 255."""
    return (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255)
