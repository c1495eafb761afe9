"""Soft shapes on a posed grid: the pencils of the phantom drawings.

Coordinates are those of the anatomy: x to the right, y down, the picture spans about -1 .. 1 both ways.
Every mask is (size, size) float32 in 0 .. 1 with an edge of width `edge`, so drawings look alike at any size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Anatomy coordinates of each pixel centre; both arrays are (size, size) float32."""

    x: Array
    y: Array

    @property
    def size(self) -> int:
        return self.x.shape[0]


def posed_grid(size: int, *, degrees: float, scale: float, shift: Point) -> Grid:
    """A grid on which whatever is drawn appears rotated, magnified and shifted by these amounts."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    x, y = axis[None, :] - np.float32(shift[0]), axis[:, None] - np.float32(shift[1])
    cos, sin = np.float32(np.cos(np.radians(degrees)) / scale), np.float32(np.sin(np.radians(degrees)) / scale)
    return Grid(x * cos + y * sin, y * cos - x * sin)


def ramp(signed_distance: Array, edge: float) -> Array:
    """1 where the distance is well above zero, 0 well below, linear over `edge` between."""
    return np.clip(signed_distance * np.float32(1 / edge) + np.float32(0.5), 0, 1)


def ellipse(grid: Grid, centre: Point, radii: Point, *, degrees: float = 0.0, edge: float = 0.02) -> Array:
    cos, sin = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    dx, dy = grid.x - np.float32(centre[0]), grid.y - np.float32(centre[1])
    u, v = (dx * cos + dy * sin) / np.float32(radii[0]), (dy * cos - dx * sin) / np.float32(radii[1])
    return ramp((1 - np.sqrt(u * u + v * v)) * np.float32(min(radii)), edge)


def capsule(grid: Grid, start: Point, end: Point, radius: float, *, edge: float = 0.02) -> Array:
    """A thick line with round ends."""
    dx, dy = grid.x - np.float32(start[0]), grid.y - np.float32(start[1])
    along_x, along_y = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    t = np.clip(dx * (along_x / (along_x**2 + along_y**2)) + dy * (along_y / (along_x**2 + along_y**2)), 0, 1)
    dx, dy = dx - t * along_x, dy - t * along_y
    return ramp(np.float32(radius) - np.sqrt(dx * dx + dy * dy), edge)


def texture(rng: np.random.Generator, cells: int, size: int) -> Array:
    """Smooth random field (size, size), mean about 0 and spread about 1, with `cells` cells a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def paint(picture: Array, mask: Array, level: float | Array) -> None:
    """Cover the picture with `level` where the mask is 1, in place; a colour needs a picture (size, size, 3)."""
    if picture.ndim == 3:
        mask = mask[..., None]
    picture += mask * (np.asarray(level, dtype=np.float32) - picture)


def bounding_box(mask: Array) -> Box:
    """(x0, y0, x1, y1) of all but the faintest edge of the mask, as fractions of the picture's sides."""
    rows, columns = (np.flatnonzero((mask > 0.02).any(axis=axis)) for axis in (1, 0))
    height, width = mask.shape
    x0, x1 = columns[0] / width, (columns[-1] + 1) / width
    return float(x0), float(rows[0] / height), float(x1), float((rows[-1] + 1) / height)
