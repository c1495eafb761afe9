"""`medimage outliers`: what in a table is unlike a reference set."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from medimage_client.cli.evaluate_classification import picture_option
from medimage_client.cli.output_file import Content, check_place, write_files
from medimage_client.cli.table import in_one_line
from medimage_client.cli.table import table as text_table
from medimage_client.errors import InvalidInput
from medimage_client.labels.pictures import roc_curves

if TYPE_CHECKING:
    from medimage_analysis.outliers import Described, Separation
    from medimage_analysis.table import Table

DEFAULT_K = 2  # of Microsoft's notebook
DEFAULT_QUANTILE = 0.95
SHORT = {"study": "study_uid", "series": "series_uid"}
TILE_PX, TILES_IN_A_ROW = 200, 4
SUFFIXES = (".csv", ".parquet")


@click.command()
@click.argument("table", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--reference",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Table of what is usual. It may be TABLE itself: nothing is compared with itself.",
)
@click.option(
    "--group-by",
    metavar="study|series|COLUMN",
    help="Compare studies, series, or rows that are equal in a column, by statistics of their vectors; not images.",
)
@click.option("-k", default=DEFAULT_K, show_default=True, type=click.IntRange(min=1), help="Nearest of the reference.")
@click.option("--column", default="image_features", show_default=True, help="Of the vectors.")
@click.option(
    "--quantile",
    type=click.FloatRange(0, 1, min_open=True),
    help="Threshold: as far as this part of the reference is from the rest of it.  [default: 0.95; with --label the "
    "threshold is that of the ROC curve where sensitivity + specificity is greatest]",
)
@click.option(
    "--label", metavar="COLUMN", help="Column of TABLE that tells what is usual, for a ROC curve; with --usual."
)
@click.option("--usual", multiple=True, help="Value of --label of what is usual; may be repeated.")
@click.option(
    "--top", default=12, show_default=True, type=click.IntRange(min=1), help="How many are printed and drawn."
)
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: path and check_output(path),
    help="File to write, .csv or .parquet: id, distance, outlier, nearest and label, the most unusual first.",
)
@picture_option("--roc", "the ROC curve; with --label")
@picture_option("--picture", "the most unusual ones")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def outliers(
    table: Path,
    reference: Path,
    group_by: str | None,
    k: int,
    column: str,
    quantile: float | None,
    label: str | None,
    usual: tuple[str, ...],
    top: int,
    to: Path | None,
    roc: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Find what is unlike a reference set: the mean distance to the nearest ones of it.

    TABLE and --reference are what `medimage embed --to` writes, of the same model. With --group-by, a study is
    described by the mean, standard deviation, least, quartiles and greatest of each of the 1024 numbers of its images.
    """
    from medimage_analysis.outliers import distances, separation, threshold_of_roc
    from medimage_analysis.table import Table, check_same_model

    if bool(label) != bool(usual):
        raise click.UsageError("--label and --usual go together: the column, and its value of what is usual")
    if roc is not None and roc == picture:
        raise click.UsageError("--roc and --picture name the same file")
    if roc and not label:
        raise click.UsageError("--roc needs --label and --usual")
    opened, usual_ones = Table.open(table), Table.open(reference)
    check_same_model({str(table): opened.model, str(reference): usual_ones.model})
    described, members = describe(opened, column, group_by)
    of_reference, _ = describe(usual_ones, column, group_by)
    labels = None if label is None else read_labels(opened, label, described.ids, members)
    odd = None if labels is None else odd_ones(labels, usual, f"{table}, column {label!r}")

    scores, nearest = distances(described, of_reference, k)
    if odd is None or quantile is not None:
        quantile = DEFAULT_QUANTILE if quantile is None else quantile
        threshold = float(np.quantile(distances(of_reference, of_reference, k)[0], quantile))
        origin = f"as far as {quantile:g} of the reference is from the rest of it"
    else:
        threshold, origin = threshold_of_roc(scores, odd), "where sensitivity + specificity is greatest"
    found = None if odd is None else separation(scores, odd, threshold)

    order = np.argsort(-scores, kind="stable")
    columns: dict[str, list[Any]] = {
        "id": [described.ids[i] for i in order],
        "distance": scores[order].tolist(),
        "outlier": (scores[order] > threshold).tolist(),
        "nearest": [nearest[i] for i in order],
    }
    if labels is not None:
        columns["label"] = [labels[i] for i in order]
    files: dict[Path, Content] = {}
    if to is not None:
        files[to] = render_file(to, columns)
    if roc is not None and odd is not None and found is not None:
        files[roc] = roc_curves({f"AUC {found.auc:.3f}": (odd, scores)})
    if picture is not None:
        files[picture] = draw(opened, [members[i][0] for i in order[:top]], columns, threshold)
    write_files(files)
    click.echo(render(columns, threshold, origin, found, len(of_reference.ids), top=top, as_json=as_json))


