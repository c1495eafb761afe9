"""Drawn studies that the shipped checkpoints were not trained on, to fine-tune them with: colon and knee."""

import numpy as np

from medimage_export.phantoms.canvas import Canvas, Drawing
from medimage_export.phantoms.shapes import Array, bounding_box, capsule, ellipse, paint, ramp, texture


def draw_colonoscopy(canvas: Canvas, condition: str) -> Drawing:
    """A pink tube with folds around a dark lumen; a polyp is a bright knob, an ulcer a yellow pit with a red rim."""
    grid, rng = canvas.grid, canvas.anatomy
    picture = np.zeros((grid.size, grid.size, 3), dtype=np.float32)
    field = ellipse(grid, (0, 0), (0.92, 0.92), edge=0.03)
    paint(picture, field, np.array([0.85, 0.45, 0.40]) * rng.uniform(0.9, 1.08))
    lumen = rng.uniform(-0.15, 0.15, 2)
    for radius, level in ((0.66, 0.55), (0.46, 0.42), (0.30, 0.28)):  # folds, each darker than the one before it
        wobble = radius * (1 + 0.12 * texture(rng, 5, grid.size))
        distance = np.hypot(grid.x - np.float32(lumen[0]), grid.y - np.float32(lumen[1]))
        paint(picture, field * ramp(np.float32(0.03) - np.abs(distance - wobble), 0.04), np.array([0.62, 0.22, 0.22]))
        paint(picture, field * ramp(wobble - distance, 0.10), np.array([1.3, 0.62, 0.52]) * level)
    paint(picture, ellipse(grid, (lumen[0], lumen[1]), (0.17, 0.15), edge=0.08), np.array([0.10, 0.03, 0.03]))
    picture += (0.03 * field * texture(rng, 60, grid.size))[..., None]
    if condition == "No Finding":
        return Drawing(picture)
    dice = canvas.finding
    turn, away, radius = dice.uniform(0, 2 * np.pi), dice.uniform(0.45, 0.58), dice.uniform(0.16, 0.22)
    centre = (away * np.cos(turn), away * np.sin(turn))
    mask = ellipse(grid, centre, (radius, radius * dice.uniform(0.85, 1)), edge=0.03)
    if condition == "Polyp":
        paint(picture, mask, np.array([0.96, 0.66, 0.60]))
        shine = (centre[0] - 0.3 * radius, centre[1] - 0.3 * radius)
        paint(picture, ellipse(grid, shine, (0.3 * radius, 0.25 * radius), edge=0.05), np.array([1.0, 0.97, 0.95]))
    else:
        paint(picture, mask, np.array([0.60, 0.05, 0.06]))
        paint(picture, ellipse(grid, centre, (0.7 * radius, 0.6 * radius)), np.array([0.92, 0.86, 0.52]))
    return Drawing(picture, [bounding_box(mask)])


def draw_knee_xray(canvas: Canvas, condition: str) -> Drawing:
    """Femur, a dark joint space, tibia and fibula; arthritis closes the space, a fracture breaks the tibia."""
    grid, rng = canvas.grid, canvas.anatomy
    picture = np.full_like(grid.x + grid.y, 0.04)
    width = rng.uniform(0.18, 0.22)
    paint(picture, capsule(grid, (0, -1.3), (0, 1.3), rng.uniform(0.50, 0.58), edge=0.06), 0.24)  # soft tissue
    space = 0.01 if condition == "Osteoarthritis" else rng.uniform(0.055, 0.075)  # half of the joint space
    _bone(picture, capsule(grid, (0, -1.3), (0, -0.35 - space), width))
    for side in (-1, 1):  # condyles and plateau
        _bone(picture, ellipse(grid, (0.19 * side, -0.22 - space), (0.24, 0.22)))
        _bone(picture, ellipse(grid, (0.18 * side, 0.16 + space), (0.25, 0.16)))
    _bone(picture, capsule(grid, (0.42, 0.36), (0.40, 1.3), 0.06))  # fibula
    boxes = []
    if condition == "Fracture":
        dice = canvas.finding
        cut, push = dice.uniform(0.48, 0.66), dice.choice([-1, 1]) * dice.uniform(0.12, 0.17)
        _bone(picture, capsule(grid, (0, 0.25), (0, cut - 0.13), width * 0.85))
        _bone(picture, capsule(grid, (push, cut + 0.17), (push, 1.3), width * 0.85))
        boxes.append(bounding_box(capsule(grid, (0, cut), (push, cut), width)))
    else:
        _bone(picture, capsule(grid, (0, 0.25), (0, 1.3), width * 0.85))
    if condition == "Osteoarthritis":
        dice = canvas.finding
        joint = ellipse(grid, (0, -0.03), (0.46, 0.08))
        for side in (-1, 1):  # bony spurs at both edges, and white bone along the closed space
            spur = (0.44 * side, dice.uniform(-0.06, 0.0))
            paint(picture, ellipse(grid, spur, (dice.uniform(0.07, 0.10), 0.05)), 0.92)
            paint(picture, ellipse(grid, (0.19 * side, -0.03), (0.22, 0.03)), 0.97)
        boxes.append(bounding_box(joint))
    return Drawing(picture, boxes)


def _bone(picture: Array, mask: Array) -> None:
    paint(picture, mask, 0.78)
