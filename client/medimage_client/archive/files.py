"""Studies of files: of a folder, a zip, a DICOMDIR or a single DICOM file."""

from __future__ import annotations  # pydicom's types, without importing it

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from medimage_client.archive.studies import KEYWORDS, Instance, Studies, header_text, header_texts, instance_of
from medimage_client.constants import MAX_OBJECT_BYTES
from medimage_client.errors import InvalidInput, MissingExtra
from medimage_client.images.dicom import DICOM_HEAD_BYTES, DICOMDIR, Bounded, is_dicom
from medimage_client.images.dicom_elements import quiet
from medimage_client.images.encoding import read_path

if TYPE_CHECKING:
    from pydicom import Dataset

Member = tuple[str, Callable[[], BinaryIO], Callable[[], bytes]]  # name, how to open it, how to read it whole
ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")  # of a member, and of a zip without any
ENCRYPTED = 0x1  # a flag of a zip's member


def read_files(path: Path) -> Studies:
    """The studies in a folder with those below it, a zip, a DICOMDIR or a DICOM file.

    A file that is no DICOM object or has no pixels is named in `left_out`.

    Raises:
        InvalidInput: there is no such path, or it is a damaged zip or DICOMDIR.
        MissingExtra: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtra("reading DICOM", "pydicom", "dicom") from None
    instances: list[Instance] = []
    left_out: list[str] = []
    for name, opened, whole in members_of(path):
        found = read_member(name, opened, whole)
        if isinstance(found, str):
            left_out.append(f"{name}: {found}")
        else:
            instances.append(found)
    return Studies.of(instances, left_out)


def is_collection(path: Path) -> bool:
    """Whether a file holds others: a zip or a DICOMDIR."""
    return path.is_file() and (is_zip(path) or is_dicomdir(path))


def head_of(path: Path) -> bytes:
    """What tells the kind of a file; nothing of one that cannot be read, of which its reader will tell."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(DICOM_HEAD_BYTES)
    return b""


def is_zip(path: Path) -> bool:
    """By its first bytes: an image file may have a zip at its end."""
    return head_of(path).startswith(ZIP_HEADS)


def members_of(path: Path) -> Iterator[Member]:
    if path.is_dir():
        files = sorted(Path(folder) / file for folder, _, names in os.walk(path) for file in names)
        yield from (member_of(file) for file in files if file.is_file())  # not a pipe, which may have no end
    elif not path.exists():
        raise InvalidInput(f"no file or folder {path}")
    elif is_zip(path):
        yield from zipped(path)
    elif is_dicomdir(path):
        yield from (member_of(file) for file in files_of_dicomdir(path))
    else:
        yield member_of(path)


def member_of(file: Path) -> Member:
    return str(file), lambda: file.open("rb"), partial(read_path, file)


def zipped(path: Path) -> Iterator[Member]:
    """Members by name; each is opened in a zip of its own, since several threads may read."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    except (OSError, zipfile.BadZipFile):
        raise InvalidInput(f"{path} is a zip that is damaged or cannot be read") from None
    for info in infos:
        yield f"{path}/{info.filename}", partial(open_zipped, path, info), partial(read_zipped, path, info)


def open_zipped(path: Path, info: zipfile.ZipInfo) -> BinaryIO:
    """A member's content, at most as long as the zip says, and that within bounds."""
    return BytesIO(read_zipped(path, info))


def read_zipped(path: Path, info: zipfile.ZipInfo) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            return read_in_zip(archive, info)
    except (OSError, zipfile.BadZipFile):
        raise InvalidInput("is a damaged member of its zip") from None


def read_in_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member of an open zip, which several threads may read.

    Raises:
        InvalidInput: it is encrypted, too large or damaged.
    """
    if info.flag_bits & ENCRYPTED:
        raise InvalidInput("is encrypted; unpack the zip and give its folder")
    if info.file_size > MAX_OBJECT_BYTES:
        raise InvalidInput(f"has more than {MAX_OBJECT_BYTES >> 20} MiB; unpack the zip and give its folder")
    try:
        with archive.open(info) as member:
            return member.read(info.file_size)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        raise InvalidInput("is a damaged member of its zip") from None


def is_dicomdir(path: Path) -> bool:
    """By the SOP class in its file meta information."""
    if not is_dicom(head_of(path)):
        return False
    with suppress(Exception):  # of pydicom, of almost any type: then it is not one
        from pydicom.filereader import read_file_meta_info

        return str(read_file_meta_info(path).get("MediaStorageSOPClassUID")) == DICOMDIR
    return False


def files_of_dicomdir(path: Path) -> list[Path]:
    """The files that it names, in its order, within its folder."""
    from pydicom import dcmread

    folder = path.parent.resolve()
    try:
        with path.open("rb") as file, quiet():
            records = dcmread(Bounded(file)).DirectoryRecordSequence
            names = [header_texts(record, "ReferencedFileID") for record in records]
    except Exception as error:  # of pydicom, of almost any type
        raise InvalidInput(f"{path} is a DICOMDIR that cannot be read ({type(error).__name__})") from None
    files = [folder.joinpath(*parts) for parts in names if parts]
    if not all(file.resolve().is_relative_to(folder) for file in files):
        raise InvalidInput(f"{path} names a file outside its folder")
    return files


def read_member(name: str, opened: Callable[[], BinaryIO], whole: Callable[[], bytes]) -> Instance | str:
    """The instance, or why there is none."""
    try:
        with opened() as file, quiet():
            header = read_header(file)
            if header is None:
                return "is no DICOM object"
            return instance_of(header, name=name, read=whole) or without_pixels(header_text(header, "SOPClassUID"))
    except InvalidInput as error:
        return error.reason
    except OSError as error:
        return f"cannot be read: {error.strerror or type(error).__name__}"


def read_header(file: BinaryIO) -> Dataset | None:
    """A header without the pixels, of a file without preamble, too; None if it has not the UIDs of an object.

    A damaged header is none: its texts could be a patient's, so the exception is not passed on.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    is_forced = False
    while True:
        try:
            file.seek(0)
            header = dcmread(Bounded(file), stop_before_pixels=True, specific_tags=list(KEYWORDS), force=is_forced)
        except InvalidDicomError:
            is_forced = True
            continue
        except (InvalidInput, OSError):
            raise
        except Exception:  # of pydicom, of almost any type
            return None
        if header_text(header.file_meta, "MediaStorageSOPClassUID") == DICOMDIR:
            header.SOPClassUID = DICOMDIR
            return header
        return header if header_text(header, "SOPInstanceUID") and header_text(header, "SOPClassUID") else None


def without_pixels(sop_class: str) -> str:
    """What an object without pixels is, by its SOP class."""
    from pydicom.uid import UID

    return f"has no pixels ({UID(sop_class).name})" if sop_class else "has no pixels"
