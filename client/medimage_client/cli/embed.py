"""`medimage embed`: images and texts to a file of embeddings."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np

from medimage_client.archive.slices import Slice, WhichSlices
from medimage_client.archive.sources import Sources
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.cli.bulk import Embedding, bulk_options, embed_to_table, first_given
from medimage_client.cli.options import (
    archive_options,
    dicom_window_option,
    image_paths,
    read_items,
    server_options,
    transfer_options,
)
from medimage_client.cli.output_file import Content, check_place, write_files
from medimage_client.cli.progress import EmbeddedItems, Item, embed_items, name_of
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.embeddings import Embeddings
from medimage_client.errors import MissingExtra
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow

Columns = Mapping[str, list[Any]]  # what is told of each row, by the column's name; the first is `name`
Renderer = Callable[[Path, Columns, Embeddings], dict[Path, Content]]  # from --output, to files and what is in them
UIDS = ("study_uid", "series_uid", "sop_uid")


@click.command()
@image_paths(required=False)
@click.option("--text", "texts", multiple=True, help="A text to embed, after the images; may be repeated.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: path and check_output(path),
    help="File to write at the end: .npy, .npz or .parquet.",
)
@click.option(
    "--to",
    "table",
    type=click.Path(path_type=Path, file_okay=False),
    help="Table to write shard by shard, a folder of Parquet files; what it has already is not embedded again.",
)
@bulk_options
@dicom_window_option
@archive_options
@transfer_options
@server_options(timeout=DEFAULT_TIMEOUT_S, several=True, key_of="With --output: key of the scoring URI")
@click.pass_context
def embed(
    ctx: click.Context,
    /,
    paths: tuple[Path | str, ...],
    slices: WhichSlices | None,
    texts: tuple[str, ...],
    output: Path | None,
    table: Path | None,
    sources: Sources,
    dicom_window: DicomWindow,
    resize: Resize,
    shared_memory: bool,
    url: tuple[str, ...],
    api_key: str | None,
    timeout: float,
    **bulk: Any,
) -> None:
    """Embed image files, folders of them, studies (zip, DICOMDIR, dicomweb+https://…), NIfTI volumes, and texts.

    With --output all is embedded and then one file is written; with --to a table grows shard by shard, for archives of
    any size, and the same command goes on where one ended.

    --output: Each row of 1024 numbers is named after its file or text: .npz has the arrays `names` and `vectors`,
    .parquet the columns `name` and `vector`. Rows of studies and volumes have also `study_uid`, `series_uid`,
    `sop_uid`, `frame` and `position` (x, y, z in mm of the upper left pixel). With .npy the names are written beside
    it, one per line, to .names.txt. A file that is not an image is skipped and reported, and the exit code is 1.

    --to: PATHS can also be tables (.csv, .tsv, .parquet) with a column of images, paths or base64, and perhaps one of
    texts; other columns are kept. Images that cannot be embedded are listed in TABLE.run/failures.parquet.
    """
    if (output is None) == (table is None):
        raise click.UsageError("give --output FILE or --to TABLE, one of them")
    if table is not None:
        if texts or not paths:
            raise click.UsageError("--to takes PATHS; texts are those of a table's column `text`")
        if api_key is not None:
            raise click.UsageError("--to takes the url of a Triton, which has no --api-key")
        given = Embedding(
            paths=paths,
            slices=slices,
            sources=sources,
            dicom_window=dicom_window,
            resize=resize,
            shared_memory=shared_memory,
            urls=url,
            timeout=timeout,
        )
        embed_to_table(table, given, bulk)
        return
    assert output is not None
    if (option := first_given(ctx)) or len(url) > 1:
        raise click.UsageError(f"{option or 'a second --url'} is for --to TABLE")
    if not paths and not texts:
        raise click.UsageError("nothing to embed; give PATHS, --text or both")

    items = read_items(paths, sources, slices)
    (one_url,) = url

    async def embed_all() -> tuple[EmbeddedItems, Embeddings]:
        async with AsyncMedImageInsight(
            one_url, api_key=api_key, timeout=timeout, shared_memory=shared_memory
        ) as client:
            return await embed_items(client, items, resize, dicom_window), await client.embed_texts(texts)

    images, text_features = asyncio.run(embed_all())
    vectors = np.concatenate([images.features, text_features])
    write_files(RENDERERS[output.suffix](output, columns_of(images.items, texts), vectors))
    images.report_refused()


def check_output(path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    if path.suffix not in RENDERERS:
        raise click.BadParameter(f"{path} is not one of {', '.join(RENDERERS)}")
    check_place(path)
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:  # absent, or of a version that does not suit NumPy's
            raise MissingExtra("writing Parquet", "pyarrow", "parquet") from None
    return path


def columns_of(items: Sequence[Item], texts: Sequence[str]) -> Columns:
    """Names, and of the slices of studies and volumes where they are from, if there are any."""
    columns: dict[str, list[Any]] = {"name": [*map(name_of, items), *texts]}
    if not any(isinstance(item, Slice) for item in items):
        return columns
    rows = [item if isinstance(item, Slice) else None for item in items] + [None] * len(texts)
    columns |= {uid: ["" if row is None else getattr(row, uid) for row in rows] for uid in UIDS}
    columns["frame"] = [-1 if row is None or row.frame is None else row.frame for row in rows]
    nowhere = (math.nan,) * 3
    columns["position"] = [nowhere if row is None or row.position is None else row.position for row in rows]
    return columns


def render_npy(path: Path, columns: Columns, vectors: Embeddings) -> dict[Path, Content]:
    file = BytesIO()
    np.save(file, vectors)
    lines = [" ".join(name.splitlines()) for name in columns["name"]]
    return {
        path: file.getbuffer(),
        path.with_suffix(".names.txt"): "".join(f"{line}\n" for line in lines).encode(),
    }


def render_npz(path: Path, columns: Columns, vectors: Embeddings) -> dict[Path, Content]:
    file = BytesIO()
    arrays = {"names" if name == "name" else name: np.array(values) for name, values in columns.items()}
    np.savez(file, **arrays, vectors=vectors)
    return {path: file.getbuffer()}


def render_parquet(path: Path, columns: Columns, vectors: Embeddings) -> dict[Path, Content]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = BytesIO()
    types = {"frame": pa.int32(), "position": pa.list_(pa.float64(), 3)}
    table = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    table["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table(table), file)
    return {path: file.getbuffer()}


RENDERERS: dict[str, Renderer] = {".npy": render_npy, ".npz": render_npz, ".parquet": render_parquet}
