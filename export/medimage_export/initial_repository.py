"""Write the configs and adapters that every model repository begins with, and bring older ones up to date.

What was written is kept in the file `places.STAMP` of the repository, by hash. A file that is still what was written,
but for what an export changes in a config, is ours to replace; any other is the user's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from medimage_export.errors import RepositoryError
from medimage_export.repository import write_json, write_whole
from medimage_export.served_config import as_onnx, changed_alike
from medimage_install.places import STAMP, shipped_repository

CONFIG = "config.pbtxt"


@dataclass
class Initialised:
    """What became of a repository; files are named within it.

    Attributes:
        before: version that wrote it last; None if none did.
        now: this version.
        kept: files that are not as this version has them, and were not ours to replace, with the reason.
    """

    before: str | None
    now: str
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def init_repository(repository: Path) -> Initialised:
    """Make a model repository, or bring one up to date. Exported files, and files that the user edited, stay.

    Raises:
        RepositoryError: the folder holds something else, is a checkout's own, or has a stamp that cannot be read.
        OSError: it cannot be written.
    """
    source = shipped_repository()
    if repository.is_dir() and repository.samefile(source):
        raise RepositoryError(f"{repository} is the checkout's own, which git keeps up to date; name another folder")
    check_is_free(repository)
    recorded, before = read_stamp(repository)
    outcome = Initialised(before, version("medimage-triton"))
    repository.mkdir(parents=True, exist_ok=True)
    shipped = dict(shipped_files(source))
    ours = {}
    for name, content in shipped.items():
        if _bring_up_to_date(repository / name, name, content, recorded.get(name), outcome):
            ours[name] = sha256(content).hexdigest()
        elif name in recorded:
            ours[name] = recorded[name]
    for name in sorted(recorded.keys() - shipped.keys()):
        _remove(repository, name, recorded[name], outcome)
    write_json(repository / STAMP, {"version": outcome.now, "files": ours})
    return outcome


def summary(repository: Path, outcome: Initialised) -> list[str]:
    """What became of it, a line for each file that was changed, removed or kept, and a last one for all of it."""
    lines = [f"updated {name}" for name in outcome.updated]
    lines += [f"removed {name}, which {outcome.now} has no more" for name in outcome.removed]
    for name, why in outcome.kept.items():
        shipped = shipped_repository() / name
        lines.append(f"kept {name}: {why}" + (f"; this version's is {shipped}" if shipped.is_file() else ""))
    if outcome.before is None:
        return [*lines, f"model repository {repository}: {len(outcome.added)} files written, of {outcome.now}"]
    lines[:0] = [f"added {name}" for name in outcome.added]
    if not lines:
        return [f"model repository {repository}: nothing to change, it is of {outcome.now}"]
    return [*lines, f"model repository {repository}: was of {outcome.before}, is now of {outcome.now}"]


def is_empty(folder: Path) -> bool:
    """Also a new volume's, in which its file system has a folder of its own."""
    return all(path.name == "lost+found" for path in folder.iterdir())


def check_is_free(repository: Path) -> None:
    """Raise RepositoryError unless it is a model repository, an empty folder, or nothing yet."""
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository} is a file; --repository takes a folder")
    is_ours = (repository / STAMP).is_file() or any(repository.glob(f"*/{CONFIG}"))
    if not is_ours and repository.is_dir() and not is_empty(repository):
        raise RepositoryError(f"{repository} holds other things than models; name a new or an empty folder")


def shipped_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Of every model its config, and what is committed beside it. In a checkout nothing that was exported there."""
    for config in sorted(source.glob(f"*/{CONFIG}")):
        model = config.parent
        yield f"{model.name}/{CONFIG}", as_onnx(config.read_bytes().decode()).encode()
        for path in sorted([*model.glob("1/model.py"), *model.glob("1/.gitkeep"), *model.glob("warmup/*")]):
            yield path.relative_to(source).as_posix(), path.read_bytes()


def read_stamp(repository: Path) -> tuple[dict[str, str], str | None]:
    """Hashes of the files that an earlier run wrote, and its version; nothing and None if none did.

    Raises:
        RepositoryError: it is not what an earlier run writes.
    """
    path = repository / STAMP
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(digest) for name, digest in stamp["files"].items()}, str(stamp["version"])
    except FileNotFoundError:
        return {}, None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(
            f"{path}: not what `medimage init` writes; remove it, and files that differ are then kept as yours"
        ) from error


def _bring_up_to_date(path: Path, name: str, content: bytes, recorded: str | None, outcome: Initialised) -> bool:
    """Whether the file is now that of this version, but for what an export changed."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        outcome.added.append(name)
        return True
    found = path.read_bytes()
    as_written = _without_export(name, found)
    if as_written == content:
        return True
    if recorded != sha256(as_written).hexdigest():
        outcome.kept[name] = "it was edited" if recorded else "`medimage init` did not write it"
        return False
    if as_written != found:
        try:
            content = changed_alike(path, found.decode(), content.decode()).encode()
        except RepositoryError as error:
            outcome.kept[name] = f"what was exported does not fit it ({error})"
            return False
    write_whole(path, content)
    outcome.updated.append(name)
    return True


def _remove(repository: Path, name: str, recorded: str, outcome: Initialised) -> None:
    """A file that this version has no more, and that nobody changed; and its folders, when they are empty."""
    path = repository / name
    if not path.is_file():
        return
    if sha256(_without_export(name, path.read_bytes())).hexdigest() != recorded:
        outcome.kept[name] = f"it was edited, and {outcome.now} has it no more"
        return
    path.unlink()
    outcome.removed.append(name)
    for folder in path.parents:
        if folder == repository or any(folder.iterdir()):
            break
        folder.rmdir()


def _without_export(name: str, content: bytes) -> bytes:
    try:
        return as_onnx(content.decode()).encode() if name.endswith(CONFIG) else content
    except UnicodeDecodeError:
        return content
