"""Colour of DICOM files to 8-bit RGB: RGB and YBR of any depth, palettes (PS3.3 C.7.6.3.1.2, C.7.6.19, C.7.9)."""

from __future__ import annotations  # pydicom's types, without importing it

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput
from medimage_client.images import dicom_codecs
from medimage_client.images.dicom_elements import describe, quiet, text
from medimage_client.images.dicom_grey import is_little_endian
from medimage_client.images.dicom_pixels import Layout, Stored, transfer_syntax
from medimage_client.images.dicom_tables import MOST_ENTRIES, LookupTable, read_descriptor, read_lookup_table, word
from medimage_client.images.windowing import apply_window

if TYPE_CHECKING:
    from pydicom import Dataset

COLOURS = ("Red", "Green", "Blue")
INDIRECT = 2  # kind of a segment, beside 0, discrete, and 1, linear
# R, G, B of Y, Cb, Cr with Cb and Cr around 0, of ITU-R BT.601
OF_YBR = np.array([[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]])
PARTIAL = {"YBR_PARTIAL_422", "YBR_PARTIAL_420"}  # Y of 16 … 235, Cb and Cr of 16 … 240, in 8 bits


@dataclass(frozen=True, slots=True)
class Palette:
    """A table for each of red, green and blue."""

    tables: tuple[LookupTable, LookupTable, LookupTable]
    shift: int  # of their entries, to 8 bits

    def __call__(self, indices: NDArray[Any]) -> NDArray[np.uint8]:
        """(H, W) to (H, W, 3)."""
        channels = [(table(indices) >> self.shift).clip(0, 255) for table in self.tables]
        colours: NDArray[np.uint8] = np.stack(channels, axis=-1).astype(np.uint8)
        return colours

    def covers(self, indices: NDArray[Any]) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = indices >= self.tables[0].first
        return inside


def show_colour(stored: Stored, dataset: Dataset, layout: Layout) -> NDArray[np.uint8]:
    """(H, W, 3).

    Raises:
        InvalidInput: a palette makes no sense or is missing.
    """
    if layout.photometric == "PALETTE COLOR":
        return read_palette(dataset, layout)(stored.values)
    levels = stored.values
    if layout.is_signed:
        levels = levels + (1 << (layout.bits_stored - 1))
    white = (1 << layout.bits_stored) - 1
    if layout.bits_stored > 8 and levels.max() < 256:  # 8-bit colours in a wider cell would be nearly black
        white = 255
    if is_ybr(stored, dataset, layout):
        return ybr_to_rgb(levels, white, is_partial=layout.photometric in PARTIAL)
    return apply_window(levels, (0, white))


def is_ybr(stored: Stored, dataset: Dataset, layout: Layout) -> bool:
    """Whether the samples are YBR still: the compressed frame's own word goes before the header's."""
    if layout.photometric in ("YBR_ICT", "YBR_RCT"):  # of JPEG 2000, whose decoder turns them into RGB
        return transfer_syntax(dataset) not in (*dicom_codecs.JPEG_2000, *dicom_codecs.HIGH_THROUGHPUT)
    return layout.photometric.startswith("YBR") if stored.is_ybr is None else stored.is_ybr


def ybr_to_rgb(levels: NDArray[Any], white: int, *, is_partial: bool) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.2, of any depth."""
    scale = 255 / white
    ybr = levels * scale
    if is_partial:
        ybr = (ybr - (16, 128, 128)) * (255 / 219, 255 / 224, 255 / 224)
    else:
        ybr = ybr - (0, (white // 2 + 1) * scale, (white // 2 + 1) * scale)
    return apply_window(ybr @ OF_YBR.T, (0, 255))


def has_supplemental_palette(dataset: Dataset) -> bool:
    """Whether some values of a grey image stand for colours."""
    return text(dataset, "PixelPresentation") in ("COLOR", "MIXED") and bool(
        text(dataset, "RedPaletteColorLookupTableDescriptor")
    )


def apply_supplemental_palette(
    show_grey: Callable[[Stored], NDArray[np.uint8]], stored: Stored, palette: Palette
) -> NDArray[np.uint8]:
    """Colour from the palette's first value on, grey below (PS3.3 C.8.16.2.1.1.1)."""
    in_colour = palette.covers(stored.values)
    coloured = palette(stored.values)
    if in_colour.all():
        return coloured
    return np.where(in_colour[..., None], coloured, show_grey(stored.without(in_colour))[..., None])


