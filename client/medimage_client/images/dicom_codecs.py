"""Compressed frames of DICOM files to samples, by imagecodecs (BSD-3-Clause), which brings libjpeg-turbo, CharLS and
OpenJPEG.

Not by the decoders that pydicom finds: Pillow has no 12-bit or lossless JPEG, GDCM ends the process at a damaged JPEG
(its C++ exceptions pass through SWIG: https://github.com/malaterre/GDCM), pylibjpeg-libjpeg is GPL, and releases of
pylibjpeg-openjpeg, pyjpegls and pylibjpeg-rle ask for NumPy 2, which the embedded Triton does not take.
"""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from numpy.typing import NDArray

from medimage_client.errors import InvalidInput, MissingExtra

# Transfer syntaxes (PS3.5 annex A, PS3.6 table A-1)
JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
HIGH_THROUGHPUT = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
SYNTAXES = (*JPEG, *JPEG_LS, *JPEG_2000, *HIGH_THROUGHPUT)
LOSSY = (*JPEG[:2], JPEG_LS[1], JPEG_2000[1], HIGH_THROUGHPUT[2])

SOI, EOI = b"\xff\xd8", b"\xff\xd9"  # how JPEG and JPEG-LS start and end
CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000, perhaps inside a JP2 file
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 and SOF55; not DHT, JPG, DAC
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, RST0 to RST7, SOI
ADOBE = 0xEE  # APP14, of Adobe


class Head(NamedTuple):
    """What the frame itself says."""

    rows: int
    columns: int
    samples: int
    bits: int
    is_ybr: bool | None = None  # what Adobe's marker says; None without one


def decode(frame: bytes, syntax: str, name: str, rows: int, columns: int, samples: int) -> tuple[NDArray[Any], Head]:
    """The samples as they were compressed, YBR not turned into RGB but by JPEG 2000 itself; (H, W) or (H, W, samples).

    Args:
        name: of the transfer syntax, for errors.

    Raises:
        InvalidInput: damaged, or of another size than the DICOM header says: a decoder would take minutes for garbage.
        MissingExtra: imagecodecs is not installed.
    """
    try:
        head = read_head(frame)
    except (IndexError, struct.error):
        head = None
    # at the end of a JPEG-LS frame that is cut off, CharLS 2.4 decodes zeros for half a minute
    if head is None or (syntax in JPEG_LS and not frame.rstrip(b"\0").endswith(EOI)):
        raise damaged(name)
    if (head.rows, head.columns, head.samples) != (rows, columns, samples):
        raise InvalidInput(
            f"is a DICOM file that cannot be read: its {name} frame has {head.columns} x {head.rows} pixels of "
            f"{head.samples} samples; expected {columns} x {rows} of {samples}, as Columns (0028,0011), Rows "
            "(0028,0010) and Samples per Pixel (0028,0002) say"
        )
    decoder = decoder_of(syntax, samples)
    try:
        decoded = decoder(frame)
    except Exception:  # of a type for each codec
        raise damaged(name) from None
    if decoded.shape[:2] != (rows, columns) or decoded.size != rows * columns * samples:
        raise damaged(name)
    return decoded, head


def decoder_of(syntax: str, samples: int) -> Callable[[bytes], NDArray[Any]]:
    try:
        import imagecodecs
    except ImportError:
        raise MissingExtra("reading compressed DICOM", "imagecodecs", "dicom") from None
    if syntax in JPEG:  # the same colours in and out: as they are
        colours = "RGB" if samples == 3 else None
        return partial(imagecodecs.jpeg8_decode, colorspace=colours, outcolorspace=colours)
    if syntax in JPEG_LS:
        return imagecodecs.jpegls_decode
    return imagecodecs.jpeg2k_decode


def damaged(name: str) -> InvalidInput:
    return InvalidInput(
        f"is a DICOM file that cannot be read: its Pixel Data (7FE0,0010) is not {name}, damaged or cut "
        "off; expected the complete file"
    )


def read_head(frame: bytes) -> Head | None:
    """Size, samples and depth; None if the frame is not of JPEG's kin."""
    if frame.startswith(SOI):
        return read_jpeg_head(frame)
    start = frame.find(CODESTREAM)
    if start < 0:
        return None
    # ISO/IEC 15444-1, A.5.1: markers, Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz, four of tiles, Csiz, Ssiz
    x_size, y_size, x_offset, y_offset = struct.unpack_from(">4I", frame, start + 8)
    samples, depth = struct.unpack_from(">HB", frame, start + 40)
    return Head(y_size - y_offset, x_size - x_offset, samples, (depth & 0x7F) + 1)


def read_jpeg_head(frame: bytes) -> Head | None:
    """ISO/IEC 10918-1, B.1.1.3: markers with lengths, up to that of the frame."""
    is_ybr = None
    at = 2
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in WITHOUT_LENGTH:  # fill bytes
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", frame, at + 2)
        if marker == ADOBE and frame[at + 4 : at + 9] == b"Adobe" and length >= 14:
            is_ybr = frame[at + 15] != 0
        if marker in FRAME_HEADERS:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return Head(rows, columns, samples, bits, is_ybr)
        at += 2 + length
    return None
