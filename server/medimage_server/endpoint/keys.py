"""Who may ask: the keys of callers, several valid at once, held as digests alone."""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from time import monotonic

from starlette.datastructures import Headers

from medimage_server.endpoint.headers import SPACE, only
from medimage_server.endpoint.responses import Refusal

KEYS_VARIABLE = "MEDIMAGE_KEYS"  # of the environment; keys with white space between
KEY = re.compile(r"[!-~]{16,512}")  # visible ASCII, as a header can carry it; Azure's keys have 32 and 84 characters
EXPECTED = "expected 16 to 512 visible ASCII characters without spaces"
# Python's own strip, split and splitlines take more than these, such as a no-break space: then a key with one of those
# characters would be read as another key.
WHITE_SPACE = re.compile(r"[ \t\r\n]+")
LOOK_AGAIN_S = 1.0  # between two looks at the file
LOOK_AT_FAULTY_S = 0.1  # that has some keys: it may be long, and anybody can ask
MAX_NAMED_LINES = 10  # in one message

logger = logging.getLogger(__name__)


class InvalidKey(ValueError):
    """A key, or the file of keys, is not valid; str() quotes no key."""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(text: str, where: str) -> tuple[str, ...]:
    """Digests of the keys of a text, with white space between.

    Raises:
        InvalidKey: one of them is too short, too long, or has characters that a header cannot carry.
    """
    keys = [key for key in WHITE_SPACE.split(text) if key]
    for n, key in enumerate(keys, start=1):
        if not KEY.fullmatch(key):
            raise InvalidKey(f"key {n} of {where}: {EXPECTED}")
    return tuple(map(digest, keys))


def read_keys_file(path: Path) -> tuple[tuple[str, ...], str | None]:
    """Digests of the keys of a file, one a line, and what is wrong with it, if anything.

    Empty lines and those that begin with # do not count. A line that is no key is skipped.
    """
    try:
        lines = path.read_bytes().decode("latin-1").split("\n")  # takes any byte: comments may be in any encoding
    except OSError as error:
        return (), f"cannot read {path}: {error.strerror}"
    keys = {n: line.removesuffix("\r").strip(SPACE) for n, line in enumerate(lines, start=1)}
    keys = {n: key for n, key in keys.items() if key and not key.startswith("#")}
    if not keys:
        return (), f"{path} holds no key; expected one a line"
    wrong = [n for n, key in keys.items() if not KEY.fullmatch(key)]
    digests = tuple(digest(key) for key in keys.values() if KEY.fullmatch(key))
    return digests, f"{named(wrong)} of {path}: {EXPECTED}" if wrong else None


def named(lines: Sequence[int]) -> str:
    """Lines by their numbers; the first, if they are many."""
    more = len(lines) - MAX_NAMED_LINES
    numbers = ", ".join(map(str, lines[:MAX_NAMED_LINES])) + (f" and {more} more" if more > 0 else "")
    return f"line{'s' if len(lines) > 1 else ''} {numbers}"


def check_keys_file(path: Path) -> None:
    """For the start of a command.

    Raises:
        InvalidKey: the file cannot be read, holds no key, or a line that is none.
    """
    _, fault = read_keys_file(path)
    if fault:
        raise InvalidKey(fault)


class Keyring:
    """Who may ask. The file as it stands is what counts: a key that is not in it is not valid.

    Args:
        digests: of keys that are always valid.
        file: with further keys, which can be replaced while we run. Nobody is admitted by one that is gone or empty.
    """

    def __init__(self, digests: Sequence[str], file: Path | None) -> None:
        self._fixed = tuple(digests)
        self._file = file
        self._of_file: tuple[str, ...] = ()
        self._fault: str | None = None  # of the file; the log has it
        self.read_again()

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._fixed and self._file is None

    def accepts(self, key: str) -> bool:
        """Whether a key is valid now; takes as long for a wrong one as for a right one."""
        if monotonic() - self._read_at >= self._pause_s():
            self.read_again()
        asked = digest(key)
        return any([hmac.compare_digest(asked, known) for known in (*self._fixed, *self._of_file)])

    def _pause_s(self) -> float:
        """Until the file is read again. A faulty one may be one that is being replaced, and soon whole."""
        if self._fault:
            return LOOK_AT_FAULTY_S if self._of_file else 0.0
        return LOOK_AGAIN_S

    def read_again(self) -> None:
        """Read the file now. Times and sizes are not compared: a change within a tick of the clock would be missed."""
        self._read_at = monotonic()
        if self._file is None:
            return
        self._of_file, fault = read_keys_file(self._file)
        if fault and fault != self._fault:
            logger.warning("%s; %s", fault, "the other lines count" if self._of_file else "nobody is admitted by it")
        self._fault = fault


def authorize(headers: Headers, keys: Keyring) -> None:
    """Let the request pass: `Authorization: Bearer KEY`, as for an Azure endpoint with key authentication.

    Raises:
        Refusal: 400 with two headers, 401 without a key, 403 with one that is not valid.
    """
    header = only(headers, "authorization") or ""
    if keys.is_open:
        return
    scheme, _, key = header.partition(" ")
    key = key.strip(SPACE)
    if scheme.lower() != "bearer" or not key:
        raise Refusal(
            HTTPStatus.UNAUTHORIZED, "no key; send the header Authorization: Bearer KEY", {"www-authenticate": "Bearer"}
        )
    if not keys.accepts(key):
        raise Refusal(HTTPStatus.FORBIDDEN, "the key is not valid here")
