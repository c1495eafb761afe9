"""The keys of callers: several valid at once, held as digests alone."""

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import monotonic

KEYS_VARIABLE = "MEDIMAGE_KEYS"  # of the environment; keys with white space between
KEY = re.compile(r"[!-~]{16,512}")  # visible ASCII, as a header can carry it; Azure's keys have 32 and 84 characters
LOOK_AGAIN_S = 1.0  # between two looks at the time of the file

logger = logging.getLogger(__name__)


class InvalidKey(ValueError):
    """A key, or the file of keys, is not valid; str() quotes no key."""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(texts: Iterable[str], where: str) -> tuple[str, ...]:
    """Digests of keys.

    Raises:
        InvalidKey: one of them is too short, too long, or has characters that a header cannot carry.
    """
    digests = []
    for n, text in enumerate(texts, start=1):
        if not KEY.fullmatch(text):
            raise InvalidKey(f"key {n} of {where}: expected 16 to 512 visible ASCII characters without spaces")
        digests.append(digest(text))
    return tuple(digests)


def read_keys_file(path: Path) -> tuple[str, ...]:
    """Digests of the keys of a file, one a line; empty lines and those that begin with # do not count.

    Raises:
        InvalidKey: the file cannot be read, holds no key, or one that is not valid.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidKey(f"cannot read {path}: {reason}") from None
    keys = read_keys([line for line in lines if line and not line.startswith("#")], str(path))
    if not keys:
        raise InvalidKey(f"{path} holds no key; expected one a line")
    return keys


class Keyring:
    """Who may ask. Keys of a file are read again when it changes, so that they can be replaced while we run.

    Args:
        digests: of keys that are always valid.
        file: with further keys; it must be readable now.

    Raises:
        InvalidKey: the file is not valid.
    """

    def __init__(self, digests: Sequence[str], file: Path | None) -> None:
        self._fixed = tuple(digests)
        self._file = file
        self._looked_at = monotonic()
        self._version = self._file_version()
        self._of_file = read_keys_file(file) if file else ()
        self._told: object = None  # the fault of the file that the log has last

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._fixed and self._file is None

    def accepts(self, key: str) -> bool:
        """Whether a key is valid now; takes as long for a wrong one as for a right one."""
        self._refresh()
        asked = digest(key)
        return any([hmac.compare_digest(asked, known) for known in (*self._fixed, *self._of_file)])

    def _refresh(self) -> None:
        """Read the file again if it has changed. One that is broken or gone leaves the keys as they were."""
        if self._file is None or monotonic() - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = monotonic()
        version = self._file_version()
        if version is not None and version == self._version:
            return
        self._version = version
        try:
            self._of_file = read_keys_file(self._file)
            self._told = None
        except InvalidKey as error:
            self._version = None  # look again: it may be half written
            fault = (version, str(error))
            if fault != self._told:
                logger.warning("%s; the keys that it held before stay valid", error)
            self._told = fault

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._file) if self._file else None
        except OSError:
            return None
        # its size, too, for the clock of file systems ticks in milliseconds
        return (status.st_ino, status.st_mtime_ns, status.st_size) if status else None
