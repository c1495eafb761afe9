"""A planned row to its image, and to what the image's own header tells of it."""

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from medimage_analysis.planned import WHOLE, Row, stamp_of
from medimage_client.archive.dicomweb import Resource, is_dicomweb
from medimage_client.archive.files import read_header, read_in_zip
from medimage_client.archive.nifti import is_nifti, read_nifti
from medimage_client.archive.slices import Slice
from medimage_client.archive.sources import Sources
from medimage_client.archive.studies import header_text
from medimage_client.errors import InvalidInput
from medimage_client.images.dicom import DICOM_HEAD_BYTES, is_dicom
from medimage_client.images.encoding import ImageInput, encode_image, read_base64, read_path
from medimage_client.images.windowing import DicomWindow

T = TypeVar("T")

UIDS = {"study_uid": "StudyInstanceUID", "series_uid": "SeriesInstanceUID", "sop_uid": "SOPInstanceUID"}
OPEN_ZIPS = 4
HELD_VOLUMES = 1  # a volume of 512 x 512 x 500 voxels has half a GB


class Held(Generic[T]):
    """The last few of what is made by a path, each made by one thread while the others wait."""

    def __init__(self, make: Callable[[Path], T], most: int) -> None:
        self._make, self._most = make, most
        self._held: OrderedDict[Path, T] = OrderedDict()
        self._lock = Lock()

    def __call__(self, path: Path) -> T:
        with self._lock:
            if path not in self._held:
                while len(self._held) >= self._most:
                    self._held.popitem(last=False)  # before the next is made: two may not fit
                self._held[path] = self._make(path)
            self._held.move_to_end(path)
            return self._held[path]


@dataclass(frozen=True, slots=True)
class Found:
    image: ImageInput
    uids: dict[str, str]  # those that the image's own header tells


class Reader:
    """Reads rows, for several threads.

    Args:
        dicom_window: how frames of DICOM objects are shown; whole objects are shown by who embeds them.
        as_planned: refuse a file that has changed since it was planned.
    """

    def __init__(self, archives: Sources, dicom_window: DicomWindow, *, as_planned: bool) -> None:
        self._archives = archives
        self._dicom_window = dicom_window
        self._as_planned = as_planned
        self._zips = Held(zipfile.ZipFile, OPEN_ZIPS)
        self._volumes: Held[list[Slice]] = Held(lambda path: read_nifti(path, None), HELD_VOLUMES)
        self._archive_lock = Lock()

    def read(self, row: Row) -> Found:
        """
        Raises:
            InvalidInput: it cannot be read, is not there any more, or has changed.
            NotFound: an archive has it no more.
            MedImageError: an archive fails.
        """
        frame = row["frame"]
        if row["plan.base64"] is not None:
            return found_in(read_base64(row["plan.base64"]), row)
        if row["plan.path"] is None:
            raise InvalidInput("has no image; expected a path or base64")
        if is_dicomweb(row["plan.path"]):
            resource = Resource.parse(row["plan.path"])
            with self._archive_lock:
                archive = self._archives.archive(resource.url)
            assert resource.study and resource.series and resource.instance
            file = archive.retrieve(resource.study, resource.series, resource.instance)
            return Found(self._shown(file, frame), {})
        path = Path(row["plan.path"])
        if self._as_planned:
            check_unchanged(path, row)
        if row["plan.member"] is not None:
            file = self._member(path, row["plan.member"])
        elif is_nifti(path):
            volume = self._volumes(path)
            return Found(volume[frame or 0].read(self._dicom_window), {})
        else:
            file = read_path(path)
        if not file:
            raise InvalidInput("is empty; expected the bytes of an image file")
        found = found_in(file, row)
        return Found(self._shown(file, frame), found.uids)

    def _shown(self, file: bytes, frame: int | None) -> bytes:
        """The object, which is shown when it is embedded; of several frames one as it is shown."""
        return file if frame is None else encode_image(file, frame=frame, dicom_window=self._dicom_window)

    def _member(self, path: Path, name: str) -> bytes:
        try:
            archive = self._zips(path)
            if name == WHOLE:
                raise InvalidInput("could not be read when the run was planned; embed it into a table of its own")
            info = archive.getinfo(name)
        except (OSError, zipfile.BadZipFile):
            is_in = "is" if name == WHOLE else "is in"
            raise InvalidInput(f"{is_in} a zip that is damaged or cannot be read") from None
        except KeyError:
            raise InvalidInput("is in its zip no more") from None
        return read_in_zip(archive, info)


def check_unchanged(path: Path, row: Row) -> None:
    """Raise InvalidInput if a file is not what was planned."""
    seen = {name: value for name, value in row.items() if name in ("plan.size", "plan.modified_ns")}
    now = stamp_of(path)
    if now and None not in seen.values() and now != seen:
        raise InvalidInput("has changed since the run was planned; --retry-failed takes it as it is then")


def found_in(file: bytes, row: Row) -> Found:
    """With the UIDs of a DICOM file's own header, unless the plan has them."""
    if row["sop_uid"] is not None or not is_dicom(file[:DICOM_HEAD_BYTES]):
        return Found(file, {})
    header = read_header(BytesIO(file))
    if header is None:
        return Found(file, {})
    return Found(file, {name: uid for name, keyword in UIDS.items() if (uid := header_text(header, keyword))})
