"""Where studies are: a path, or a `dicomweb+https://…` of an archive."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from medimage_client.archive.credentials import Credentials
from medimage_client.archive.dicomweb import Archive, Resource, is_dicomweb
from medimage_client.archive.files import read_files
from medimage_client.archive.studies import Studies

Source = str | os.PathLike[str]


class Sources:
    """Reads sources, with one connection an archive that they name.

    Args:
        credentials, ca, cert: as for `Archive`; None for those of the environment, MEDIMAGE_ARCHIVE_*.
    """

    def __init__(
        self, *, credentials: Credentials | None = None, ca: Path | None = None, cert: Path | None = None
    ) -> None:
        self._credentials = credentials
        self._ca, self._cert = ca, cert
        self._archives: dict[str, Archive] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for archive in self._archives.values():
            archive.close()

    def read(self, source: Source) -> Studies:
        """The studies of a source, in order.

        Raises:
            InvalidInput: no such path, or not a source.
            MedImageError: an archive fails, see `errors.py`.
        """
        if isinstance(source, str) and is_dicomweb(source):
            resource = Resource.parse(source)
            return self.archive(resource.url).read(resource)
        return read_files(Path(source))

    def archive(self, url: str) -> Archive:
        """The connection to an archive, by the url of its service or a source in it; the same for the same service."""
        if is_dicomweb(url):
            url = Resource.parse(url).url
        if url not in self._archives:
            self._archives[url] = Archive(
                url,
                credentials=Credentials.from_env(os.environ) if self._credentials is None else self._credentials,
                ca=self._ca or path_from_env("MEDIMAGE_ARCHIVE_CA"),
                cert=self._cert or path_from_env("MEDIMAGE_ARCHIVE_CERT"),
            )
        return self._archives[url]


def path_from_env(name: str) -> Path | None:
    return Path(value) if (value := os.environ.get(name)) else None


def read_studies(source: Source) -> Studies:
    """The studies in a folder, a zip, a DICOMDIR, a DICOM file or an archive (`dicomweb+https://…`), in order.

    Credentials and certificates of an archive are those of the environment, MEDIMAGE_ARCHIVE_*. Instances read from it
    when they are asked to.

    Raises:
        InvalidInput: no such path, or not a source.
        MissingExtra: pydicom or dicomweb-client is not installed.
        MedImageError: an archive fails, see `errors.py`.
    """
    return Sources().read(source)
