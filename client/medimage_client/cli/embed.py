"""`medimage embed`: image files and texts to a file of embeddings."""

import asyncio
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import click
import numpy as np

from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.cli.options import dicom_window_option, image_paths, server_options, transfer_options
from medimage_client.cli.output_file import Content, check_place, write_files
from medimage_client.cli.progress import EmbeddedFiles, embed_files
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.embeddings import Embeddings
from medimage_client.errors import MissingExtra
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow

Renderer = Callable[
    [Path, Sequence[str], Embeddings], dict[Path, Content]
]  # from --output, to files and what is in them


@click.command()
@image_paths(required=False)
@click.option("--text", "texts", multiple=True, help="A text to embed, after the images; may be repeated.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: check_output(path),
    help="File to write: .npy, .npz or .parquet.",
)
@dicom_window_option
@transfer_options
@server_options(timeout=DEFAULT_TIMEOUT_S)
def embed(
    paths: list[Path],
    texts: tuple[str, ...],
    output: Path,
    dicom_window: DicomWindow,
    resize: Resize,
    shared_memory: bool,
    url: str,
    api_key: str | None,
    timeout: float,
) -> None:
    """Embed image files, folders of them, and texts.

    Each row of 1024 numbers is named after its file or text: .npz has the arrays `names` and `vectors`, .parquet the
    columns `name` and `vector`. With .npy the names are written beside it, one per line, to .names.txt. A file that
    is not an image is skipped and reported, and the exit code is 1.
    """
    if not paths and not texts:
        raise click.UsageError("nothing to embed; give PATHS, --text or both")

    async def embed_all() -> tuple[EmbeddedFiles, Embeddings]:
        async with AsyncMedImageInsight(url, api_key=api_key, timeout=timeout, shared_memory=shared_memory) as client:
            return await embed_files(client, paths, resize, dicom_window), await client.embed_texts(texts)

    images, text_features = asyncio.run(embed_all())
    vectors = np.concatenate([images.features, text_features])
    write_files(RENDERERS[output.suffix](output, [*map(str, images.paths), *texts], vectors))
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


def render_npy(path: Path, names: Sequence[str], vectors: Embeddings) -> dict[Path, Content]:
    file = BytesIO()
    np.save(file, vectors)
    lines = [" ".join(name.splitlines()) for name in names]
    return {
        path: file.getbuffer(),
        path.with_suffix(".names.txt"): "".join(f"{line}\n" for line in lines).encode(),
    }


def render_npz(path: Path, names: Sequence[str], vectors: Embeddings) -> dict[Path, Content]:
    file = BytesIO()
    np.savez(file, names=np.array(names), vectors=vectors)
    return {path: file.getbuffer()}


def render_parquet(path: Path, names: Sequence[str], vectors: Embeddings) -> dict[Path, Content]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = BytesIO()
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"name": pa.array(names, pa.string()), "vector": vector}), file)
    return {path: file.getbuffer()}


RENDERERS: dict[str, Renderer] = {".npy": render_npy, ".npz": render_npz, ".parquet": render_parquet}
