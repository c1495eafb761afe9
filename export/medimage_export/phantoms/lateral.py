"""Drawn lateral chest radiographs: the patient faces the image's left, the spine is on its right."""

import numpy as np

from medimage_export.phantoms.shapes import Array, Grid, bounding_box, ellipse, ramp, texture


def draw_lateral(grid: Grid, rng: np.random.Generator, heart_enlargement: float, findings: dict[str, Array]) -> Array:
    """Seen from the side, left and right lie upon each other; (size, size).

    Args:
        findings: by kind, the masks of the frontal view: a finding has the same height in both views.
    """
    picture = 0.04 + 0.42 * ellipse(grid, (0, 0.25), (rng.uniform(0.62, 0.70), 1.15), edge=0.05)
    dome = rng.uniform(0.40, 0.48) + 0.5 * (grid.x + 0.1) ** 2  # the diaphragm
    lung = ellipse(grid, (0, -0.05), (rng.uniform(0.48, 0.54), rng.uniform(0.68, 0.74)), edge=0.04)
    lung *= ramp(dome - grid.y, 0.03)
    picture -= lung * (rng.uniform(0.26, 0.32) + 0.025 * texture(rng, 24, grid.size))
    picture += 0.20 * _spine(grid, rng)
    size = rng.uniform(0.20, 0.23) * heart_enlargement**0.5
    picture += ellipse(grid, (-0.20, rng.uniform(0.18, 0.24)), (size, 1.2 * size), degrees=25, edge=0.05) * (
        0.10 + 0.18 * lung
    )
    for kind, mask in findings.items():
        _, top, _, bottom = bounding_box(mask)
        height = top + bottom - 1  # of its middle, -1 .. 1
        match kind:
            case "Pleural Effusion":  # it gathers at the back
                picture += 0.28 * lung * ramp(grid.y + 0.6 * (grid.x - 0.3) - np.float32(2 * top - 1), 0.05)
            case "Pneumothorax":
                picture -= 0.13 * lung * ramp(-0.45 - grid.y + 0.4 * grid.x, 0.03)
            case "Nodule":
                picture += 0.35 * ellipse(grid, (rng.uniform(-0.1, 0.2), height), (0.10, 0.10))
            case "Opacity":
                picture += 0.35 * lung * ellipse(grid, (rng.uniform(-0.1, 0.2), height), (0.22, 0.22), edge=0.16)
    return picture


def _spine(grid: Grid, rng: np.random.Generator) -> Array:
    """Vertebrae, one above the other along a slight curve."""
    column = ramp(0.09 - np.abs(grid.x - 0.42 + 0.08 * grid.y**2), 0.03)
    return column * ramp(np.cos(grid.y / np.float32(rng.uniform(0.13, 0.15)) * np.float32(2 * np.pi)) + 0.7, 0.4)
