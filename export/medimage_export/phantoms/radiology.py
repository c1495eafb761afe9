"""Drawn studies that make grey pictures: brain MR, hand X-ray, abdominal CT, breast ultrasound, retinal OCT."""

from itertools import pairwise

import numpy as np

from medimage_export.phantoms.canvas import Canvas, Drawing
from medimage_export.phantoms.shapes import Array, Grid, Point, bounding_box, capsule, ellipse, paint, ramp, texture


def draw_brain_mr(canvas: Canvas, condition: str) -> Drawing:
    """Axial T2: bright scalp and ventricles, black skull, folded grey matter; a mass is bright with a dark rim."""
    grid, rng = canvas.grid, canvas.anatomy
    radii = (rng.uniform(0.60, 0.68), rng.uniform(0.76, 0.84))
    picture = np.full_like(grid.x + grid.y, 0.02)
    for margin, level in ((0.0, 0.65), (0.05, 0.05), (0.11, 0.85), (0.14, 0.45)):  # scalp, skull, fluid, brain
        paint(picture, ellipse(grid, (0, 0), (radii[0] - margin, radii[1] - margin)), level)
    brain = ellipse(grid, (0, 0), (radii[0] - 0.16, radii[1] - 0.16), edge=0.1)
    picture += 0.07 * brain * np.sin(4 * texture(rng, 18, grid.size))
    paint(picture, ramp(0.008 - np.abs(grid.x), 0.02) * brain, 0.8)  # the fissure between the hemispheres
    length = rng.uniform(0.20, 0.26)
    for side in (-1, 1):
        paint(picture, ellipse(grid, (0.10 * side, -0.05), (0.05, length), degrees=-14 * side), 0.9)
    if condition == "No Finding":
        return Drawing(picture)
    rng = canvas.finding
    centre, radius = (rng.choice([-1, 1]) * rng.uniform(0.24, 0.34), rng.uniform(-0.35, 0.35)), rng.uniform(0.14, 0.20)
    rim = ellipse(grid, centre, (radius + 0.03, radius + 0.03))
    paint(picture, rim, 0.2)
    paint(picture, ellipse(grid, centre, (radius, radius)), 0.95)
    return Drawing(picture, [bounding_box(rim)])


def draw_hand_xray(canvas: Canvas, condition: str) -> Drawing:
    """Wrist below, five rays of four bones above; a fracture displaces half of one of the long bones of the palm."""
    grid, rng = canvas.grid, canvas.anatomy
    picture = np.full_like(grid.x + grid.y, 0.04)
    spread, length = rng.uniform(0.9, 1.1), rng.uniform(0.92, 1.05)
    broken = canvas.finding.integers(1, 5) if condition == "Fracture" else None
    rays = [_ray(spread * angle, length * reach) for angle, reach in zip((-52, -20, -4, 12, 28), _REACH, strict=True)]
    paint(picture, ellipse(grid, (0, 0.35), (0.40, 0.42), edge=0.05), 0.25)
    for joints in rays:
        paint(picture, capsule(grid, joints[0], joints[-1], 0.085, edge=0.04), 0.25)
    for side in (-1, 1):
        paint(picture, capsule(grid, (0.13 * side, 0.72), (0.15 * side, 1.3), 0.09), 0.75)  # radius and ulna
        paint(picture, ellipse(grid, (0.09 * side, 0.60), (0.10, 0.07)), 0.68)  # carpal bones
    boxes = []
    for finger, joints in enumerate(rays):
        for segment, (start, end) in enumerate(pairwise(joints)):
            if segment == 0 and finger == broken:
                boxes.append(bounding_box(_broken_bone(canvas, picture, start, end)))
            else:
                _bone(grid, picture, start, end)
    return Drawing(picture, boxes)


_REACH = (0.78, 1.0, 1.06, 1.0, 0.86)  # of thumb to little finger
_SEGMENTS = (0.0, 0.42, 0.66, 0.85, 1.0)  # where the joints of a ray lie


def _ray(degrees: float, reach: float) -> list[Point]:
    sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    knuckle = (0.24 * sin, 0.55 - 0.18 * cos)
    return [(knuckle[0] + 1.02 * reach * s * sin, knuckle[1] - 1.02 * reach * s * cos) for s in _SEGMENTS]


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _bone(grid: Grid, picture: Array, start: Point, end: Point) -> None:
    shaft = _between(start, end, 0.10), _between(start, end, 0.90)  # leaves a dark joint at both ends
    paint(picture, capsule(grid, *shaft, 0.042), 0.8)
    paint(picture, capsule(grid, *shaft, 0.016), 0.6)


def _broken_bone(canvas: Canvas, picture: Array, start: Point, end: Point) -> Array:
    """Draw both fragments, the far one pushed aside; the mask covers the whole bone."""
    grid, rng = canvas.grid, canvas.finding
    share, push = rng.uniform(0.4, 0.6), rng.choice([-1, 1]) * rng.uniform(0.08, 0.11)
    _bone(grid, picture, start, _between(start, end, share))
    aside = (end[0] + push, end[1])
    _bone(grid, picture, _between((start[0] + push, start[1]), aside, share), aside)
    return capsule(grid, start, _between((start[0] + push, start[1]), aside, 1.0), 0.10)


