"""What each drawing starts from, a posed grid and its dice, and ends with, grey levels and the word PHANTOM on them."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medimage_export.phantoms.shapes import Array, Box, Grid, posed_grid


@dataclass(frozen=True, slots=True)
class Canvas:
    """The grid to draw on and the dice of one seed.

    Anatomy and finding have dice of their own: the same seed shows the same body with and without a finding,
    and at every size.
    """

    grid: Grid
    anatomy: np.random.Generator
    finding: np.random.Generator

    @classmethod
    def of(cls, seed: int, size: int) -> "Canvas":
        pose, anatomy, finding = (np.random.default_rng([seed, stream]) for stream in range(3))
        grid = posed_grid(
            size,
            degrees=pose.uniform(-6, 6),
            scale=pose.uniform(0.92, 1.08),
            shift=(pose.uniform(-0.06, 0.06), pose.uniform(-0.06, 0.06)),
        )
        return cls(grid, anatomy, finding)


@dataclass(frozen=True, slots=True)
class Drawing:
    picture: Array  # (size, size) grey or (size, size, 3) RGB, float32, nominally 0 .. 1
    boxes: list[Box] = field(default_factory=list)  # one around each drawn finding


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
