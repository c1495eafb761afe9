"""`medimage search`: what an index has that is like an image, a volume, a text, or a row of its own."""

import asyncio
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medimage_client.archive.files import is_collection
from medimage_client.archive.nifti import is_nifti
from medimage_client.archive.slices import WhichSlices
from medimage_client.archive.sources import Sources
from medimage_client.cli.options import (
    SOURCE,
    archive_options,
    read_items,
    server_options,
    take_slices,
    transfer_options,
)
from medimage_client.cli.output_file import check_place, write_files
from medimage_client.cli.table import in_one_line, table
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.errors import InvalidInput
from medimage_client.images.resize import Resize

if TYPE_CHECKING:
    from medimage_analysis.index import Index
    from medimage_analysis.table import Vectors

UIDS = ("study_uid", "series_uid", "sop_uid", "frame")
TILE_PX, TILES_IN_A_ROW = 200, 5


@click.command()
@click.argument("index")
@click.option("--image", type=SOURCE, help="Look for what is like this image; of an index of volumes, a volume.")
@click.option("--text", help="Look for what fits this text.")
@click.option("--id", "name", help="Look for what is like this row of the index.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 10_000), help="How many to find.")
@click.option("--where", metavar="SQL", help="Only among rows that fulfil this, such as \"modality = 'CR'\".")
@click.option(
    "--among",
    type=click.Choice(["images", "texts"]),
    default="images",
    show_default=True,
    help="What is looked for. An image finds texts, and a text images: both live in one space.",
)
@click.option("--exact", is_flag=True, help="Look at each vector, though there is an IVF-PQ index.")
@click.option("--label", metavar="COLUMN", help="Column to show beside distance and id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all columns, instead of a table.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: path and check_picture(path),
    help="PNG file to write: what was found in small, with distances and labels.",
)
@click.option(
    "--slices",
    callback=take_slices,
    metavar="all|every=N|centre=N",
    help="Of a volume as --image: those that the table was made with.  [default: all]",
)
@archive_options
@transfer_options
@server_options(timeout=DEFAULT_TIMEOUT_S, scoring=False)
def search(
    index: str,
    image: Path | str | None,
    text: str | None,
    name: str | None,
    k: int,
    where: str | None,
    among: str,
    exact: bool,
    label: str | None,
    as_json: bool,
    picture: Path | None,
    slices: WhichSlices | None,
    sources: Sources,
    resize: Resize,
    shared_memory: bool,
    url: str,
    timeout: float,
) -> None:
    """Find what is most like --image, --text or --id in INDEX, which `medimage index` has written.

    Distances are 1 less the cosine, from 0 to 2. --image and --text are embedded by the Triton at --url, which must
    serve the model that INDEX was made with; DICOM files are shown as it was. --id needs no server, and is itself not
    among what is found.
    """
    from medimage_analysis.index import Index

    if sum(query is not None for query in (image, text, name)) != 1:
        raise click.UsageError("give --image, --text or --id, one of them")
    opened = Index.open(index)
    if label is not None:
        opened.check_column(label)
    if name is not None:
        query = opened.vector(name)
    else:
        items = [] if image is None else read_query(opened, image, sources, slices)
        query = asyncio.run(
            embed_query(
                opened,
                items,
                text,
                resize=resize,
                url=url,
                timeout=timeout,
                shared_memory=shared_memory,
            )
        )
    found = opened.search(query, k=k, among=among, where=where, without=name, exact=exact)  # type: ignore[arg-type]
    rows = found.to_pylist()
    if picture is not None:
        write_files({picture: draw(opened, rows, label)})
    click.echo(json.dumps(rows, indent=2, default=str) if as_json else "\n".join(render(rows, label, among)))


def check_picture(path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    if path.suffix != ".png":
        raise click.BadParameter(f"{path} is not a .png")
    check_place(path)
    return path


def read_query(index: "Index", image: Path | str, sources: Sources, slices: WhichSlices | None) -> Sequence[Any]:
    """The images of a query; of an index of volumes each slice."""
    holds_several = isinstance(image, str) or image.is_dir() or is_nifti(image) or is_collection(image)
    return read_items([image], sources, slices or (WhichSlices() if index.group_by and holds_several else None))


async def embed_query(
    index: "Index",
    items: Sequence[Any],
    text: str | None,
    *,
    resize: Resize,
    url: str,
    timeout: float,
    shared_memory: bool,
) -> "Vectors":
    """(1024,) by a server that has the model of the index.

    Raises:
        OtherModel: it serves another.
        InvalidInput: the query cannot be read, or has several images and the index none of volumes.
        MedImageError: see `errors.py` of the client.
    """
    from medimage_analysis.served import served_model
    from medimage_analysis.thumbnails import dicom_window
    from medimage_client.async_client import AsyncMedImageInsight
    from medimage_client.cli.progress import embed_items

    if text is not None and index.pool == "std":
        raise InvalidInput(f"{index.uri}: is of standard deviations, which no text is like; make one with --pool mean")
    window = dicom_window(index.model.windowing)
    index.check_model(await served_model(url, window), url)
    async with AsyncMedImageInsight(url, timeout=timeout, shared_memory=shared_memory) as client:
        if text is not None:
            return (await client.embed_texts([text])).reshape(-1)
        embedded = await embed_items(client, items, resize, window)
    if embedded.refused:
        raise InvalidInput(embedded.refused[0])
    return index.pooled(embedded.features)


def draw(index: "Index", rows: Sequence[dict[str, Any]], label: str | None) -> bytes:
    from medimage_analysis.thumbnails import grid, thumbnail

    if not rows:
        raise InvalidInput("nothing was found, of which there is no picture")
    images = [
        None if row["source"] is None else thumbnail(row["source"], row["frame"], index.model.windowing, TILE_PX)
        for row in rows
    ]
    captions = [f"{row['distance']:.3f} {'' if label is None else row[label]}\n{row['id']}" for row in rows]
    n_missing = images.count(None)
    if n_missing:
        click.echo(f"{n_missing} of {len(images)} images cannot be read where the index says", err=True)
    file = BytesIO()
    grid(images, captions, tile_px=TILE_PX, columns=TILES_IN_A_ROW).save(file, "PNG")
    return file.getvalue()


def render(rows: Sequence[dict[str, Any]], label: str | None, among: str) -> list[str]:
    """Lines of distance, id or text, label, and where it is from as far as anything is known of that."""
    if not rows:
        return ["nothing was found"]
    names = ["text", "id"] if among == "texts" else ["id"]
    names += [] if label is None or label in names else [label]
    names += [name for name in UIDS if any(row[name] is not None for row in rows)]
    names += ["source"] if any(row["source"] not in (None, row["id"]) for row in rows) else []
    cells = [
        [*("-" if row[name] is None else in_one_line(row[name]) for name in names), f"{row['distance']:.4f}"]
        for row in rows
    ]
    return table([*names, "distance"], cells)
