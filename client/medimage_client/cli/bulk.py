"""Options of `medimage embed --to TABLE`, the bulk run, which the extra `analysis` brings."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from medimage_client.archive.slices import WhichSlices
from medimage_client.archive.sources import Sources
from medimage_client.errors import MissingExtra
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow

F = TypeVar("F", bound=Callable[..., Any])

PART = re.compile(r"([1-9]\d*)/([1-9]\d*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOptions:
    """What `--to` can be given, under the names of the options."""

    image_column: str
    shard_size: int
    shard: tuple[int, int]  # which part, from 1, of how many
    strict: bool
    retry_failed: bool
    wait: float
    engine: str
    ray_address: str | None
    in_process: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What `embed` is given for every run."""

    paths: Sequence[Path | str]
    slices: WhichSlices | None
    sources: Sources
    dicom_window: DicomWindow
    resize: Resize
    shared_memory: bool
    urls: Sequence[str]
    timeout: float


def take_part(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:
    found = PART.fullmatch(text)
    if found is None or int(found[1]) > int(found[2]):
        raise click.BadParameter(f"{text!r} is not N/M with N from 1 to M, as 3/16 for the third of sixteen parts")
    return int(found[1]), int(found[2])


OPTIONS = [
    click.option(
        "--image-column", default="image", show_default=True, help="With --to: of tables, that of paths or base64."
    ),
    click.option(
        "--shard-size", type=click.IntRange(min=1), default=1000, show_default=True, help="With --to: rows a shard."
    ),
    click.option(
        "--shard",
        default="1/1",
        metavar="N/M",
        callback=take_part,
        help="With --to: embed the N-th of M parts alone, as 3/16; others embed the others.",
    ),
    click.option("--strict", is_flag=True, help="With --to: end at the first image that cannot be embedded."),
    click.option(
        "--retry-failed", is_flag=True, help="With --to: embed again what failed, in shards that are complete."
    ),
    click.option(
        "--wait",
        type=click.FloatRange(min=0),
        default=600.0,
        show_default=True,
        help="With --to: seconds to wait for a server that does not answer.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="With --to: this process, or Ray Data on a cluster (extra ray).",
    ),
    click.option("--ray-address", help="With --engine ray: of the cluster, as auto; without it one starts here."),
    click.option(
        "--in-process",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="REPOSITORY",
        help="With --engine ray: each actor has a model of its own, of an exported repository, and asks no Triton.",
    ),
]


def bulk_options(command: F) -> F:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def first_given(ctx: click.Context) -> str | None:
    """The first of the options that was given, as `--shard`."""
    for name in BulkOptions.__dataclass_fields__:
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            return f"--{name.replace('_', '-')}"
    return None


def embed_to_table(table: Path, embedding: Embedding, options: Mapping[str, Any]) -> None:
    """Run it.

    Raises:
        MissingExtra: a library is not installed.
        MedImageError: the run ended before its end.
    """
    (bulk,) = entry_points(group="medimage.bulk")
    try:
        run = bulk.load()
    except ModuleNotFoundError as error:
        raise MissingExtra("a table", str(error.name), "analysis") from None
    run(table, embedding, BulkOptions(**options))
