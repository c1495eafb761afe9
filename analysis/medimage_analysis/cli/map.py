"""`medimage map`: a table in two dimensions."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from medimage_client.cli.output_file import Content, check_place, write_files

if TYPE_CHECKING:
    from medimage_analysis.table import Table

SUFFIXES = (".html", ".png")
THUMBNAIL_PX = 96  # about 3 kB of the page for each point
DEFAULT_SAMPLE = 5000  # a page of some 20 MB, which browsers still move without delay


@click.command("map")
@click.argument("table", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--color", required=True, metavar="COLUMN", help="Column of TABLE that gives a point its colour.")
@click.option(
    "--method",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="pca is linear and takes seconds; umap shows groups better, and takes half a minute at the least.",
)
@click.option(
    "--to",
    "outputs",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, paths: [check_output(path) for path in paths],
    help="File to write, .png or .html; may be repeated. The page is one file, which needs no network.",
)
@click.option("--column", default="image_features", show_default=True, help="Of the vectors.")
@click.option(
    "--sample",
    default=DEFAULT_SAMPLE,
    show_default=True,
    type=click.IntRange(min=1),
    help="Draw as many rows of a larger table, chosen at random, the same in each run.",
)
def draw_map(table: Path, color: str, method: str, outputs: list[Path], column: str, sample: int) -> None:
    """Draw a table as points in two dimensions, in colours of a column.

    TABLE is what `medimage embed --to` writes. On the page, a point under the mouse shows its image and id: who has the
    page has these images.
    """
    from medimage_analysis.projection import project
    from medimage_analysis.scatter import colours_of, draw_page, draw_png
    from medimage_analysis.table import Table

    opened = Table.open(table)
    opened.check_values(color)
    vectors = opened.vectors(column)
    n = len(vectors)
    rows = np.arange(n) if n <= sample else np.sort(np.random.default_rng(0).choice(n, sample, replace=False))
    points = project(vectors[rows], method)  # type: ignore[arg-type]  # one of the choices
    shown = opened.read(list(dict.fromkeys(["id", color]))).take(rows)
    colours = colours_of(color, shown[color].to_pylist())
    files: dict[Path, Content] = {}
    for path in outputs:
        if path.suffix == ".png":
            files[path] = draw_png(points, colours)
        else:
            pictures = thumbnails(opened, rows)
            title = f"{table.name}: {len(rows)} of {n} rows, {method}"
            files[path] = draw_page(points, colours, shown["id"].to_pylist(), pictures, title).encode()
    write_files(files)
    click.echo(f"{len(rows)} of {n} rows by {method}: {', '.join(map(str, outputs))}")


def check_output(path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    if path.suffix not in SUFFIXES:
        raise click.BadParameter(f"{path} is not one of {', '.join(SUFFIXES)}")
    check_place(path)
    return path


def thumbnails(table: "Table", rows: NDArray[np.int64]) -> list[str]:
    """`data:` URLs of JPEGs, empty where an image cannot be read."""
    from medimage_analysis.thumbnails import thumbnail
    from medimage_client.images.base64_text import encode_base64

    urls = []
    for row in table.read(["source", "frame"]).take(rows).to_pylist():
        image = None
        if row["source"] is not None:
            image = thumbnail(row["source"], row["frame"], table.model.windowing, THUMBNAIL_PX)
        if image is None:
            urls.append("")
            continue
        file = BytesIO()
        image.save(file, "JPEG", quality=75)
        urls.append(f"data:image/jpeg;base64,{encode_base64(file.getvalue()).decode()}")
    n_missing = urls.count("")
    if n_missing:
        click.echo(f"{n_missing} of {len(urls)} images cannot be read where the table says", err=True)
    return urls
