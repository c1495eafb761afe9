"""Files that a command writes: whole, or not at all."""

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import click

Content = bytes | memoryview
NEW = 0o666  # less what the umask takes


def write_files(contents: Mapping[Path, Content]) -> None:
    """Put contents into files, all of them or none.

    Each is written beside its place and takes it when all are complete and on disk; until then, and if that fails or is
    interrupted, what is there stays as it is. An existing file keeps its permissions. A link stays one: its target is
    replaced. A pipe or a device is written to.

    Raises:
        click.ClickException: the system refuses; one line with its reason.
    """
    try:
        with ExitStack() as stack:
            replacements = []
            for path, content in contents.items():
                if is_file_or_new(path):
                    replacement = Replacement(path)
                    stack.callback(replacement.discard)
                    replacement.write(content)
                    replacements.append(replacement)
                else:
                    path.write_bytes(content)
            for replacement in replacements:
                replacement.publish()
    except OSError as error:
        names = " and ".join(map(str, contents))
        raise click.ClickException(f"cannot write {names}: {error.strerror or error}") from error


def check_place(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if is_file_or_new(path):
        folder = (path.resolve() if path.is_symlink() else path).parent
        if not folder.is_dir():
            raise click.BadParameter(f"folder {folder} does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise click.BadParameter(f"folder {folder} cannot be written to")


def is_file_or_new(path: Path) -> bool:
    """Whether another file can take its place: not that of a pipe, nor of what this process has as standard output."""
    try:
        there = path.stat()
    except OSError:
        return True  # opening it tells what is wrong
    return stat.S_ISREG(there.st_mode) and not any(is_open_as(descriptor, there) for descriptor in (1, 2))


def is_open_as(descriptor: int, there: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), there)
    except OSError:
        return False  # closed


class Replacement:
    """A file that lies beside its place, under another name, until it is published."""

    def __init__(self, path: Path) -> None:
        self._target = path.resolve()
        self._partial = self._target.with_name(f".medimage-{secrets.token_hex(8)}.partial")

    def write(self, content: Content) -> None:
        try:
            old: os.stat_result | None = self._target.stat()
        except FileNotFoundError:
            old = None
        mode = stat.S_IMODE(old.st_mode) if old else NEW  # from the start, so that nobody reads it in between
        with os.fdopen(os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            if old:
                keep_permissions(file.fileno(), old)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def publish(self) -> None:
        os.replace(self._partial, self._target)
        with suppress(OSError):  # a few file systems cannot, and the file is there by now
            sync_folder(self._target.parent)

    def discard(self) -> None:
        self._partial.unlink(missing_ok=True)


def keep_permissions(descriptor: int, old: os.stat_result) -> None:
    with suppress(PermissionError):  # only root can give a file to another
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
