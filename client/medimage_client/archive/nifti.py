"""Volumes in NIfTI files, slice by slice; read by nibabel, which is the extra `nifti`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.archive.slices import Slice, WhichSlices
from medimage_client.constants import PERCENTILES
from medimage_client.errors import InvalidInput, MissingExtra
from medimage_client.images.windowing import DicomWindow, Window, apply_window

SUFFIXES = (".nii", ".nii.gz")
LPS = (-1, -1, 1)  # from NIfTI's axes, to the right, the front and the head, to DICOM's


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, which: WhichSlices | None) -> list[Slice]:
    """The axial slices of a volume from the feet to the head, seen as DICOM's are: the patient's right is on the left.

    Black and white are the 1st and the 99th percentile of the whole volume, the same for each slice; NIfTI has no
    window. The volume is in memory as long as a slice of it is.

    Raises:
        InvalidInput: not a volume of three axes, or damaged.
        MissingExtra: nibabel is not installed.
    """
    try:
        from nibabel import as_closest_canonical, load
    except ModuleNotFoundError:
        raise MissingExtra("reading NIfTI", "nibabel", "nifti") from None
    try:
        image: Any = as_closest_canonical(load(path))  # type: ignore[no-untyped-call]  # axes to the right, the front and the head
        shape = image.shape
        if len(shape) == 3 and all(shape):
            volume = image.get_fdata(dtype=np.float32, caching="unchanged")
            affine = image.affine
    except Exception as error:  # nibabel's, of almost any type
        raise unreadable(path, error) from None
    if len(shape) != 3 or not all(shape):
        raise no_volume(path, shape)
    if not np.isfinite(volume).all():
        raise InvalidInput(f"{path}: has values that are not finite")
    low, high = (float(value) for value in np.percentile(volume, PERCENTILES))
    last_x, last_y = shape[0] - 1, shape[1] - 1  # whose pixel is the upper left one of a slice
    return [
        Slice(
            name=f"{path}#{z}",
            frame=z,
            position=tuple((affine @ (last_x, last_y, z, 1))[:3] * LPS),
            read=partial(axial, volume, z, (low, high)),
        )
        for z in (which or WhichSlices()).of(shape[2])
    ]


def count_slices(path: Path) -> int:
    """How many axial slices `read_nifti` finds, by the header alone.

    Raises:
        InvalidInput: not a volume of three axes, or damaged.
        MissingExtra: nibabel is not installed.
    """
    try:
        from nibabel import load
        from nibabel.orientations import io_orientation
    except ModuleNotFoundError:
        raise MissingExtra("reading NIfTI", "nibabel", "nifti") from None
    try:
        image: Any = load(path)
        axes = list(io_orientation(image.affine)[:, 0])  # type: ignore[no-untyped-call]
        if len(image.shape) == 3:
            return int(image.shape[axes.index(2)])
    except Exception as error:  # nibabel's, of almost any type
        raise unreadable(path, error) from None
    raise no_volume(path, image.shape)


def unreadable(path: Path, error: Exception) -> InvalidInput:
    """Without the error's own text, which may quote the header."""
    return InvalidInput(f"{path}: is a NIfTI file that cannot be read ({type(error).__name__})")


def no_volume(path: Path, shape: Sequence[int]) -> InvalidInput:
    return InvalidInput(f"{path}: has the shape {shape}; expected a volume of three axes")


def axial(volume: NDArray[np.float32], z: int, window: Window, _: DicomWindow) -> NDArray[np.uint8]:
    """(x, y, z) to the right, the front and the head -> (rows from front to back, columns from right to left)."""
    return apply_window(volume[::-1, ::-1, z].T, window)
