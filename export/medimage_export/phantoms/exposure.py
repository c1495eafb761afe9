"""The last step of every drawing: from attenuation to the grey levels of a machine, with the word PHANTOM on them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medimage_export.phantoms.shapes import Array


def expose(picture: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast and grain differ from seed to seed, as between machines."""
    gain, offset, grain = rng.uniform(0.85, 1.15), rng.uniform(-0.03, 0.06), rng.uniform(0.005, 0.03)
    noise = rng.standard_normal(picture.shape[:2], dtype=np.float32) * np.float32(grain)
    exposed = picture * np.float32(gain) + np.float32(offset)
    exposed += noise if picture.ndim == 2 else noise[..., None]
    return (exposed.clip(0, 1) * 255).round().astype(np.uint8)


def stamp(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write PHANTOM in white into the top left corner."""
    stamped = Image.fromarray(image)
    size = image.shape[0]
    font = ImageFont.load_default(size=max(size / 24, 6))
    ImageDraw.Draw(stamped).text((size / 64, size / 64), "PHANTOM", fill="white", font=font)
    return np.asarray(stamped)
