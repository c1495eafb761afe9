"""Where things lie: what ships with the package, and what belongs to the user. All rooms may ask here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

STAMP = ".medimage.json"  # in a model repository: what `medimage init` wrote into it, and which version did


def shipped(name: str) -> Path:
    """A folder that ships with the package: inside it in a wheel, two above it in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parents[1] / name


def shipped_repository() -> Path:
    """The configs and adapters, without anything exported."""
    return shipped("model_repository")


def phantom_checkpoint(model: str) -> Path:
    """The checkpoint of `medimageinsight` or `cxrreportgen` that is trained on drawings."""
    return shipped("checkpoints") / f"{model}-phantom"


def data_folder() -> Path:
    """Of this user, as https://specifications.freedesktop.org/basedir-spec has it: ~/.local/share/medimage."""
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (named if named.is_absolute() else Path("~/.local/share").expanduser()) / "medimage"


def default_repository() -> Path:
    """That of the checkout in which one works, else the user's own."""
    here = Path("model_repository")
    return here if any(here.glob("*/config.pbtxt")) else data_folder() / "model_repository"


def repository_option(help: str) -> Callable[[F], F]:  # as click's own is named
    """The option of every command that works on a model repository."""
    import click  # which the client alone does without

    return click.option(
        "--repository",
        type=click.Path(path_type=Path),
        default=default_repository,
        show_default="./model_repository where there is one, else ~/.local/share/medimage/model_repository",
        envvar="MEDIMAGE_REPOSITORY",
        show_envvar=True,
        help=help,
    )
