"""What sources hold, image by image, in an order that is always the same: the rows of a run's plan.

Sources are folders with those below them, image files, zips, DICOMDIRs, NIfTI volumes, DICOMweb archives, and tables
with a column of paths or of base64. Nothing is read of an image itself, so that a million of them are soon planned.
"""

import csv
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medimage_analysis.table import COLUMNS, first_line
from medimage_client.archive.dicomweb import is_dicomweb
from medimage_client.archive.files import head_of, is_dicomdir, is_zip
from medimage_client.archive.nifti import count_slices, is_nifti
from medimage_client.archive.slices import Slice, WhichSlices, slices_of
from medimage_client.archive.sources import Sources
from medimage_client.cli.options import IMAGE_SUFFIXES
from medimage_client.constants import MAX_BODY_BYTES
from medimage_client.errors import InvalidInput
from medimage_client.images.dicom import is_dicom

Row = dict[str, Any]

# Where an image is, beside `source` and `frame`: columns of a plan that are not in the table
PLACE = pa.schema(
    [
        ("plan.path", pa.string()),  # of a file, or the URL of an object; null of base64
        ("plan.member", pa.string()),  # of a zip
        ("plan.base64", pa.large_string()),
        ("plan.size", pa.int64()),  # of the file when it was planned, in bytes
        ("plan.modified_ns", pa.int64()),
    ]
)
TOLD = ("id", "source", "study_uid", "series_uid", "sop_uid", "frame", "text")  # columns that a plan may have of a row
TEXTS = ("study_uid", "series_uid", "sop_uid", "text")  # of a source, those that are texts
DELIMITERS = {".csv": ",", ".tsv": "\t"}
WHOLE = ""  # in the place of a member: a zip whose members cannot be told
ROWS_AT_ONCE = 16  # of a Parquet table, whose cells may be large images
TABLE_SUFFIXES = (*DELIMITERS, ".parquet")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of the sources is taken."""

    slices: WhichSlices | None = None
    image_column: str = "image"  # of tables: paths, relative to the table's folder, or base64


def schema_of(sources: Sequence[Path | str], wanted: Wanted) -> pa.Schema:
    """Of the plan of sources: what a row is told by, where its image is, and the columns that tables have besides.

    Raises:
        InvalidInput: a table has no column of images, or two tables have columns of different types.
    """
    extra: dict[str, tuple[pa.DataType, Path]] = {}
    for path in filter(is_table, sources):
        assert isinstance(path, Path)
        schema = table_schema(path)
        check_columns(path, schema, wanted.image_column)
        for field in schema:
            if field.name in (*COLUMNS.names, wanted.image_column) or field.name in PLACE.names:
                continue
            first, where = extra.setdefault(field.name, (field.type, path))
            if first != field.type:
                raise InvalidInput(f"column {field.name!r} is of {field.type} in {path}, and of {first} in {where}")
    told = [COLUMNS.field(name) for name in TOLD]
    return pa.schema([*told, *PLACE, *(pa.field(name, kind) for name, (kind, _) in extra.items())])


def rows_of(sources: Sequence[Path | str], archives: Sources, wanted: Wanted, report: Any) -> Iterator[Row]:
    """Rows of a plan, without the columns that are null.

    Args:
        report: takes a line for each file of an archive or a study that is left out.

    Raises:
        InvalidInput: a source has no images, or is damaged as a whole.
        MedImageError: an archive fails.
    """
    for source in sources:
        n = 0
        for row in rows_of_source(source, archives, wanted, report):
            n += 1
            yield row
        if n == 0:
            expected = f"{', '.join(sorted(IMAGE_SUFFIXES))}, DICOM or NIfTI"
            expected = "a row for each image" if is_table(source) else expected
            raise InvalidInput(f"no images in {source}; expected {expected}")


def rows_of_source(source: Path | str, archives: Sources, wanted: Wanted, report: Any) -> Iterator[Row]:
    if isinstance(source, str) or (wanted.slices is not None and not is_nifti(source) and not is_table(source)):
        yield from rows_of_studies(source, archives, wanted, report)
    elif source.is_dir():
        yield from rows_of_folder(source, archives, wanted, report)
    else:
        yield from rows_of_file(source, archives, wanted, report)


def rows_of_folder(source: Path, archives: Sources, wanted: Wanted, report: Any) -> Iterator[Row]:
    """With those below it. What cannot be read is a row as well, of which its reader tells why."""
    closed: list[OSError] = []
    for folder, folders, names in os.walk(source, onerror=closed.append):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if not is_image_file(path):
                continue
            if is_utf8(path):
                yield from rows_of_file(path, archives, wanted, report)
            else:
                shown = os.fsencode(path).decode(errors="backslashreplace")
                report(f"{shown}: has a name that is not UTF-8; rename it")
                yield {"id": shown, "source": shown, "plan.path": shown}
    for error in closed:
        yield {"id": error.filename, "source": error.filename, "plan.path": error.filename}


def rows_of_file(path: Path, archives: Sources, wanted: Wanted, report: Any) -> Iterator[Row]:
    if is_table(path):
        yield from rows_of_table(path, wanted.image_column)
        return
    seen = stamp_of(path)
    if is_nifti(path):
        try:
            frames = (wanted.slices or WhichSlices()).of(count_slices(path))
        except InvalidInput:  # who reads it tells why
            yield {"id": str(path), "source": str(path), "plan.path": str(path), **seen}
            return
        for frame in frames:
            yield {"id": f"{path}#{frame}", "source": str(path), "frame": frame, "plan.path": str(path), **seen}
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield {"id": str(path), "source": str(path), "plan.path": str(path), **seen}
    elif is_zip(path):
        yield from rows_of_zip(path, seen)
    elif is_dicomdir(path):
        yield from rows_of_studies(path, archives, wanted, report)
    else:
        yield {"id": str(path), "source": str(path), "plan.path": str(path), **seen}


def rows_of_zip(path: Path, seen: dict[str, int]) -> Iterator[Row]:
    """Members that are images by their suffix, or that have none, as DICOM files often have none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (OSError, zipfile.BadZipFile):  # who reads it tells that
        yield {"id": str(path), "source": str(path), "plan.path": str(path), "plan.member": WHOLE, **seen}
        return
    for name in names:
        if Path(name).suffix.lower() in (*IMAGE_SUFFIXES, "") and Path(name).name != "DICOMDIR":
            source = f"{path}/{name}"
            yield {"id": source, "source": source, "plan.path": str(path), "plan.member": name, **seen}


