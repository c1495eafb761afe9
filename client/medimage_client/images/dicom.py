"""DICOM files to 8-bit pixels, by the grey-scale pipeline of DICOM PS3.4 N.2: modality LUT, VOI LUT or window, display.

pydicom decodes and applies the tables; it is imported where it is used, because it is the extra `dicom`.
"""

from __future__ import annotations  # pydicom's types, without importing it

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import PERCENTILES
from medimage_client.errors import InvalidInput, MissingExtra
from medimage_client.images.windowing import Window, apply_window

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES = 128
DICOM_HEAD_BYTES = PREAMBLE_BYTES + 4  # that `is_dicom` looks at

# Functional group macros of enhanced multi-frame objects, and what each holds (DICOM PS3.3 C.7.6.16)
FRAME_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # rescale; window

# What pydicom raises for damaged or incomplete files. Its texts quote the file's values, so none is passed on.
PYDICOM_ERRORS = (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError,
                  ValueError, struct.error, zlib.error)  # fmt: skip


def is_dicom(file: bytes) -> bool:
    """Whether the bytes are a DICOM file: a preamble of 128 bytes, then DICM (PS3.10, section 7.1)."""
    return file[PREAMBLE_BYTES:DICOM_HEAD_BYTES] == b"DICM"


def read_dicom(file: bytes, *, window: Window | None = None, frame: int | None = None) -> NDArray[np.uint8]:
    """One frame as it is meant to be seen: (H, W) grey, 0 black, or (H, W, 3) RGB.

    Grey values pass the modality LUT, then `window` if given, else the file's VOI LUT or first window, else a window
    from their 1st to their 99th percentile; MONOCHROME1 is inverted at the end.

    Raises:
        InvalidInput: damaged, without pixels, compressed in a way that no installed decoder reads, no such frame, or a
            window for colour.
        MissingExtra: pydicom is not installed.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ModuleNotFoundError:
        raise MissingExtra("reading DICOM", "pydicom", "dicom") from None

    try:
        dataset = dcmread(BytesIO(file))
        index = check_frame(dataset, frame)
        values = decode_frame(dataset, index)
        if dataset.SamplesPerPixel == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
            if window is not None:
                raise InvalidInput("is a colour DICOM file; window applies to grey values only")
            return colours(values, dataset)
        return greys(values, frame_attributes(dataset, index), window)
    except (*PYDICOM_ERRORS, BytesLengthException, InvalidDicomError) as error:
        raise InvalidInput(
            f"is a DICOM file that cannot be read ({type(error).__name__}); expected a complete image object"
        ) from None


def check_frame(dataset: Dataset, frame: int | None) -> int:
    n_frames = int(dataset.get("NumberOfFrames") or 1)
    index = frame or 0
    if not 0 <= index < n_frames:
        raise InvalidInput(f"frame is {index}; this DICOM file has frames 0 to {n_frames - 1}")
    return index


def decode_frame(dataset: Dataset, index: int) -> NDArray[Any]:
    """Stored values (H, W), or (H, W, 3) with YBR already turned into RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise InvalidInput(
            f"is a DICOM file compressed as {syntax.name}; install a decoder: pip install pylibjpeg[all]"
        )
    return pixel_array(dataset, index=index)


def frame_attributes(dataset: Dataset, index: int) -> Dataset:
    """The rescale and window that hold for one frame: top level, overlaid by the functional groups if there are any."""
    from pydicom import Dataset

    attributes = Dataset(dataset)
    attributes.file_meta = dataset.file_meta  # byte order of the tables
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*shared[:1], *per_frame[index : index + 1]):
        for macro in FRAME_MACROS:
            for item in group.get(macro) or []:
                attributes.update(item)
    return attributes


def greys(stored: NDArray[Any], attributes: Dataset, window: Window | None) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut

    values = apply_modality_lut(stored, attributes)
    shown = apply_window(values, window) if window is not None else apply_voi(values, attributes)
    return np.invert(shown) if attributes.PhotometricInterpretation == "MONOCHROME1" else shown


def apply_voi(values: NDArray[Any], attributes: Dataset) -> NDArray[np.uint8]:
    """The file's own VOI transformation (PS3.3 C.11.2), its first if it offers several; the table before the window."""
    from pydicom.pixels.processing import apply_voi as apply_voi_table

    if attributes.get("VOILUTSequence"):
        bits = attributes.VOILUTSequence[0].LUTDescriptor[2]
        # whole numbers even after a rescale: the table's input, which pydicom uses as an index
        return apply_window(apply_voi_table(np.rint(values).astype(np.int64), attributes), (0, 2**bits - 1))

    center, width = first(attributes.get("WindowCenter")), first(attributes.get("WindowWidth"))
    if center is None or width is None or width <= 0:
        low, high = np.percentile(values, PERCENTILES)
        return apply_window(values, (float(low), float(high)))

    match attributes.get("VOILUTFunction") or "LINEAR":
        case "SIGMOID":
            # 1 / (1 + exp(-4 (x - center) / width)), in the form that does not overflow
            return apply_window(np.tanh(2 * (values - center) / width), (-1, 1))
        case "LINEAR_EXACT":
            return apply_window(values, (center - width / 2, center + width / 2))
        case _:  # LINEAR: half a value lower and one narrower, because it maps whole numbers
            return apply_window(values, (center - width / 2, center + width / 2 - 1))


def first(value: Any) -> float | None:
    """A decimal-string attribute's first value, None if absent or empty."""
    if value is None or value == "":
        return None
    return float(value) if not hasattr(value, "__len__") else first(next(iter(value), None))


def colours(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of any depth, or (H, W) palette indices, to 8-bit RGB."""
    from pydicom.pixels.processing import apply_color_lut

    bits = dataset.BitsStored
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        bits = values.dtype.itemsize * 8
    return apply_window(values, (0, 2**bits - 1))
