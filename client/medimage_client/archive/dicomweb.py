"""An archive that speaks DICOMweb (PS3.18): asked over QIDO-RS, read over WADO-RS, given results over STOW-RS.

dicomweb-client writes and reads the messages; it is imported where it is used, because it is the extra `archive`. Time
limits, retries, credentials and errors are those of this package. Logs hold UIDs, at debug level, and nothing else of
a patient: what the libraries below would log, which is more, is left out.
"""

from __future__ import annotations  # types of libraries that are extras

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from medimage_client.archive.answers import QUIET, errors_as_ours, is_not_ours, refused_store
from medimage_client.archive.credentials import Credentials
from medimage_client.archive.files import without_pixels
from medimage_client.archive.session import new_session
from medimage_client.archive.studies import KEYWORDS, Instance, Studies, header_text, instance_of
from medimage_client.constants import (
    ARCHIVE_PAGE,
    ARCHIVE_SILENCE_S,
    DEFAULT_ARCHIVE_TIMEOUT_S,
    DEFAULT_RETRIES,
)
from medimage_client.errors import (
    InvalidInput,
    MedImageError,
    MissingExtra,
    NotFound,
    ResponseError,
)
from medimage_client.images.dicom_elements import quiet
from medimage_client.wire.retries import with_blocking_retries

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient
    from pydicom import Dataset

T = TypeVar("T")

log = logging.getLogger(__name__)

SCHEMES = ("dicomweb+https://", "dicomweb+http://")
RESOURCE = re.compile(
    r"(?P<base>.*?)/studies(/(?P<study>[^/]+)(/series/(?P<series>[^/]+)(/instances/(?P<instance>[^/]+))?)?)?/?"
)
UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.\-_]{0,63}")  # archives hold some that the standard does not allow
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
LOOKS = 3  # at the list of a study's objects, the last of which finds nothing new unless the study grows
BETWEEN_LOOKS_S = 2.0  # for a study that grows
# What tells a result of a search (PS3.18, 10.6.3.3)
SEARCHED_UIDS = {"search_for_studies": ("0020000D",), "search_for_instances": ("0020000E", "00080018")}
DUPLICATE = 0x0111  # Failure Reason: the archive has it already


def is_dicomweb(source: object) -> bool:
    return isinstance(source, str) and source.startswith(SCHEMES)