def rows_of_studies(source: Path | str, archives: Sources, wanted: Wanted, report: Any) -> Iterator[Row]:
    found = archives.read(source)
    for line in (*found.left_out, *found.notes):
        report(line)
    for one in slices_of(found, wanted.slices):
        yield row_of_slice(one, source)


def row_of_slice(one: Slice, source: Path | str) -> Row:
    name = one.name if one.frame is None else one.name.removesuffix(f"#{one.frame}")
    is_member = isinstance(source, Path) and source.is_file() and is_zip(source)
    place: Row = {"plan.path": name}
    if is_member:
        place = {"plan.path": str(source), "plan.member": name.removeprefix(f"{source}/")}
    uids = {key: getattr(one, key) or None for key in ("study_uid", "series_uid", "sop_uid")}
    seen = {} if is_dicomweb(name) else stamp_of(Path(place["plan.path"]))
    return {"id": one.name, "source": name, "frame": one.frame, **uids, **place, **seen}


def rows_of_table(path: Path, image_column: str) -> Iterator[Row]:
    """An id is the column `id`, or the path as it is given, or for base64 the table's name and the row from 0."""
    check_columns(path, table_schema(path), image_column)
    taken = {"id", "source", "image_features", "text_features", image_column, *PLACE.names}
    for index, cells in enumerate(read_table(path)):
        given = {name: value for name, value in cells.items() if name not in taken}
        given |= {name: given[name] or None for name in TEXTS if name in given}
        if "frame" in given:
            given["frame"] = frame_of(given["frame"], path, index)
        yield given | row_of_cell(path, index, cells.get("id"), cells[image_column])