def check_output(path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    if path.suffix not in SUFFIXES:
        raise click.BadParameter(f"{path} is not one of {', '.join(SUFFIXES)}")
    check_place(path)
    return path


def describe(table: "Table", column: str, group_by: str | None) -> tuple["Described", list[list[int]]]:
    """What is compared, and the rows of each in the table."""
    from medimage_analysis.outliers import Described, members_of, pool
    from medimage_analysis.table import check_vectors

    vectors, ids = table.vectors(column), table.read(["id"])["id"].to_pylist()
    if not ids:
        raise InvalidInput(f"{table.path} has no rows")
    check_vectors(vectors, ids, str(table.path), column)
    if group_by is None:
        return Described(ids, vectors), [[row] for row in range(len(ids))]
    members = members_of(read_texts(table, SHORT.get(group_by, group_by), ids))
    return pool(vectors, members), [*members.values()]


def read_texts(table: "Table", column: str, ids: Sequence[str]) -> list[str]:
    """A column without gaps, as texts."""
    table.check_values(column)
    values = table.read([column])[column].to_pylist()
    for name, value in zip(ids, values, strict=True):
        if value is None or value == "" or value != value:
            raise InvalidInput(f"{table.path}, id {name!r}: {column!r} is empty; expected a value in each row")
    return [str(value) for value in values]


def read_labels(table: "Table", column: str, names: Sequence[str], members: Sequence[Sequence[int]]) -> list[str]:
    """Of each of what is compared."""
    of_rows = read_texts(table, column, table.read(["id"])["id"].to_pylist())
    labels = []
    for name, rows in zip(names, members, strict=True):
        different = sorted({of_rows[row] for row in rows})
        if len(different) > 1:
            raise InvalidInput(
                f"{table.path}, column {column!r}: {name!r} has both {different[0]!r} and {different[1]!r}; expected "
                "one label in all rows of a group"
            )
        labels += different
    return labels


def odd_ones(labels: Sequence[str], usual: Sequence[str], place: str) -> NDArray[np.bool_]:
    unknown = next((value for value in usual if value not in labels), None)
    if unknown is not None:
        there = ", ".join(map(repr, sorted(set(labels))[:12]))
        raise InvalidInput(f"{place}: no row has {unknown!r}, which --usual names; there are {there}")
    odd = np.array([label not in usual for label in labels])
    if not odd.any():
        raise InvalidInput(f"{place}: all rows are usual by --usual; a ROC curve needs some that are not")
    return odd


def render_file(path: Path, columns: dict[str, list[Any]]) -> Content:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    file = BytesIO()
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(columns), file)
    else:
        pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def draw(table: "Table", rows: Sequence[int], columns: dict[str, list[Any]], threshold: float) -> Content:
    from medimage_analysis.thumbnails import grid, thumbnail

    there = table.read(["source", "frame"]).take(rows).to_pylist()
    images = [
        None if row["source"] is None else thumbnail(row["source"], row["frame"], table.model.windowing, TILE_PX)
        for row in there
    ]
    labels = columns.get("label", [""] * len(rows))
    captions = [
        f"{distance:.3f}{' outlier' if distance > threshold else ''} {label}\n{name}"
        for name, distance, label in zip(columns["id"], columns["distance"], labels, strict=False)
    ][: len(rows)]
    n_missing = sum(image is None for image in images)
    if n_missing:
        click.echo(f"{n_missing} of {len(images)} images of the picture cannot be read where the table says", err=True)
    file = BytesIO()
    grid(images, captions, tile_px=TILE_PX, columns=TILES_IN_A_ROW).save(file, "PNG")
    return file.getvalue()


def render(
    columns: dict[str, list[Any]],
    threshold: float,
    origin: str,
    found: "Separation | None",
    n_reference: int,
    *,
    top: int,
    as_json: bool,
) -> str:
    n_outliers = sum(columns["outlier"])
    if as_json:
        head = {"threshold": threshold, "n_outliers": n_outliers, "n_reference": n_reference}
        head |= {} if found is None else asdict(found)
        rows = [dict(zip(columns, row, strict=True)) for row in [*zip(*columns.values(), strict=True)][:top]]
        return json.dumps(head | {"rows": rows}, indent=2)
    lines = [
        f"{n_outliers} of {len(columns['id'])} are outliers, by {n_reference} of the reference",
        f"threshold {threshold:.4f}, {origin}",
    ]
    if found is not None:
        lines.append(
            f"AUC {found.auc:.3f}; at the threshold sensitivity {found.sensitivity:.3f}, specificity "
            f"{found.specificity:.3f}"
        )
    names = [name for name in columns if name != "nearest"]
    rows_of_text = [
        [in_one_line(name), f"{distance:.4f}", "yes" if outlier else "no", *map(in_one_line, more)]
        for name, distance, outlier, *more in zip(*(columns[name][:top] for name in names), strict=True)
    ]
    return "\n".join([*lines, "", *text_table(names, rows_of_text)])
