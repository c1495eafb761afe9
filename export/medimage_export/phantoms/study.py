"""What a drawing function takes and gives."""

from dataclasses import dataclass, field

import numpy as np

from medimage_export.phantoms.shapes import Array, Box, Grid, posed_grid


@dataclass(frozen=True, slots=True)
class Study:
    """The grid to draw on and the dice of one seed.

    Anatomy and finding have dice of their own: the same seed shows the same body with and without a finding,
    and at every size.
    """

    grid: Grid
    anatomy: np.random.Generator
    finding: np.random.Generator

    @classmethod
    def of(cls, seed: int, size: int) -> "Study":
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