def read_palette(dataset: Dataset, layout: Layout) -> Palette:
    """
    Raises:
        InvalidInput: a table of it is missing or makes no sense; names the element.
    """
    tables = tuple(read_colour(dataset, colour, layout) for colour in COLOURS)
    most, bits = max(int(table.entries.max()) for table in tables), max(table.bits for table in tables)
    # Entries of 8 bits may be said to have 16, and the other way round.
    shift = 0 if most < 256 else 8 if most >= 4096 else max(0, bits - 8)
    red, green, blue = tables
    return Palette((red, green, blue), shift)


def read_colour(dataset: Dataset, colour: str, layout: Layout) -> LookupTable:
    descriptor_keyword = f"{colour}PaletteColorLookupTableDescriptor"
    data_keyword = f"{colour}PaletteColorLookupTableData"
    segments = f"Segmented{data_keyword}"
    is_little, is_signed = is_little_endian(dataset), layout.is_signed
    table = read_lookup_table(dataset, descriptor_keyword, data_keyword, is_little=is_little, is_signed=is_signed)
    if table is None and segments in dataset:
        return expand_segments(dataset, colour, is_little=is_little, is_signed=is_signed)
    if table is None:
        missing = data_keyword if text(dataset, descriptor_keyword) else descriptor_keyword
        raise InvalidInput(f"is a DICOM file in palette colours without {describe(missing)}")
    return table


def expand_segments(dataset: Dataset, colour: str, *, is_little: bool, is_signed: bool) -> LookupTable:
    """A palette's segmented table (PS3.3 C.7.9.2), which pydicom expands."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.uid import UID

    keyword = f"{colour}PaletteColorLookupTableDescriptor"
    descriptor = read_descriptor(dataset, keyword, is_little=is_little, is_signed=is_signed)
    if descriptor is None:
        raise InvalidInput(f"is a DICOM file in palette colours without {describe(keyword)}")
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = UID(transfer_syntax(dataset))
    segments = dataset[f"Segmented{colour}PaletteColorLookupTableData"]
    for name in COLOURS:  # three of a kind, of which one is used
        setattr(one, f"{name}PaletteColorLookupTableDescriptor", [descriptor.n_entries & 0xFFFF, 0, descriptor.bits])
        one.add_new(f"Segmented{name}PaletteColorLookupTableData", segments.VR, segments.value)
    is_bytes = descriptor.bits <= 8
    address = ((0, 8, 16, 24) if is_little else (8, 0, 24, 16)) if is_bytes else (0, 16)  # as pydicom has it
    try:
        count_entries(np.frombuffer(segments.value, np.uint8 if is_bytes else word(is_little)).tolist(), address)
        with quiet():
            entries = apply_color_lut(np.arange(descriptor.n_entries), one)[:, 0]
    except Exception:  # pydicom's, of almost any type
        raise InvalidInput(
            f"is a DICOM file whose {describe(f'Segmented{colour}PaletteColorLookupTableData')} is damaged; expected "
            f"segments of {descriptor.n_entries} entries"
        ) from None
    return LookupTable(descriptor.first, entries.astype(np.int64), descriptor.bits)


def count_entries(words: Sequence[int], address: Sequence[int], n_segments: int = -1) -> int:
    """How many entries these segments become; pydicom expands them whatever that is, and few words may make billions.

    Args:
        address: shifts of the words that say where the segments lie that an indirect one repeats.

    Raises:
        ValueError: more than twice as many as a table can have.
        IndexError: a segment is cut off.
    """
    count = at = 0
    while at + 1 < len(words) and n_segments != 0:
        kind, length = words[at], words[at + 1]
        at += 2
        if kind == INDIRECT:
            start = sum(words[at + n] << shift for n, shift in enumerate(address))
            count += count_entries(words[start:], address, length)
        count += max(1, length)  # also what has no length takes its time
        at += (length, 1, len(address))[kind]
        n_segments -= 1
        if count > 2 * MOST_ENTRIES:
            raise ValueError
    return count
