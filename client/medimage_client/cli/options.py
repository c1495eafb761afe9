"""Options and arguments that several commands share."""

import os
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import click
from click.core import ParameterSource

from medimage_client.archive.credentials import Credentials
from medimage_client.archive.dicomweb import Resource, is_dicomweb
from medimage_client.archive.files import is_collection
from medimage_client.archive.nifti import is_nifti, read_nifti
from medimage_client.archive.slices import Slice, WhichSlices, slices_of
from medimage_client.archive.sources import Sources
from medimage_client.constants import DEFAULT_URL
from medimage_client.errors import InvalidInput
from medimage_client.images.dicom import DICOM_HEAD_BYTES, is_dicom
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow, check_dicom_window
from medimage_client.wire.scoring import is_scoring_uri

F = TypeVar("F", bound=Callable[..., Any])

IMAGE_SUFFIXES = {".bmp", ".dcm", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def server_options(
    *,
    timeout: float | None,
    what: str = "one request",
    several: bool = False,
    scoring: bool = True,
    key_of: str = "Key of the scoring URI",
) -> Callable[[F], F]:
    """The options --url, --api-key and --timeout, the latter with its default; None if that depends on the request.

    With `several`, the command gets the urls as a tuple. Without `scoring` only a Triton will do, which has no key.
    """

    def decorate(command: F) -> F:
        url_option = click.option(
            "--url",
            default=[DEFAULT_URL] if several else DEFAULT_URL,
            show_default=True,
            multiple=several,
            is_eager=True,  # for `take_key`
            help="URL of a Triton server (grpc://, grpcs://, http://, https://)"
            + (", or a scoring URI (https://host/score)." if scoring else "."),
        )
        with_timeout = timeout_option(timeout, what)(command)
        return url_option(key_option(key_of, callback=take_key)(with_timeout) if scoring else with_timeout)

    return decorate


def key_option(of: str, callback: Any = None) -> Callable[[F], F]:
    """The option --api-key; help says of what."""
    return click.option(
        "--api-key",
        envvar="MEDIMAGE_API_KEY",
        show_envvar=True,
        callback=callback,
        help=f"{of}. Other users of this machine can see options, so prefer the environment.",
    )


def timeout_option(default: float | None, what: str = "one request") -> Callable[[F], F]:
    """The option --timeout, in seconds."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=True,
        help=f"Seconds to wait for {what}.",
    )


def take_key(ctx: click.Context, parameter: click.Parameter, key: str | None) -> str | None:
    """The key, unless it lies in the environment and a Triton is asked, which has none."""
    from_environment = ctx.get_parameter_source("api_key") is ParameterSource.ENVIRONMENT
    urls = [ctx.params["url"]] if isinstance(ctx.params["url"], str) else ctx.params["url"]
    return None if from_environment and not any(map(is_scoring_uri, urls)) else key


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


class SourceType(click.Path):
    """An existing path, as click's own type, or a `dicomweb+https://…`, which stays a text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or not is_dicomweb(value):
            return super().convert(value, param, ctx)
        try:
            Resource.parse(value)
        except InvalidInput as error:
            self.fail(str(error), param, ctx)
        return value


SOURCE = SourceType(path_type=Path, exists=True)


def archive_options(command: F) -> F:
    """The options of DICOMweb archives; the command gets `sources`, which are closed at its end.

    A password has no option, for others on this machine would see it.
    """

    @wraps(command)
    def with_sources(
        *args: Any, archive_credentials: Path | None, archive_ca: Path | None, archive_cert: Path | None, **options: Any
    ) -> Any:
        given = (
            Credentials.from_env(os.environ) if archive_credentials is None else Credentials(file=archive_credentials)
        )
        with Sources(credentials=given, ca=archive_ca, cert=archive_cert) as sources:
            return command(*args, sources=sources, **options)

    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    credentials = click.option(
        "--archive-credentials",
        type=file,
        envvar="MEDIMAGE_ARCHIVE_CREDENTIALS",
        show_envvar=True,
        help="File of one line, user:password or Bearer TOKEN, for a DICOMweb archive. Without it, "
        "MEDIMAGE_ARCHIVE_USER and MEDIMAGE_ARCHIVE_PASSWORD, or MEDIMAGE_ARCHIVE_TOKEN, are taken.",
    )
    ca = click.option(
        "--archive-ca",
        type=file,
        envvar="MEDIMAGE_ARCHIVE_CA",
        show_envvar=True,
        help="PEM file of the authority that signed the archive's certificate.",
    )
    cert = click.option(
        "--archive-cert",
        type=file,
        envvar="MEDIMAGE_ARCHIVE_CERT",
        show_envvar=True,
        help="PEM file of a client certificate and its key, where the archive asks for one.",
    )
    return cast(F, credentials(ca(cert(with_sources))))


def image_paths(*, required: bool) -> Callable[[F], F]:
    """The argument PATHS, of images and of what holds some, and the option --slices; `read_items` takes both."""

    def decorate(command: F) -> F:
        which = click.option(
            "--slices",
            callback=take_slices,
            metavar="all|every=N|centre=N",
            help="Slices of each series or volume: all, each N-th, or the middle one and N before and after it. DICOM "
            "folders are then read as series, in the order of their positions, and each frame is a slice.",
        )
        return click.argument("paths", nargs=-1, required=required, type=SOURCE)(which(command))

    return decorate


def take_slices(ctx: click.Context, parameter: click.Parameter, text: str | None) -> WhichSlices | None:
    try:
        return None if text is None else WhichSlices.parse(text)
    except InvalidInput as error:
        raise click.BadParameter(str(error)) from None


def read_items(paths: Iterable[Path | str], sources: Sources, which: WhichSlices | None) -> list[Path | Slice]:
    """Files as they are given, and the slices of what holds several images: of archives, zips, DICOMDIRs and volumes.

    A folder stands for the image files in it, sorted by name; with `which` for the slices of its series. What is no
    image is named on standard error.
    """
    items: list[Path | Slice] = []
    for path in paths:
        if isinstance(path, Path) and is_nifti(path):
            items += read_nifti(path, which)
        elif isinstance(path, str) or is_collection(path) or which is not None:
            found = sources.read(path)
            for line in (*found.left_out, *found.notes):
                click.echo(line, err=True)
            if not found.instances:
                raise click.BadParameter(f"no images in {path}; `medimage studies` names what is there")
            items += slices_of(found, which)
        elif path.is_dir():
            items += images_in(path)
        else:
            items.append(path)
    return items


def images_in(folder: Path) -> list[Path]:
    """A folder's images, also in folders below it, sorted by name."""
    found = sorted(file for file in folder.rglob("*") if file.is_file() and is_image(file))
    if not found:
        raise click.BadParameter(f"no images in {folder}; expected {', '.join(sorted(IMAGE_SUFFIXES))} or DICOM")
    return found


def is_image(file: Path) -> bool:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with file.open("rb") as opened:  # DICOM files often have no suffix
            return is_dicom(opened.read(DICOM_HEAD_BYTES))
    except OSError:
        return True  # for all we know; who reads it next reports it
