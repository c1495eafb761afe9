"""Pixel Data of a DICOM file to the stored values of one frame (PS3.3 C.7.6.3.1, PS3.5 section 8)."""

from __future__ import annotations  # pydicom's types, without importing it

import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.constants import MAX_FRAME_PX
from medimage_client.errors import InvalidInput
from medimage_client.images import dicom_codecs
from medimage_client.images.dicom_elements import describe, number, numbers, quiet, text, uid_name, values, whole, wrong

if TYPE_CHECKING:
    from pydicom import Dataset

PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
GREY = ("MONOCHROME1", "MONOCHROME2")
ONE_SAMPLE = (*GREY, "PALETTE COLOR")
THREE_SAMPLES = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, "1.2.840.10008.1.2.1.99", EXPLICIT_BIG)  # the third of a deflated file
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # Deflated Image Frame Compression
RLE = "1.2.840.10008.1.2.5"
PADDING = {"PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
           "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
           "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """How an image object holds its pixels, with what its header leaves out."""

    element: str  # of PIXEL_ELEMENTS
    rows: int
    columns: int
    n_frames: int
    samples: int
    photometric: str
    planar: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool

    @property
    def is_colour(self) -> bool:
        return self.photometric not in GREY

    @property
    def is_float(self) -> bool:
        return self.element != "PixelData"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    def frame_index(self, frame: int | None) -> int:
        index = frame or 0
        if not 0 <= index < self.n_frames:
            raise InvalidInput(f"frame is {index}; this DICOM file has frames 0 to {self.n_frames - 1}")
        return index


@dataclass(frozen=True, slots=True)
class Stored:
    """The stored values of a frame."""

    values: NDArray[Any]  # (H, W) or (H, W, samples)
    is_padding: NDArray[np.bool_] | None  # (H, W); None if none is
    is_ybr: bool | None = None  # what the compressed frame itself says; None if nothing

    def without(self, pixels: NDArray[np.bool_]) -> Stored:
        """These pixels as padding."""
        return replace(self, is_padding=pixels if self.is_padding is None else self.is_padding | pixels)


def image_layout(dataset: Dataset) -> Layout:
    """
    Raises:
        InvalidInput: an element is missing or wrong, which it names.
    """
    element = next(keyword for keyword in PIXEL_ELEMENTS if keyword in dataset)
    photometric = text(dataset, "PhotometricInterpretation")
    samples = whole(dataset, "SamplesPerPixel", 1 if photometric in ("", *ONE_SAMPLE) else None, least=1)
    if not photometric and samples == 1:
        photometric = "MONOCHROME2"
    if photometric not in {1: ONE_SAMPLE, 3: THREE_SAMPLES}.get(samples, ()):
        raise wrong(
            "PhotometricInterpretation",
            f"{photometric if photometric in (*ONE_SAMPLE, *THREE_SAMPLES) else 'missing or unknown'}, with {samples} "
            f"in {describe('SamplesPerPixel')}",
            f"one of {', '.join(ONE_SAMPLE)} for one sample, of {', '.join(THREE_SAMPLES)} for three",
        )
    bits_allocated = whole(dataset, "BitsAllocated", FLOAT_BITS.get(element), least=1)
    if bits_allocated not in (1, 8, 16, 32, 64):
        raise wrong("BitsAllocated", bits_allocated, "1, 8, 16, 32 or 64")
    bits_stored = whole(dataset, "BitsStored", whole(dataset, "HighBit", bits_allocated - 1) + 1, least=1)
    high_bit = whole(dataset, "HighBit", bits_stored - 1)
    if bits_stored > bits_allocated:
        raise wrong("BitsStored", bits_stored, f"at most {bits_allocated}, as {describe('BitsAllocated')} says")
    if not bits_stored - 1 <= high_bit < bits_allocated:
        raise wrong("HighBit", high_bit, f"{bits_stored - 1} to {bits_allocated - 1}")
    sign = whole(dataset, "PixelRepresentation", 0)
    if sign > 1:
        raise wrong("PixelRepresentation", sign, "0 or 1")
    rows, columns = whole(dataset, "Rows", least=1), whole(dataset, "Columns", least=1)
    if rows * columns > MAX_FRAME_PX:  # a few bytes may stand for them all
        raise InvalidInput(
            f"is a DICOM file of {columns} x {rows} pixels, as {describe('Columns')} and {describe('Rows')} say; "
            f"expected at most {MAX_FRAME_PX} in all"
        )
    return Layout(
        element=element,
        rows=rows,
        columns=columns,
        n_frames=whole(dataset, "NumberOfFrames", 1) or 1,
        samples=samples,
        photometric=photometric,
        planar=whole(dataset, "PlanarConfiguration", 0),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=high_bit,
        is_signed=sign == 1,
    )


def read_stored(dataset: Dataset, layout: Layout, index: int) -> Stored:
    """The stored values of frame `index`: Bits Stored bits below High Bit alone, with their sign.

    Raises:
        InvalidInput: the pixels are fewer than the header says, damaged, or compressed in a way that is not read.
        MissingExtra: they are compressed and imagecodecs is not installed.
    """
    data = values(dataset, layout.element)
    if not data:
        raise InvalidInput(f"is a DICOM file whose {describe(layout.element)} is empty; expected the pixels")
    syntax = transfer_syntax(dataset)
    name = uid_name(syntax)
    head = None
    if syntax in NATIVE:
        cells = read_native(dataset, layout, index)
    elif syntax == RLE:
        cells = read_with_pydicom(dataset, layout, index, name)
    elif syntax == DEFLATED_FRAMES:
        cells = read_deflated(encapsulated_frame(dataset, layout, index, name), layout)
    elif syntax in dicom_codecs.SYNTAXES:
        frame = encapsulated_frame(dataset, layout, index, name)
        cells, head = dicom_codecs.decode(frame, syntax, name, layout.rows, layout.columns, layout.samples)
    else:
        raise InvalidInput(
            f"is a DICOM file compressed as {name}, {describe('TransferSyntaxUID')}, which is not read; expected RLE, "
            "JPEG, JPEG-LS, JPEG 2000 or no compression"
        )
    if layout.is_float:
        return Stored(cells, find_padding(dataset, layout, cells, cells))
    stored = stored_bits(cells, layout, head, is_lossy=syntax in dicom_codecs.LOSSY)
    is_padding = None if layout.is_colour else find_padding(dataset, layout, cells, stored)
    return Stored(stored, is_padding, None if head is None else head.is_ybr)


def transfer_syntax(dataset: Dataset) -> str:
    """Its UID; of a file without one what it was read as, if it is not compressed."""
    stated = values(getattr(dataset, "file_meta", None), "TransferSyntaxUID")
    if stated:
        return str(stated[0])
    if getattr(dataset[PIXEL_ELEMENTS[0]], "is_undefined_length", False) if PIXEL_ELEMENTS[0] in dataset else False:
        raise InvalidInput(f"is a compressed DICOM file without {describe('TransferSyntaxUID')}, which says how")
    is_implicit, is_little = dataset.original_encoding
    if is_implicit:
        return IMPLICIT_LITTLE
    return EXPLICIT_LITTLE if is_little else EXPLICIT_BIG


def read_native(dataset: Dataset, layout: Layout, index: int) -> NDArray[Any]:
    n_bits = layout.n_frames * layout.rows * layout.columns * layout.samples * layout.bits_allocated
    if layout.photometric == "YBR_FULL_422":
        n_bits = n_bits * 2 // 3
    n_bytes = len(dataset[layout.element].value)
    if n_bytes < (n_bits + 7) // 8:
        raise InvalidInput(
            f"is a DICOM file that cannot be read: its {describe(layout.element)} has {n_bytes} bytes; expected "
            f"{(n_bits + 7) // 8} by its Rows, Columns and Number of Frames"
        )
    return read_with_pydicom(dataset, layout, index, "uncompressed")


def read_with_pydicom(dataset: Dataset, layout: Layout, index: int, name: str) -> NDArray[Any]:
    """Native and RLE frames: packed bits, either byte order, planar configuration, halved chroma."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    whole_header = Dataset()  # with what the file leaves out
    whole_header.file_meta = FileMetaDataset()
    whole_header.file_meta.TransferSyntaxUID = UID(transfer_syntax(dataset))
    whole_header.Rows, whole_header.Columns = layout.rows, layout.columns
    whole_header.SamplesPerPixel, whole_header.PhotometricInterpretation = layout.samples, layout.photometric
    whole_header.NumberOfFrames = layout.n_frames
    whole_header.BitsAllocated = layout.bits_allocated
    if not layout.is_float:
        # all bits of a cell, unsigned: which of them are stored, and their sign, is for `stored_bits`
        whole_header.BitsStored, whole_header.HighBit = layout.bits_allocated, layout.bits_allocated - 1
        whole_header.PixelRepresentation = 0
    if layout.samples > 1:
        whole_header.PlanarConfiguration = layout.planar
    for keyword in (layout.element, "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            whole_header[keyword] = dataset[keyword]
    try:
        with quiet():
            array: NDArray[Any] = pixel_array(whole_header, index=index, raw=True)
    except Exception:  # pydicom's, of almost any type
        raise dicom_codecs.damaged(name) from None
    return array


def encapsulated_frame(dataset: Dataset, layout: Layout, index: int, name: str) -> bytes:
    from pydicom.encaps import get_frame

    offsets, lengths = (values(dataset, f"ExtendedOffsetTable{suffix}") for suffix in ("", "Lengths"))
    extended = (offsets[0], lengths[0]) if offsets and lengths else None
    try:
        with quiet():
            return get_frame(
                dataset[layout.element].value, index, number_of_frames=layout.n_frames, extended_offsets=extended
            )
    except Exception:  # pydicom's, of several types
        raise dicom_codecs.damaged(name) from None


def read_deflated(frame: bytes, layout: Layout) -> NDArray[Any]:
    """A frame of PS3.5 A.4.13: deflated, in little endian."""
    size = int(np.prod(layout.shape))
    dtype = np.dtype(f"<u{max(1, layout.bits_allocated // 8)}")
    try:
        raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size * dtype.itemsize)
        if layout.bits_allocated == 1:
            return np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[:size].reshape(layout.shape)
        cells = np.frombuffer(raw, dtype, size)
    except (ValueError, zlib.error):
        raise dicom_codecs.damaged("Deflated Image Frame Compression") from None
    if layout.samples > 1 and layout.planar == 1:
        return np.moveaxis(cells.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    return cells.reshape(layout.shape)


def stored_bits(
    cells: NDArray[Any], layout: Layout, head: dicom_codecs.Head | None, *, is_lossy: bool
) -> NDArray[np.int64]:
    """The stored values in the cells, which may hold other bits above and below them.

    What a lossy codec makes of values may go beyond their range, and is clipped. A codec may say itself that its values
    are signed, which is then what they are.
    """
    bits = layout.bits_stored
    is_signed = layout.is_signed or cells.dtype.kind == "i"
    wide = cells.astype(np.int64)
    if head is None or head.bits > bits:  # a codec of as many bits has moved them to the bottom already
        wide >>= layout.high_bit + 1 - bits
    if is_lossy and (cells.dtype.kind == "i" or not layout.is_signed):
        low = -(1 << (bits - 1)) if is_signed else 0
        return wide.clip(low, low + (1 << bits) - 1)
    if bits < 64:
        wide &= (1 << bits) - 1
        if is_signed:
            wide -= (wide >> (bits - 1)) << bits
    return wide


def find_padding(
    dataset: Dataset, layout: Layout, cells: NDArray[Any], stored: NDArray[Any]
) -> NDArray[np.bool_] | None:
    """Where the pixels are padding (PS3.3 C.7.5.1.1.2): one value, or the range up to a limit; None if nowhere.

    The value may fill the whole cell, beyond Bits Stored, and its sign may be lost where its VR is ambiguous.
    """
    keyword, limit_keyword = PADDING[layout.element]
    found = [value for value in numbers(dataset, keyword) if math.isfinite(value)]  # others are background as it is
    if not found:
        return None
    if layout.is_float:
        value, limit = found[0], number(dataset, limit_keyword)
        is_padding = stored == value if limit is None else between(stored, value, limit)
    else:
        value = as_stored(found[0], layout)
        limit = number(dataset, limit_keyword)
        if limit is None:
            is_padding = (stored == value) | (cells.astype(np.int64) & cell_mask(layout) == value & cell_mask(layout))
        else:
            is_padding = between(stored, value, as_stored(limit, layout))
    return is_padding if is_padding.any() else None


def between(stored: NDArray[Any], value: float, limit: float) -> NDArray[np.bool_]:
    low, high = sorted((value, limit))
    inside: NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return inside


def cell_mask(layout: Layout) -> int:
    return (1 << min(layout.bits_allocated, 63)) - 1


def as_stored(value: float, layout: Layout) -> int:
    """A header's value in the domain of the stored values: with their sign, whichever way pydicom read it."""
    cell = int(value) & cell_mask(layout)
    half = 1 << (layout.bits_allocated - 1)
    return cell - 2 * half if layout.is_signed and cell >= half else cell
