"""Small tables whose vectors and pictures are known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from medimage_analysis.table import Model, to_column, write

MODEL = Model("medimageinsight", "0" * 64, "fp32", "reference", "file")


def make_table(path: Path, angles, *, prefix="", model=MODEL, pictures: Path | None = None, **columns) -> Path:
    """A table of vectors on a circle in the first two of 1024 numbers, at angles in degrees.

    With `pictures` each row has a file there, grey of the value of its row.
    """
    vectors = np.zeros((len(angles), 1024), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    ids = [f"{prefix}{row}" for row in range(len(angles))]
    content = {"id": ids, "image_features": to_column(vectors), **columns}
    if pictures is not None:
        pictures.mkdir(exist_ok=True)
        content["source"] = [str(pictures / f"{name}.png") for name in ids]
        for row, file in enumerate(content["source"]):
            Image.new("L", (8, 4), row).save(file)
    write(path, pa.table(content), model)
    return path


def chord(degrees):
    """The distance of two unit vectors at that angle."""
    return 2 * np.sin(np.radians(degrees) / 2)
