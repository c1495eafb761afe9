"""Options and arguments that several commands share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from medimage_client.constants import DEFAULT_URL
from medimage_client.errors import InvalidInput
from medimage_client.images.dicom import DICOM_HEAD_BYTES, is_dicom
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow, check_dicom_window
from medimage_client.wire.scoring import is_scoring_uri

F = TypeVar("F", bound=Callable[..., Any])

IMAGE_SUFFIXES = {".bmp", ".dcm", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def server_options(*, timeout: float | None, what: str = "one request") -> Callable[[F], F]:
    """The options --url, --api-key and --timeout, the latter with its default; None if that depends on the request."""

    def decorate(command: F) -> F:
        url_option = click.option(
            "--url",
            default=DEFAULT_URL,
            show_default=True,
            is_eager=True,  # for `take_key`
            help="URL of a Triton server (grpc://, grpcs://, http://, https://), or a scoring URI (https://host/score).",
        )
        key_option = click.option(
            "--api-key",
            envvar="MEDIMAGE_API_KEY",
            show_envvar=True,
            callback=take_key,
            help="Key of the scoring URI. Other users of this machine can see options, so prefer the environment.",
        )
        timeout_option = click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=timeout,
            show_default=True,
            help=f"Seconds to wait for {what}.",
        )
        return url_option(key_option(timeout_option(command)))

    return decorate


def take_key(ctx: click.Context, parameter: click.Parameter, key: str | None) -> str | None:
    """The key, unless it lies in the environment and a Triton is asked, which has none."""
    from_environment = ctx.get_parameter_source("api_key") is ParameterSource.ENVIRONMENT
    return None if from_environment and not is_scoring_uri(ctx.params["url"]) else key


def transfer_options(command: F) -> F:
    """The options --resize and --shared-memory, on how images travel."""
    resize = click.option(
        "--resize",
        type=click.Choice(get_args(Resize)),
        default="server",
        show_default=True,
        help="Where large images are resized to 512 x 512 pixels; client sends fewer bytes.",
    )
    shared_memory = click.option(
        "--shared-memory", is_flag=True, help="Pass images through shared memory to a server on this machine."
    )
    return resize(shared_memory(command))


class DicomWindowType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5
    """file, percentile, or LOW,HIGH."""

    name = "dicom_window"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "[file|percentile|LOW,HIGH]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DicomWindow:
        parts = str(value).split(",")
        try:
            return check_dicom_window(value if len(parts) == 1 else tuple(parts))  # type: ignore[arg-type]  # checked
        except InvalidInput:
            self.fail(f"{value!r} is not file, percentile or LOW,HIGH, two numbers of which the first is lower")


def dicom_window_option(command: F) -> F:
    """The option --dicom-window."""
    return click.option(
        "--dicom-window",
        type=DicomWindowType(),
        default="file",
        show_default=True,
        help="How DICOM files are shown: by their own window, 1st to 99th percentile, or from LOW to HIGH.",
    )(command)


def image_paths(*, required: bool) -> Callable[[F], F]:
    """The argument PATHS: files, and folders that stand for the images in them."""
    return click.argument(
        "paths", nargs=-1, required=required, type=click.Path(path_type=Path, exists=True), callback=find_images
    )


def find_images(ctx: click.Context, parameter: click.Parameter, paths: Iterable[Path]) -> list[Path]:
    """Files as they are given; a folder's images, also in folders below it, sorted by name."""
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        found = sorted(file for file in path.rglob("*") if file.is_file() and is_image(file))
        if not found:
            raise click.BadParameter(f"no images in {path}; expected {', '.join(sorted(IMAGE_SUFFIXES))} or DICOM")
        images += found
    return images


def is_image(file: Path) -> bool:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with file.open("rb") as opened:  # DICOM files often have no suffix
            return is_dicom(opened.read(DICOM_HEAD_BYTES))
    except OSError:
        return True  # for all we know; who reads it next reports it