@dataclass(frozen=True, slots=True)
class Resource:
    """What a `dicomweb+https://…` names: an archive, and in it a study, a series, an instance, or a query's studies."""

    url: str  # of the archive
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    query: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a name

    @classmethod
    def parse(cls, source: str) -> Self:
        """`dicomweb+https://host/dicom-web[/studies[/UID[/series/UID[/instances/UID]]]][?Attribute=value&…]`.

        Raises:
            InvalidInput: anything else; the message holds nothing of a query.
        """
        expected = "expected dicomweb+https://host/dicom-web/studies/UID, …/studies/UID/series/UID or …/studies?query"
        if not is_dicomweb(source):
            raise InvalidInput(f"is no DICOMweb source; {expected}")
        try:
            parts = urlsplit(source.removeprefix("dicomweb+"))
            valid = bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if valid and "@" in parts.netloc:
            raise InvalidInput("the source has credentials in it, which others can see; set MEDIMAGE_ARCHIVE_* instead")
        if not valid or parts.fragment:
            raise InvalidInput(f"is no DICOMweb source; {expected}")
        found = RESOURCE.fullmatch(parts.path)
        base = found["base"] if found else parts.path.rstrip("/")
        uids = {name: unquote(uid) for name, uid in (found.groupdict() if found else {}).items() if uid}
        uids.pop("base", None)
        if any(not UID.fullmatch(uid) for uid in uids.values()):
            raise InvalidInput(f"the source has a UID that is none; {expected}")
        if uids and parts.query:
            raise InvalidInput("the source has a study and a query; expected one of them")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(f"{parts.scheme}://{parts.netloc}{base}", **uids, query=query)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of the objects given to `Archive.store`, by SOP Instance UID, in their order."""

    stored: tuple[str, ...]
    found: tuple[str, ...]  # the archive had them before


class Archive:
    """A connection to a DICOMweb archive, for several threads; a forked process goes on by connections of its own.

    Args:
        url: of the service, `https://host/dicom-web`.
        credentials: none if None.
        ca: file of the certificates that the archive's is checked against, instead of the system's (or SSL_CERT_FILE).
        cert: PEM file of a client certificate and its key.
        timeout: seconds for one request with its retries.
        retries: attempts after the first, after failed connections, answers cut off and 429, 502, 503 or 504.

    Raises:
        MissingExtra: dicomweb-client is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        credentials: Credentials | None = None,
        ca: Path | None = None,
        cert: Path | None = None,
        timeout: float = DEFAULT_ARCHIVE_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        try:
            import dicomweb_client  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("reading an archive", "dicomweb-client", "archive") from None
        for name in QUIET:
            logging.getLogger(name).addFilter(is_not_ours)  # the same function is added once
        self.url = url.rstrip("/")
        self._credentials = credentials or Credentials()
        self._new_session = partial(new_session, self._credentials, ca, cert)
        self._session, self._process = self._new_session(), os.getpid()
        self._timeout = timeout
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A later call opens others."""
        self._session.close()

    def read(self, resource: Resource) -> Studies:
        """The studies, series or instance that a resource names, from their headers. Objects without pixels are named.

        A study that grows while it is read is looked at again; if it still grows, a note says so.

        Raises:
            NotFound: the archive has no such study or series, or nothing that fits the query.
            MedImageError: see `errors.py`; what was read before is lost with it, and cheap.
        """
        uids = [resource.study] if resource.study else self.query(resource.query)
        if not uids:
            raise NotFound("no study of the archive fits the query")
        instances: list[Instance] = []
        left_out: list[str] = []
        notes: list[str] = []
        for uid in uids:
            found = self._read_study(uid, resource, left_out, notes)
            if not found and resource.study:
                raise NotFound("the archive has no such study" + (" or series" if resource.series else ""))
            instances += [one for one in found if one is not None]
        return Studies.of(instances, left_out, notes)

    def query(self, filters: Mapping[str, str]) -> list[str]:
        """Study Instance UIDs of the studies that fit, page by page; `limit` and `offset` among the filters hold."""
        filters = dict(filters)
        try:
            limit, offset = (int(filters.pop(name, default)) for name, default in (("limit", "-1"), ("offset", "0")))
        except ValueError:
            raise InvalidInput("limit and offset of a query are whole numbers") from None
        found: dict[str, None] = {}
        for item in self._pages("search_for_studies", offset=offset, search_filters=filters):
            if 0 <= limit <= len(found):
                break
            found.setdefault(uid_of(item, "0020000D"))
        return list(found)

    def retrieve(self, study: str, series: str, instance: str) -> bytes:
        """One object as a DICOM file, in the transfer syntax in which the archive keeps it.

        From an archive that does not give that out, in Explicit VR Little Endian.

        Raises:
            NotFound: it is gone.
            ResponseError: what came is not this object.
        """
        log.debug("retrieve instance %s of series %s of study %s", instance, series, study)

        def ask(client: DICOMwebClient) -> Dataset:
            try:
                return client.retrieve_instance(study, series, instance, (("application/dicom", "*"),))
            except ResponseError as error:
                if error.status != 406:
                    raise
            plain = (("application/dicom", EXPLICIT_VR_LITTLE_ENDIAN),)
            return client.retrieve_instance(study, series, instance, plain)

        dataset = self._ask(ask)
        if header_text(dataset, "SOPInstanceUID") != instance:
            raise ResponseError("the archive answered with another object than the one asked for", status=200)
        return file_of(dataset)

    def has(self, study: str, instance: str) -> bool:
        """Whether the archive has an object, by its SOP Instance UID."""
        return self._ask(lambda client: is_there(client, study, instance))

    def store(self, instances: Iterable[Dataset]) -> Stored:
        """Store objects, one after the other; one that the archive has already, by SOP Instance UID, is not sent.

        The archive is asked before each attempt, so that one whose answer was lost is not sent twice either.

        Raises:
            ResponseError: the archive refuses an object; the message says why and how many are stored.
            MedImageError: any other failure, with the same count.
        """
        stored: list[str] = []
        found: list[str] = []
        for n, dataset in enumerate(instances, start=1):
            uid, study = header_text(dataset, "SOPInstanceUID"), header_text(dataset, "StudyInstanceUID")
            if not uid or not study:
                raise InvalidInput("has no SOP Instance UID or no Study Instance UID", place=f"object {n}")
            try:
                (stored if self._store(study, uid, file_of(dataset)) else found).append(uid)
            except MedImageError as error:
                done = f" ({len(stored)} stored before, {len(found)} were there)"
                error.args = (f"object {n}: {error}{done}",)
                raise
        return Stored(tuple(stored), tuple(found))

    def _store(self, study: str, uid: str, file: bytes) -> bool:
        """Whether it was sent; False if the archive had it."""
        from pydicom import dcmread

        was_sent = False

        def ask(client: DICOMwebClient) -> bool:
            nonlocal was_sent
            if is_there(client, study, uid):
                return was_sent  # by an attempt whose answer was lost
            log.debug("store instance %s of study %s", uid, study)
            was_sent = True
            answer = client.store_instances([dcmread(BytesIO(file))])
            reasons = [int(item.get("FailureReason") or 0) for item in answer.get("FailedSOPSequence") or []]
            if DUPLICATE in reasons:
                return False
            if reasons:
                raise ResponseError(refused_store(reasons[0]), status=200)
            told = [header_text(item, "ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence") or []]
            if uid not in told and not is_there(client, study, uid):
                raise ResponseError("the archive took the object and does not have it", status=200)
            return True

        return self._ask(ask)

    def _read_study(
        self, study: str, resource: Resource, left_out: list[str], notes: list[str]
    ) -> list[Instance | None]:
        """The instances, and None for each object without pixels."""
        log.debug("read study %s", study)
        read: dict[str, dict[str, Instance | None]] = {}  # by series and SOP Instance UID
        for look in range(LOOKS):
            listed = self._listed(study, resource)
            grown = [series for series, uids in listed.items() if uids - read.get(series, {}).keys()]
            if not grown:
                break
            if look:
                sleep(BETWEEN_LOOKS_S)
            for series in grown:
                known = read.setdefault(series, {})
                place = f"dicomweb+{self.url}/studies/{study}/series/{series}"
                for item in self._metadata(study, series):
                    uid = uid_of(item, "00080018")
                    if not uid or uid in known or (resource.instance and uid != resource.instance):
                        continue
                    name = f"{place}/instances/{uid}"
                    if uid_of(item, "0020000D") not in ("", study):
                        known[uid] = None
                        left_out.append(f"{name}: is told to be of another study")
                        continue
                    with quiet():
                        header = header_of(item)
                        known[uid] = instance_of(header, name=name, read=partial(self.retrieve, study, series, uid))
                    if known[uid] is None:
                        left_out.append(f"{name}: {without_pixels(header_text(header, 'SOPClassUID'))}")
                for uid in listed[series] - known.keys():
                    known[uid] = None
                    left_out.append(f"{place}/instances/{uid}: is listed and has no header")
        else:
            notes.append("the study grew while it was read; images that came last may be missing")
        return [instance for group in read.values() for instance in group.values()]

    def _listed(self, study: str, resource: Resource) -> dict[str, set[str]]:
        """SOP Instance UIDs by series; those of the resource."""
        listed: dict[str, set[str]] = {}
        try:
            for item in self._pages("search_for_instances", study):
                series, uid = uid_of(item, "0020000E"), uid_of(item, "00080018")
                if resource.series in (None, series) and resource.instance in (None, uid):
                    listed.setdefault(series, set()).add(uid)
        except NotFound:
            return {}
        return listed

    def _metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        try:
            return self._ask(lambda client: datasets_of(client.retrieve_series_metadata(study, series)))
        except NotFound:  # deleted since it was listed
            return []

    def _pages(self, search: str, *args: str, offset: int = 0, **options: Any) -> Iterator[Mapping[str, Any]]:
        """What a search finds, page by page.

        A page may be shorter than asked for, since archives have limits of their own: the end is a page with nothing
        new. Also of one that ignores `offset`, unless it cuts the page: then there may be more than it tells.
        """
        seen: set[tuple[str, ...]] = set()
        while True:
            page = self._ask(partial(search_page, search, args, {**options, "limit": ARCHIVE_PAGE, "offset": offset}))
            fresh = [item for item in page if uids_of(item) not in seen]
            if not fresh and len(page) == ARCHIVE_PAGE:
                raise ResponseError(
                    "the archive gives the same results again and no more; narrow the query", status=200
                )
            if not fresh:
                return
            seen |= {uids_of(item) for item in fresh}
            yield from fresh
            offset += len(page)

    def _ask(self, ask: Callable[[DICOMwebClient], T]) -> T:
        """The answer to a request, with retries and within the time limit; errors as ours."""

        def attempt(left_s: float) -> T:
            silence_s = min(ARCHIVE_SILENCE_S, left_s)
            client = self._client(silence_s)
            with errors_as_ours(self._credentials, left_s, silence_s):
                return ask(client)

        return with_blocking_retries(attempt, retries=self._retries, timeout=self._timeout)

    def _client(self, silence_s: float) -> DICOMwebClient:
        from dicomweb_client import DICOMwebClient

        if self._process != os.getpid():  # forked: the parent's connections carry its answers
            self._session, self._process = self._new_session(), os.getpid()
        try:
            client = DICOMwebClient(self.url, session=self._session, permissive_uid=True, timeout=silence_s)
        except ValueError:
            raise InvalidInput("the archive's url is not one; expected https://host/dicom-web") from None
        client.set_http_retry_params(retry=False)  # ours, which know of connections and of Retry-After
        return client


def header_of(item: Mapping[str, Any]) -> Dataset:
    """A header of DICOM JSON; an element that cannot be read counts as absent."""
    from pydicom import Dataset
    from pydicom.datadict import tag_for_keyword

    header = Dataset()
    for keyword in KEYWORDS:
        tag = f"{tag_for_keyword(keyword):08X}"
        if tag in item:
            try:
                header.update(Dataset.from_json({tag: item[tag]}))
            except Exception:  # of almost any type
                log.debug("element %s of a header cannot be read", tag)
    return header


def search_page(
    search: str, args: tuple[str, ...], options: Mapping[str, Any], client: DICOMwebClient
) -> list[dict[str, Any]]:
    found = datasets_of(getattr(client, search)(*args, **options))
    if not all(uid_of(item, tag) for item in found for tag in SEARCHED_UIDS[search]):
        raise ResponseError("a result of the archive has no UID, or one that is none", status=200)
    return found


def datasets_of(answer: Any) -> list[dict[str, Any]]:
    """An answer of DICOM JSON.

    Raises:
        ResponseError: it is another one.
    """
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise ResponseError("the archive's answer is not what DICOMweb has here (no list of objects)", status=200)
    return answer


def is_there(client: DICOMwebClient, study: str, instance: str) -> bool:
    try:
        found = datasets_of(client.search_for_instances(study, search_filters={"SOPInstanceUID": instance}))
    except NotFound:  # of archives that answer so for a study that they do not have
        return False
    return any(uid_of(item, "00080018") == instance for item in found)  # some archives ignore a filter


def uid_of(item: Mapping[str, Any], tag: str) -> str:
    """A UID in an answer; empty if there is none."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    uid = values[0] if isinstance(values, list) and values else None
    return uid if isinstance(uid, str) and UID.fullmatch(uid) else ""


def uids_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(uid_of(item, tag) for tag in ("0020000D", "0020000E", "00080018"))


def file_of(dataset: Dataset) -> bytes:
    """An object as a DICOM file.

    Raises:
        InvalidInput: it lacks what a file has to have.
    """
    file = BytesIO()
    try:
        dataset.save_as(file, enforce_file_format=True)
    except Exception as error:  # pydicom's, of almost any type; its text may quote a value
        raise InvalidInput(f"cannot be written as a DICOM file ({type(error).__name__})") from None
    return file.getvalue()
