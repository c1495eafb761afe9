"""Drawn chest radiographs.

Frontal: the patient faces the viewer, and so the patient's left is the image's right. Lateral: the patient faces the
image's left, and the spine is on its right.
"""

import numpy as np

from medimage_export.phantoms.canvas import Canvas, Drawing
from medimage_export.phantoms.shapes import Array, Grid, bounding_box, ellipse, ramp, texture

IMAGE_SIDE = {"right": -1, "left": 1}  # patient's side -> sign of x


def draw_chest(canvas: Canvas, condition: str) -> Drawing:
    """A chest with one finding or none."""
    picture, lungs = draw_thorax(canvas.grid, canvas.anatomy)
    enlargement = draw_enlargement(canvas.finding) if condition == "Cardiomegaly" else 1.0
    heart = draw_heart(picture, canvas.grid, canvas.anatomy, lungs, enlargement)
    match condition.split():
        case ["Cardiomegaly"]:
            finding = heart
        case ["Pleural", "Effusion", side]:
            finding = draw_finding(picture, canvas.grid, canvas.finding, lungs, "Pleural Effusion", side)
        case ["Pneumothorax" | "Nodule" | "Opacity" as kind]:
            side = canvas.finding.choice(list(IMAGE_SIDE))
            finding = draw_finding(picture, canvas.grid, canvas.finding, lungs, kind, side)
        case _:
            return Drawing(picture)
    return Drawing(picture, [bounding_box(finding)])


def draw_thorax(grid: Grid, rng: np.random.Generator) -> tuple[Array, dict[str, Array]]:
    """A chest without its heart, and its lungs by the patient's side; everything is (size, size).

    Attenuation adds up, as in a radiograph: soft tissue, air of the lungs, bones, then the heart and the findings.
    """
    picture = 0.04 + 0.42 * ellipse(grid, (0, 0.25), (rng.uniform(0.78, 0.88), 1.15), edge=0.05)
    lungs = {side: _lung(grid, rng, sign) for side, sign in IMAGE_SIDE.items()}
    picture -= _both(lungs) * (rng.uniform(0.26, 0.32) + 0.025 * texture(rng, 24, grid.size))
    picture += 0.06 * _ribs(grid, rng) * ellipse(grid, (0, 0), (0.75, 0.85), edge=0.1)
    picture += 0.16 * ramp(0.10 - np.abs(grid.x), 0.06)  # spine and mediastinum
    return picture, lungs


def draw_enlargement(rng: np.random.Generator) -> float:
    """How much wider than a normal heart an enlarged one is."""
    return rng.uniform(1.5, 1.75)


def draw_heart(
    picture: Array, grid: Grid, rng: np.random.Generator, lungs: dict[str, Array], enlargement: float
) -> Array:
    """Add the heart to the picture, in place; returns its mask."""
    centre = (rng.uniform(0.08, 0.12), rng.uniform(0.26, 0.32))
    width, height = rng.uniform(0.24, 0.27), rng.uniform(0.24, 0.28)
    heart = ellipse(grid, centre, (width * enlargement, height * enlargement**0.5), degrees=20, edge=0.04)
    picture += heart * (0.10 + 0.18 * _both(lungs))  # it also hides the lung behind it
    return heart


def draw_finding(
    picture: Array, grid: Grid, rng: np.random.Generator, lungs: dict[str, Array], kind: str, side: str
) -> Array:
    """Add a finding on the patient's side to the picture, in place; returns its mask."""
    match kind:
        case "Pleural Effusion":
            finding = _effusion(grid, rng, lungs[side])
            picture += 0.28 * finding
        case "Pneumothorax":
            finding, pleura = _pneumothorax(grid, rng, lungs[side], IMAGE_SIDE[side])
            picture += 0.22 * pleura - 0.13 * finding
        case "Nodule":
            finding = _nodule(grid, rng, IMAGE_SIDE[side])
            picture += rng.uniform(0.30, 0.40) * finding
        case "Opacity":
            finding = _opacity(grid, rng, lungs, IMAGE_SIDE[side])
            picture += rng.uniform(0.30, 0.40) * finding
        case _:
            raise ValueError(f"finding {kind!r} is unknown")
    return finding


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


def _both(lungs: dict[str, Array]) -> Array:
    return lungs["left"] + lungs["right"]


def _lung(grid: Grid, rng: np.random.Generator, sign: int) -> Array:
    centre = (sign * rng.uniform(0.37, 0.41), rng.uniform(-0.08, -0.02))
    outline = ellipse(grid, centre, (rng.uniform(0.26, 0.30), rng.uniform(0.66, 0.74)), degrees=-5 * sign, edge=0.03)
    dome = rng.uniform(0.42, 0.50) + 1.2 * (grid.x - centre[0]) ** 2  # the diaphragm under it
    return outline * ramp(dome - grid.y, 0.03)


def _ribs(grid: Grid, rng: np.random.Generator) -> Array:
    spacing, phase = rng.uniform(0.17, 0.20), rng.uniform(0, 1)
    depth = (grid.y - 0.45 * grid.x**2) / np.float32(spacing) + np.float32(phase)
    return ramp(np.cos(depth * np.float32(2 * np.pi)) - 0.3, 0.8)


def _effusion(grid: Grid, rng: np.random.Generator, lung: Array) -> Array:
    level = rng.uniform(0.0, 0.22) - 0.25 * (np.abs(grid.x) - 0.35)  # the meniscus climbs the outer chest wall
    return lung * ramp(grid.y - level, 0.05)


def _pneumothorax(grid: Grid, rng: np.random.Generator, lung: Array, sign: int) -> tuple[Array, Array]:
    """The airless rim of one side, and the pleural line of the lung that fell away from it."""
    centre, radii = (sign * rng.uniform(0.29, 0.33), rng.uniform(0.16, 0.22)), (0.22, rng.uniform(0.46, 0.54))
    collapsed = ellipse(grid, centre, radii, degrees=-5 * sign, edge=0.03)
    grown = ellipse(grid, centre, (radii[0] + 0.04, radii[1] + 0.04), degrees=-5 * sign, edge=0.03)
    rim = lung * (1 - collapsed)
    return rim, rim * grown


def _nodule(grid: Grid, rng: np.random.Generator, sign: int) -> Array:
    centre = (sign * rng.uniform(0.36, 0.46), rng.uniform(-0.45, 0.0))
    radius = rng.uniform(0.09, 0.13)
    return ellipse(grid, centre, (radius, radius * rng.uniform(0.85, 1.0)), edge=0.02)


def _opacity(grid: Grid, rng: np.random.Generator, lungs: dict[str, Array], sign: int) -> Array:
    centre = (sign * rng.uniform(0.34, 0.44), rng.uniform(-0.40, 0.0))
    patch = ellipse(grid, centre, (rng.uniform(0.18, 0.26), rng.uniform(0.18, 0.28)), edge=0.16)
    return _both(lungs) * patch * np.clip(0.8 + 0.3 * texture(rng, 16, grid.size), 0, 1)


def _spine(grid: Grid, rng: np.random.Generator) -> Array:
    """Vertebrae, one above the other along a slight curve."""
    column = ramp(0.09 - np.abs(grid.x - 0.42 + 0.08 * grid.y**2), 0.03)
    return column * ramp(np.cos(grid.y / np.float32(rng.uniform(0.13, 0.15)) * np.float32(2 * np.pi)) + 0.7, 0.4)
