"""Lookup tables of DICOM files (PS3.3 C.7.6.3.1.5, C.11.1.1, C.11.2.1.1)."""

from __future__ import annotations  # pydicom's types, without importing it

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput
from medimage_client.images.dicom_elements import describe, unreadable, values, wrong

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_ENTRIES = 2**16  # which a descriptor writes as 0


@dataclass(frozen=True, slots=True)
class Descriptor:
    n_entries: int
    first: int  # input value of the first entry
    bits: int  # of an entry, as stated


@dataclass(frozen=True, slots=True)
class LookupTable:
    first: int
    entries: NDArray[np.int64]
    bits: int

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.int64]:
        """The entries of inputs, which are rounded; below the first and above the last those."""
        index = np.rint(inputs).astype(np.int64) if inputs.dtype.kind == "f" else inputs
        found: NDArray[np.int64] = self.entries[(index - self.first).clip(0, len(self.entries) - 1)]
        return found

    @property
    def white(self) -> int:
        """The highest value of the bits that the entries use, which are often fewer than stated."""
        return int(2 ** min(self.bits, max(1, int(self.entries.max()).bit_length())) - 1)


def read_descriptor(item: Dataset, keyword: str, *, is_little: bool, is_signed: bool) -> Descriptor | None:
    """None if it is absent.

    Args:
        is_signed: whether inputs may be negative. A descriptor's VR is ambiguous, so its sign may have been lost.

    Raises:
        InvalidInput: it has not three values that make sense.
    """
    found = values(item, keyword)
    if len(found) == 1 and isinstance(found[0], bytes):
        found = np.frombuffer(found[0][:6], word(is_little)).tolist()
    if not found:
        return None
    try:
        n_entries, first, bits = (int(value) & 0xFFFF for value in found)
    except (TypeError, ValueError):
        raise unreadable(keyword) from None
    if not 1 <= bits <= 16:
        raise wrong(keyword, f"of {bits} bits an entry", "1 to 16")
    if is_signed and first >= 2**15:
        first -= 2**16
    return Descriptor(n_entries or MOST_ENTRIES, first, bits)


def read_lookup_table(
    item: Dataset, descriptor_keyword: str, data_keyword: str, *, is_little: bool, is_signed: bool
) -> LookupTable | None:
    """The table in an item, None if there is none.

    Raises:
        InvalidInput: its descriptor or its data make no sense; names the element.
    """
    descriptor = read_descriptor(item, descriptor_keyword, is_little=is_little, is_signed=is_signed)
    data = values(item, data_keyword)
    if descriptor is None or not data:
        return None
    entries = read_entries(data, data_keyword, descriptor.n_entries, is_little=is_little)
    return LookupTable(descriptor.first, entries, descriptor.bits)


def read_entries(data: list[Any], keyword: str, n_entries: int, *, is_little: bool) -> NDArray[np.int64]:
    """Entries of 16 bits, or of 8 where there are half as many bytes: two in a word, the first in its low byte."""
    if isinstance(data[0], bytes):
        words = np.frombuffer(data[0][: len(data[0]) // 2 * 2], word(is_little))
        if len(data[0]) == 1:
            words = np.frombuffer(data[0], np.uint8)
    else:
        try:
            words = np.array([int(value) & 0xFFFF for value in data], np.uint16)
        except (TypeError, ValueError):
            raise unreadable(keyword) from None
    if words.itemsize == 2 and len(words) == (n_entries + 1) // 2 < n_entries:
        words = words.astype("<u2").view(np.uint8)
    if len(words) < n_entries:
        raise InvalidInput(
            f"is a DICOM file whose {describe(keyword)} has {len(words)} entries; expected {n_entries}, as its "
            "descriptor says"
        )
    return words[:n_entries].astype(np.int64)


def word(is_little: bool) -> str:
    return "<u2" if is_little else ">u2"
