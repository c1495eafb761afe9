"""Drawn frontal chest radiographs. The patient faces the viewer: the patient's left is the image's right."""

import numpy as np

from medimage_export.phantoms.shapes import Array, Grid, bounding_box, ellipse, ramp, texture
from medimage_export.phantoms.study import Drawing, Study

IMAGE_SIDE = {"right": -1, "left": 1}  # patient's side -> sign of x


def draw_chest(study: Study, condition: str) -> Drawing:
    """Attenuation adds up, as in a radiograph: soft tissue, air of the lungs, bones, heart, then the finding."""
    grid, rng = study.grid, study.anatomy
    picture = 0.04 + 0.42 * ellipse(grid, (0, 0.25), (rng.uniform(0.78, 0.88), 1.15), edge=0.05)
    lungs = {side: _lung(grid, rng, sign) for side, sign in IMAGE_SIDE.items()}
    both_lungs = lungs["left"] + lungs["right"]
    picture -= both_lungs * (rng.uniform(0.26, 0.32) + 0.025 * texture(rng, 24, grid.size))
    picture += 0.06 * _ribs(grid, rng) * ellipse(grid, (0, 0), (0.75, 0.85), edge=0.1)
    picture += 0.16 * ramp(0.10 - np.abs(grid.x), 0.06)  # spine and mediastinum

    enlarged = condition == "Cardiomegaly"
    heart = _heart(grid, rng, enlargement=study.finding.uniform(1.5, 1.75) if enlarged else 1.0)
    picture += heart * (0.10 + 0.18 * both_lungs)  # it also hides the lung behind it
    finding = heart if enlarged else None

    match condition.split():
        case ["Pleural", "Effusion", side]:
            finding = _effusion(grid, study.finding, lungs[side])
            picture += 0.28 * finding
        case ["Pneumothorax"]:
            finding, pleura = _pneumothorax(grid, study.finding, lungs)
            picture += 0.22 * pleura - 0.13 * finding
        case ["Nodule"]:
            finding = _nodule(grid, study.finding)
            picture += study.finding.uniform(0.30, 0.40) * finding
        case ["Opacity"]:
            finding = _opacity(grid, study.finding, both_lungs)
            picture += study.finding.uniform(0.30, 0.40) * finding
    return Drawing(picture, [] if finding is None else [bounding_box(finding)])


def _lung(grid: Grid, rng: np.random.Generator, sign: int) -> Array:
    centre = (sign * rng.uniform(0.37, 0.41), rng.uniform(-0.08, -0.02))
    outline = ellipse(grid, centre, (rng.uniform(0.26, 0.30), rng.uniform(0.66, 0.74)), degrees=-5 * sign, edge=0.03)
    dome = rng.uniform(0.42, 0.50) + 1.2 * (grid.x - centre[0]) ** 2  # the diaphragm under it
    return outline * ramp(dome - grid.y, 0.03)


def _ribs(grid: Grid, rng: np.random.Generator) -> Array:
    spacing, phase = rng.uniform(0.17, 0.20), rng.uniform(0, 1)
    depth = (grid.y - 0.45 * grid.x**2) / np.float32(spacing) + np.float32(phase)
    return ramp(np.cos(depth * np.float32(2 * np.pi)) - 0.3, 0.8)


def _heart(grid: Grid, rng: np.random.Generator, enlargement: float) -> Array:
    centre = (rng.uniform(0.08, 0.12), rng.uniform(0.26, 0.32))
    width, height = rng.uniform(0.24, 0.27), rng.uniform(0.24, 0.28)
    return ellipse(grid, centre, (width * enlargement, height * enlargement**0.5), degrees=20, edge=0.04)


def _effusion(grid: Grid, rng: np.random.Generator, lung: Array) -> Array:
    level = rng.uniform(0.0, 0.22) - 0.25 * (np.abs(grid.x) - 0.35)  # the meniscus climbs the outer chest wall
    return lung * ramp(grid.y - level, 0.05)


def _pneumothorax(grid: Grid, rng: np.random.Generator, lungs: dict[str, Array]) -> tuple[Array, Array]:
    """The airless rim of one side, and the pleural line of the lung that fell away from it."""
    side = rng.choice(list(IMAGE_SIDE))
    sign = IMAGE_SIDE[side]
    centre, radii = (sign * rng.uniform(0.29, 0.33), rng.uniform(0.16, 0.22)), (0.22, rng.uniform(0.46, 0.54))
    collapsed = ellipse(grid, centre, radii, degrees=-5 * sign, edge=0.03)
    grown = ellipse(grid, centre, (radii[0] + 0.04, radii[1] + 0.04), degrees=-5 * sign, edge=0.03)
    rim = lungs[side] * (1 - collapsed)
    return rim, rim * grown


def _nodule(grid: Grid, rng: np.random.Generator) -> Array:
    centre = (rng.choice([-1, 1]) * rng.uniform(0.36, 0.46), rng.uniform(-0.45, 0.0))
    radius = rng.uniform(0.09, 0.13)
    return ellipse(grid, centre, (radius, radius * rng.uniform(0.85, 1.0)), edge=0.02)


def _opacity(grid: Grid, rng: np.random.Generator, both_lungs: Array) -> Array:
    centre = (rng.choice([-1, 1]) * rng.uniform(0.34, 0.44), rng.uniform(-0.40, 0.0))
    patch = ellipse(grid, centre, (rng.uniform(0.18, 0.26), rng.uniform(0.18, 0.28)), edge=0.16)
    return both_lungs * patch * np.clip(0.8 + 0.3 * texture(rng, 16, grid.size), 0, 1)
