"""Elements of a DICOM header. One that is empty is an absent one; one that makes no sense is named in the error."""

from __future__ import annotations  # pydicom's types, without importing it

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any

from medimage_client.errors import InvalidInput

if TYPE_CHECKING:
    from pydicom import Dataset


LOCK = RLock()  # of what is one for all threads: filters of warnings, and pydicom's log


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings and log, which quote values of patients."""
    log = logging.getLogger("pydicom")
    with LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        was_disabled, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = was_disabled


def describe(keyword: str) -> str:
    """Name and tag, as in `Rescale Slope (0028,1053)`."""
    from pydicom.datadict import dictionary_description, tag_for_keyword
    from pydicom.tag import Tag

    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"


def values(dataset: Dataset | None, keyword: str) -> list[Any]:
    """The values that an element has; none if it is absent or empty.

    Raises:
        InvalidInput: they cannot be read; the element is named.
    """
    if dataset is None or keyword not in dataset:
        return []
    try:
        with quiet():
            value = dataset[keyword].value
    except Exception as error:  # pydicom converts a value when it is asked for, and raises almost any type
        raise unreadable(keyword) from error
    if value is None or value == b"" or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return [value]
    return [one for one in value if one is not None and one != ""]


def text(dataset: Dataset | None, keyword: str) -> str:
    """Its first value as text in upper case, without the spaces around it; "" if there is none."""
    found = values(dataset, keyword)
    return str(found[0]).strip().upper() if found else ""


def uid_name(uid: str) -> str:
    """What DICOM calls a UID; the UID itself if it is another, and "unknown" for what is none."""
    from pydicom.uid import UID

    with quiet():
        return UID(uid).name if UID(uid).is_valid else "unknown"


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Its values, which may be infinite or NaN.

    Raises:
        InvalidInput: not numbers.
    """
    try:
        return [float(value) for value in values(dataset, keyword)]
    except (TypeError, ValueError) as error:
        raise unreadable(keyword) from error


def number(dataset: Dataset, keyword: str) -> float | None:
    """Its first value; None if there is none.

    Raises:
        InvalidInput: not a finite number.
    """
    found = numbers(dataset, keyword)
    if found and not math.isfinite(found[0]):
        raise wrong(keyword, found[0], "a finite number")
    return found[0] if found else None


def whole(dataset: Dataset, keyword: str, default: int | None = None, *, least: int = 0) -> int:
    """Its first value, a whole number.

    Raises:
        InvalidInput: not one, less than `least`, or absent and without default.
    """
    found = number(dataset, keyword)
    if found is None:
        if default is None:
            raise InvalidInput(
                f"is a DICOM file that cannot be read: it has no {describe(keyword)}, which an image needs"
            )
        return default
    if found != int(found) or found < least:
        raise wrong(keyword, found, f"a whole number of at least {least}")
    return int(found)


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence that hold anything."""
    return [item for item in values(dataset, keyword) if len(item)]


def wrong(keyword: str, found: float | str, expected: str) -> InvalidInput:
    shown = f"{found:g}" if isinstance(found, float | int) else found
    return InvalidInput(f"is a DICOM file whose {describe(keyword)} is {shown}; expected {expected}")


def unreadable(keyword: str) -> InvalidInput:
    return InvalidInput(f"is a DICOM file that cannot be read: its {describe(keyword)} is damaged")
