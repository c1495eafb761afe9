"""Drawn studies that make colour pictures: fundus photography and dermoscopy."""

import numpy as np

from medimage_export.phantoms.canvas import Canvas, Drawing
from medimage_export.phantoms.shapes import Array, bounding_box, ellipse, paint, ramp, texture


def draw_fundus(canvas: Canvas, condition: str) -> Drawing:
    """A round orange field with disc, macula and vessels; retinopathy adds dark bleedings and yellow exudates."""
    grid, rng = canvas.grid, canvas.anatomy
    picture = np.zeros((grid.size, grid.size, 3), dtype=np.float32)
    field = ellipse(grid, (0, 0), (0.88, 0.88), edge=0.03)
    paint(picture, field, np.array([0.78, 0.38, 0.16]) * rng.uniform(0.85, 1.1))
    side = rng.choice([-1, 1])  # right or left eye
    disc, radius = (0.42 * side, rng.uniform(-0.06, 0.06)), rng.uniform(0.11, 0.14)
    paint(picture, ellipse(grid, (-0.18 * side, 0.02), (0.22, 0.22), edge=0.3), np.array([0.50, 0.20, 0.08]))  # macula
    for bend, reach in ((1.1, 1), (-1.1, 1), (0.55, 1), (-0.55, 1), (1.6, -1), (-1.6, -1)):  # vessels leave the disc
        along = (np.float32(disc[0]) - grid.x) * np.float32(side * reach)
        course = np.float32(disc[1]) + np.float32(0.55 * bend) * np.sqrt(np.clip(along, 0, None))
        vessel = ramp(0.018 - np.abs(grid.y - course) * 0.7, 0.02) * (along > 0)
        paint(picture, field * vessel, np.array([0.45, 0.08, 0.05]))
    paint(picture, ellipse(grid, disc, (radius, radius * 1.1), edge=0.03), np.array([0.98, 0.85, 0.50]))
    boxes = []
    if condition == "Diabetic Retinopathy":
        for colour in ([0.28, 0.02, 0.02], [0.95, 0.88, 0.40]):
            lesions = _spots(canvas)
            paint(picture, np.maximum.reduce(lesions), np.array(colour))
            boxes += [bounding_box(lesion) for lesion in lesions]
    return Drawing(picture, boxes)


def _spots(canvas: Canvas) -> list[Array]:
    dice = canvas.finding
    spots = []
    for _ in range(dice.integers(12, 18)):
        turn, distance = dice.uniform(0, 2 * np.pi), 0.70 * dice.uniform(0.1, 1) ** 0.5
        radius = dice.uniform(0.03, 0.06)
        centre = (distance * np.cos(turn), distance * np.sin(turn))
        spots.append(ellipse(canvas.grid, centre, (radius, radius * dice.uniform(0.7, 1))))
    return spots


def draw_dermoscopy(canvas: Canvas, condition: str) -> Drawing:
    """A nevus is one even, nearly round brown patch; a melanoma is ragged and of several colours."""
    grid, rng = canvas.grid, canvas.anatomy
    picture = np.empty((grid.size, grid.size, 3), dtype=np.float32)
    picture[:] = np.array([0.88, 0.68, 0.58]) * rng.uniform(0.88, 1.05)
    picture += (0.02 * texture(rng, 40, grid.size))[..., None]
    centre, radius = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.34, 0.46)
    if condition == "Nevus":
        lesion = ellipse(grid, centre, (radius, radius * rng.uniform(0.85, 1)), degrees=rng.uniform(0, 90), edge=0.06)
        paint(picture, lesion, np.array([0.48, 0.28, 0.18]))
    else:
        dice = canvas.finding
        dx, dy = grid.x - np.float32(centre[0]), grid.y - np.float32(centre[1])
        outline = np.float32(radius) * (1 + 0.28 * texture(dice, 8, grid.size)) - np.hypot(dx, dy)
        lesion = ramp(outline, 0.03)
        paint(picture, lesion, np.array([0.40, 0.22, 0.15]))
        patches: list[tuple[Array, list[float]]] = [
            (ramp(texture(dice, 9, grid.size) - 0.5, 0.3), colour)
            for colour in ([0.10, 0.06, 0.06], [0.35, 0.38, 0.50], [0.62, 0.20, 0.16])
        ]
        for patch, colour in patches:
            paint(picture, lesion * patch, np.array(colour))
    return Drawing(picture, [bounding_box(lesion)])