def draw_abdomen_ct(canvas: Canvas, condition: str) -> Drawing:
    """Axial, seen from the feet: the liver is on the image's left; a lesion is a dark disc in it."""
    grid, rng = canvas.grid, canvas.anatomy
    width, height = rng.uniform(0.82, 0.90), rng.uniform(0.60, 0.68)
    picture = np.full_like(grid.x + grid.y, 0.02)
    paint(picture, ellipse(grid, (0, 0), (width, height)), 0.28)  # fat under the skin
    paint(picture, ellipse(grid, (0, 0), (width - 0.09, height - 0.08)), 0.46)
    liver = rng.uniform(-0.40, -0.34), rng.uniform(-0.16, -0.10)
    paint(picture, ellipse(grid, liver, (rng.uniform(0.34, 0.38), rng.uniform(0.30, 0.34)), degrees=-20), 0.66)
    paint(
        picture, ellipse(grid, (0.30, -0.25), (0.20, rng.uniform(0.13, 0.18)), degrees=15), 0.15
    )  # gas in the stomach
    paint(picture, ellipse(grid, (0.56, 0.08), (0.11, rng.uniform(0.17, 0.22)), degrees=-10), 0.68)  # spleen
    for side in (-1, 1):
        paint(picture, ellipse(grid, (0.34 * side, 0.27), (0.10, 0.13), degrees=20 * side), 0.78)  # kidneys
    paint(picture, ellipse(grid, (0.04, 0.14), (0.06, 0.06)), 0.85)  # aorta
    paint(picture, ellipse(grid, (0, 0.34), (0.13, 0.12)), 0.97)  # vertebra
    paint(picture, capsule(grid, (0, 0.40), (0, 0.52), 0.04), 0.97)
    picture += 0.015 * texture(rng, 60, grid.size)
    if condition == "No Finding":
        return Drawing(picture)
    rng = canvas.finding
    centre, radius = (liver[0] + rng.uniform(-0.12, 0.12), liver[1] + rng.uniform(-0.10, 0.10)), rng.uniform(0.12, 0.17)
    lesion = ellipse(grid, centre, (radius, radius * rng.uniform(0.8, 1.0)), edge=0.03)
    paint(picture, lesion, 0.30)
    return Drawing(picture, [bounding_box(lesion)])


def draw_breast_ultrasound(canvas: Canvas, condition: str) -> Drawing:
    """Skin on top, layers under it, speckle; a cyst is black and brightens what lies behind it."""
    grid, rng = canvas.grid, canvas.anatomy
    waves = 0.04 * texture(rng, 5, grid.size)
    depth = grid.y + waves
    fat, gland = rng.uniform(-0.62, -0.50), rng.uniform(0.20, 0.36)
    picture = np.full_like(depth, 0.30)
    paint(picture, ramp(depth - np.float32(fat), 0.05), 0.52)
    paint(picture, ramp(depth - np.float32(gland), 0.05), 0.24)
    for surface in (-0.85, fat, gland):
        paint(picture, ramp(0.02 - np.abs(depth - np.float32(surface)), 0.03), 0.85)
    boxes = []
    if condition == "Cyst":
        dice = canvas.finding
        centre, radii = (dice.uniform(-0.4, 0.4), dice.uniform(-0.25, 0.0)), (dice.uniform(0.16, 0.26), 0.15)
        cyst = ellipse(grid, centre, radii)
        behind = ramp(np.float32(0.9 * radii[0]) - np.abs(grid.x - np.float32(centre[0])), 0.05)
        picture += 0.20 * behind * ramp(grid.y - np.float32(centre[1]), 0.05)
        paint(picture, cyst, 0.02)
        boxes.append(bounding_box(cyst))
    picture *= 1 + 0.30 * texture(rng, 150, grid.size)
    picture *= ramp(0.95 - np.abs(grid.x), 0.05) * ramp(grid.y + 0.92, 0.02) * ramp(0.92 - grid.y, 0.3)
    return Drawing(picture, boxes)


def draw_retina_oct(canvas: Canvas, condition: str) -> Drawing:
    """A horizontal B-scan: layers with the foveal pit; oedema swells them and opens dark cysts."""
    grid, rng = canvas.grid, canvas.anatomy
    fovea = rng.uniform(-0.15, 0.15)
    floor = rng.uniform(0.20, 0.32)
    bed = floor + rng.uniform(0.05, 0.15) * grid.x**2  # the pigment epithelium
    hill = np.exp(-(((grid.x - np.float32(fovea)) / np.float32(0.30)) ** 2))
    swollen = condition == "Macular Edema"
    thickness = rng.uniform(0.48, 0.56) + (canvas.finding.uniform(0.22, 0.32) if swollen else -0.24) * hill
    depth = (bed - grid.y) / thickness  # 0 on the epithelium, 1 on the inner surface
    picture = np.full_like(depth, 0.05)
    for bottom, level in ((-0.9, 0.16), (-0.25, 0.40), (-0.06, 0.95), (0.06, 0.30), (0.30, 0.50), (0.55, 0.36)):
        paint(picture, ramp(depth - np.float32(bottom), 0.03), level)
    paint(picture, ramp(depth - np.float32(0.82), 0.03), 0.80)  # nerve fibres
    paint(picture, ramp(depth - 1, 0.03), 0.04)  # vitreous
    boxes = []
    if swollen:
        for across, radius in zip((-0.16, 0.0, 0.16), canvas.finding.uniform(0.07, 0.11, 3), strict=True):
            cyst = ellipse(grid, (fovea + across, floor - 0.36), (0.7 * radius, radius))
            paint(picture, cyst, 0.04)
            boxes.append(bounding_box(cyst))
    picture *= 1 + 0.25 * texture(rng, 150, grid.size)
    return Drawing(picture, boxes)