def frame_of(cell: Any, table: Path, index: int) -> int | None:
    try:
        return None if cell is None or cell == "" else int(cell)
    except ValueError:
        raise InvalidInput(f"{table}: row {index}, column 'frame' is no whole number") from None


def row_of_cell(table: Path, index: int, name: Any, cell: Any) -> Row:
    place = f"{table}#{index}"
    given = {} if name is None or name == "" else {"id": str(name)}
    if isinstance(cell, bytes):
        cell = cell.decode("latin-1")
    if not isinstance(cell, str) or not cell:
        return {"id": place, "source": place, **given}  # who reads it tells that there is none
    path = table.parent / cell if len(cell) < os.pathconf("/", "PC_PATH_MAX") else None
    if path is not None and ("." in cell or os.path.exists(path)):  # base64 has no dot, and may be no name at all
        return {"id": str(path), "source": str(path), "plan.path": str(path), **stamp_of(path), **given}
    return {"id": place, "source": place, "plan.base64": cell, **given}


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a table, few at once: a cell may be a large image. A CSV's cells are texts.

    Raises:
        InvalidInput: it cannot be read; the message has nothing of a cell.
    """
    with readable(path):
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                    yield from batch.to_pylist()
            return
        with csv_of(path) as (names, rows):
            for index, cells in enumerate(rows):
                if cells and len(cells) != len(names):
                    raise InvalidInput(f"{path}: row {index} has {len(cells)} cells; expected {len(names)}")
                if cells:  # not of an empty line
                    yield dict(zip(names, cells, strict=True))


def table_schema(path: Path) -> pa.Schema:
    """Of a table, whose head alone is read."""
    with readable(path):
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path).remove_metadata()
        with csv_of(path) as (names, _):
            return pa.schema([(name, pa.string()) for name in names])


@contextmanager
def csv_of(path: Path) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """Names of the columns, and rows."""
    csv.field_size_limit(MAX_BODY_BYTES)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()], strict=True)  # a quote is closed
        yield next(rows, []), rows


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, csv.Error, OSError, UnicodeDecodeError) as error:
        is_text = isinstance(error, UnicodeDecodeError)  # whose words have some of it
        reason = "it is not UTF-8; save it as CSV UTF-8" if is_text else first_line(error)[:200]
        raise InvalidInput(f"{path}: is a table that cannot be read: {reason}") from None


def check_columns(path: Path, schema: pa.Schema, image_column: str) -> None:
    """Raise InvalidInput unless a table has a column of images, each column once, and those of ours in their types."""
    if not schema.names:
        raise InvalidInput(f"{path}: is empty; expected a line with the names of its columns")
    if image_column not in schema.names and any(mark in schema.names[0] for mark in ",;\t"):
        raise InvalidInput(f"{path}: its columns are parted by other than a comma in .csv, or a tab in .tsv")
    if image_column not in schema.names:
        raise InvalidInput(
            f"{path}: no column {image_column!r}; it has {', '.join(schema.names)}; name that of the images with "
            "--image-column"
        )
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise InvalidInput(f"{path}: has the column {name!r} {schema.names.count(name)} times; expected it once")
        kind = schema.field(name).type
        if name in TEXTS and not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise InvalidInput(f"{path}: column {name!r} is of {kind}; expected string")


def is_table(source: Path | str) -> bool:
    return isinstance(source, Path) and source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir()


def is_image_file(path: Path) -> bool:
    """Of a folder; tables are not looked for in folders, nor are pipes, which may have no end."""
    if path.suffix.lower() in (*IMAGE_SUFFIXES, ".zip") or is_nifti(path):
        return os.path.isfile(path) or not os.path.exists(path)  # or it cannot be seen, of which its reader tells
    return os.path.isfile(path) and is_dicom(head_of(path)) and not is_dicomdir(path)


def is_utf8(path: Path) -> bool:
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def stamp_of(path: Path) -> dict[str, int]:
    """By which a file that changes is known; nothing of one that is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # the latter of a NUL in its name
        return {}
    return {"plan.size": status.st_size, "plan.modified_ns": status.st_mtime_ns}
