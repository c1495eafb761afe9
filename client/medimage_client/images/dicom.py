"""DICOM files to 8-bit pixels, by the pipelines of DICOM PS3.4 N.2.

| file | subject |
|---|---|
| `dicom.py` | which object a file is, and one frame of it as it is meant to be seen |
| `dicom_elements.py` | header elements, whose faults are named |
| `dicom_pixels.py` | Pixel Data to stored values |
| `dicom_codecs.py` | compressed frames, by imagecodecs |
| `dicom_tables.py` | lookup tables |
| `dicom_grey.py` | stored values to grey: modality, VOI, presentation |
| `dicom_colour.py` | RGB, YBR and palettes |

pydicom reads the file. Its own pixel transforms (pydicom.pixels.processing) and those of highdicom are not used: they
raise on elements that are empty, on tables of 12 bits or packed entries and on windows below 1, and neither knows
padding, stored bits of compressed frames, or the range that a table's entries use.
"""

from __future__ import annotations  # pydicom's types, without importing it: it is the extra `dicom`

import re
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import MAX_OBJECT_BYTES
from medimage_client.errors import InvalidInput, MissingExtra
from medimage_client.images.dicom_colour import (
    apply_supplemental_palette,
    has_supplemental_palette,
    read_palette,
    show_colour,
)
from medimage_client.images.dicom_elements import describe, quiet, text, uid_name
from medimage_client.images.dicom_grey import frame_attributes, show_grey
from medimage_client.images.dicom_pixels import PIXEL_ELEMENTS, image_layout, read_stored
from medimage_client.images.windowing import DicomWindow

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE_BYTES = 128
PIECE_BYTES = 2**20
DICOM_HEAD_BYTES = PREAMBLE_BYTES + 4  # that `is_dicom` looks at
# A file without preamble starts with an element of group 0002 or 0008: of explicit VR in either byte order, or of
# implicit VR with a short value.
NO_PREAMBLE = re.compile(
    rb"[\x02\x08]\x00[\x00-\x60]\x00([A-Z]{2}|..\x00\x00)|\x00[\x02\x08]\x00[\x00-\x60][A-Z]{2}", re.DOTALL
)
MASKS = "1.2.840.10008.5.1.4.1.1.66."  # SOP classes of segmentations start so
DICOMDIR = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage

# What pydicom raises for damaged or incomplete files. Its texts quote the file's values, so none is passed on.
PYDICOM_ERRORS = (AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, OverflowError,
                  RecursionError, RuntimeError, TypeError, ValueError, struct.error, zlib.error)  # fmt: skip


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts like this is DICOM (PS3.10, section 7.1): DICM after a preamble, or no preamble."""
    return head[PREAMBLE_BYTES:DICOM_HEAD_BYTES] == b"DICM" or NO_PREAMBLE.match(head) is not None


def read_dicom(file: bytes, *, window: DicomWindow = "file", frame: int | None = None) -> NDArray[np.uint8]:
    """One frame as it is meant to be seen: (H, W) grey, 0 black, or (H, W, 3) RGB.

    Grey values pass the modality LUT, then `window`, then the presentation LUT shape or, without one, the inversion of
    MONOCHROME1. Pixel padding and values that are not finite are black.

    Args:
        window: `file` for the file's VOI LUT or first window, `percentile` for one from the 1st to the 99th percentile,
            which is also taken where the file has none, or (low, high) in the units after the modality LUT.
        frame: from 0; the first if None.

    Raises:
        InvalidInput: not an image, damaged, compressed in a way that is not read, no such frame, a window for colour,
            or nothing to be seen; names the element at fault.
        MissingExtra: pydicom is not installed, or the file is compressed and imagecodecs is not.
    """
    try:
        import pydicom  # noqa: F401
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ModuleNotFoundError:
        raise MissingExtra("reading DICOM", "pydicom", "dicom") from None

    try:
        return show(parse(file), window, frame)
    except (*PYDICOM_ERRORS, BytesLengthException, InvalidDicomError) as error:
        raise InvalidInput(
            f"is a DICOM file that cannot be read ({type(error).__name__}); expected a complete image object"
        ) from None


class Bounded:
    """A file whose deflated content is bounded: of such a file alone pydicom reads all that is left, and inflates it.

    Raises:
        InvalidInput: when that is read; it would be larger than MAX_OBJECT_BYTES.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        if size < 0:
            inflating = zlib.decompressobj(-zlib.MAX_WBITS)
            left, n_bytes = content, 0
            while left and n_bytes <= MAX_OBJECT_BYTES:
                n_bytes += len(inflating.decompress(left, PIECE_BYTES))
                left = inflating.unconsumed_tail
            if n_bytes > MAX_OBJECT_BYTES:
                raise InvalidInput(f"is a deflated DICOM file of more than {MAX_OBJECT_BYTES >> 20} MiB")
        return content


def parse(file: bytes) -> Dataset:
    from pydicom import dcmread

    try:
        # `force` for a file without preamble; what is not DICOM at all has no elements that an image needs
        with quiet():
            return dcmread(Bounded(BytesIO(file)), force=True)
    except InvalidInput:
        raise
    except Exception as error:  # pydicom's, of almost any type
        raise InvalidInput(
            f"is a DICOM file that cannot be read ({type(error).__name__}): its elements are damaged or cut off; "
            "expected the complete file"
        ) from None


def show(dataset: Dataset, window: DicomWindow, frame: int | None) -> NDArray[np.uint8]:
    check_object(dataset)
    layout = image_layout(dataset)
    index = layout.frame_index(frame)
    stored = read_stored(dataset, layout, index)
    if layout.is_colour:
        if isinstance(window, tuple):
            raise InvalidInput("is a colour DICOM file; window applies to grey values only")
        return show_colour(stored, dataset, layout)
    attributes = frame_attributes(dataset, index)
    if not has_supplemental_palette(dataset):
        return show_grey(stored, attributes, layout, window)
    palette = read_palette(dataset, layout)
    return apply_supplemental_palette(
        lambda grey: show_grey(grey, attributes, layout, window, is_whole_image=False), stored, palette
    )


def check_object(dataset: Dataset) -> None:
    """Refuse what is no image, by its name."""
    sop_class = text(dataset, "SOPClassUID") or text(getattr(dataset, "file_meta", None), "MediaStorageSOPClassUID")
    kind = uid_name(sop_class) if sop_class else "an object without SOP Class UID (0008,0016)"
    if sop_class == DICOMDIR:
        kind = "Media Storage Directory Storage, a DICOMDIR"
    if sop_class and sop_class.startswith(MASKS):
        raise InvalidInput(f"is a DICOM file of {kind}, whose pixels are a mask; expected the image that it is of")
    if not any(keyword in dataset for keyword in PIXEL_ELEMENTS):
        raise InvalidInput(f"is a DICOM file that cannot be read as an image: {kind}, without {describe('PixelData')}")
