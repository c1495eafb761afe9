"""Tables of what was predicted for each image and of what is true, as CSV or Parquet.

Predictions have the columns `id`, `predicted` and one for each label, its probability. The truth has `id` and `label`.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput, MissingExtra

ID, PREDICTED, LABEL = "id", "predicted", "label"
SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class Predictions:
    ids: list[str]
    labels: list[str]
    answers: list[int]  # of each image, the index of the label that was chosen
    probabilities: NDArray[np.floating[Any]]  # (images, labels); of any scale, for only their order counts


def predictions_of(ids: Sequence[str], labels: Sequence[str], probabilities: NDArray[np.floating[Any]]) -> Predictions:
    """With the label of the highest probability as the answer."""
    return Predictions([*ids], [*labels], probabilities.argmax(axis=1).tolist(), probabilities)


def check_suffix(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if path.suffix not in SUFFIXES:
        raise InvalidInput(f"{path} is not one of {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        import_pyarrow()


def check_labels(labels: Sequence[str]) -> None:
    """Refuse a label that cannot be a column of its own."""
    reserved = next((label for label in labels if label in (ID, PREDICTED)), None)
    if reserved is not None:
        raise InvalidInput(f"the label {reserved!r} is the name of another column; give the label another name")


def render_predictions(path: Path, predictions: Predictions) -> bytes:
    """The content of a file of this suffix."""
    chosen = [predictions.labels[answer] for answer in predictions.answers]
    if path.suffix == ".csv":
        text = StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([ID, PREDICTED, *predictions.labels])
        for name, answer, row in zip(predictions.ids, chosen, predictions.probabilities, strict=True):
            writer.writerow([name, answer, *map(str, row)])  # the shortest digits that are the same number
        return text.getvalue().encode()
    pa, pq = import_pyarrow()
    file = BytesIO()
    columns = {ID: pa.array(predictions.ids, pa.string()), PREDICTED: pa.array(chosen, pa.string())}
    columns |= dict(zip(predictions.labels, map(pa.array, predictions.probabilities.T), strict=True))
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def read_predictions(path: Path) -> Predictions:
    """Predictions of this project or of another program; without `predicted`, the highest probability is the answer.

    Raises:
        InvalidInput: names the file, and the row and column at fault.
    """
    columns = read_columns(path, needed=[ID])
    ids = read_names(path, columns, ID)
    check_ids(path, ids)
    labels = [name for name in columns if name not in (ID, PREDICTED)]
    if len(labels) < 2:
        raise InvalidInput(f"{path} has too few labels, {len(labels)}; expected a column for each, at least two")
    probabilities = np.array([read_numbers(path, columns[label], label) for label in labels]).T.reshape(-1, len(labels))
    if PREDICTED not in columns:
        return predictions_of(ids, labels, probabilities)
    answers = read_indices(path, read_names(path, columns, PREDICTED), PREDICTED, labels)
    return Predictions(ids, labels, answers, probabilities)


def read_truth(path: Path, labels: Sequence[str]) -> dict[str, int]:
    """By each image's id the index of its label.

    Raises:
        InvalidInput: names the file, and the row and column at fault.
    """
    columns = read_columns(path, needed=[ID, LABEL])
    ids = read_names(path, columns, ID)
    check_ids(path, ids)
    return dict(zip(ids, read_indices(path, read_names(path, columns, LABEL), LABEL, labels), strict=True))


def truth_of(ids: Sequence[str], truth: Mapping[str, int], path: Path) -> list[int]:
    """The true label of each image. Where the truth has names of files alone, folders of an image's id do not count.

    Raises:
        InvalidInput: an image has no truth, or two have the same name of a file.
    """
    if not any("/" in name or "\\" in name for name in truth):
        names = [PurePath(name).name for name in ids]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None and twice in truth:
            raise InvalidInput(f"{path} names {twice!r}, a name of two images; give ids with their folders")
    else:
        names = [*ids]
    missing = [name for name in names if name not in truth]
    if missing:
        raise InvalidInput(
            f"{path} has no row for {missing[0]!r}, nor for {len(missing) - 1} more of {len(names)} images; "
            "add them, or leave the images out"
        )
    return [truth[name] for name in names]


def read_columns(path: Path, *, needed: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a table, by name.

    Raises:
        InvalidInput: the file cannot be read as its suffix says, or a column is missing or there twice.
    """
    check_suffix(path)
    try:
        names, rows = read_csv(path) if path.suffix == ".csv" else read_parquet(path)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InvalidInput(f"{path} has the column {twice!r} twice; give each column another name")
    missing = next((name for name in needed if name not in names), None)
    if missing is not None:
        raise InvalidInput(f"{path} has no column {missing!r}; it has {', '.join(map(repr, names)) or 'no columns'}")
    if not rows or not rows[0]:
        raise InvalidInput(f"{path} has no rows")
    return dict(zip(names, rows, strict=True))


def read_csv(path: Path) -> tuple[list[str], list[list[Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            names, *rows = [row for row in csv.reader(lines, strict=True) if row] or [[]]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text; save it as CSV UTF-8") from error
    except csv.Error as error:
        raise InvalidInput(f"{path} is not CSV: {error}") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise InvalidInput(f"{path}, row {number}: has {len(row)} cells; the first line has {len(names)}")
    return names, [list(column) for column in zip(*rows, strict=True)]


def read_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    pa, pq = import_pyarrow()
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{path} is not a Parquet file, or not a whole one") from error
    return table.column_names, [column.to_pylist() for column in table.columns]


def read_names(path: Path, columns: Mapping[str, Sequence[Any]], name: str) -> list[str]:
    """The cells of a column as texts, none of them empty."""
    for number, cell in enumerate(columns[name], start=1):
        if cell is None or cell == "" or cell != cell:  # the last: Parquet's NaN
            raise InvalidInput(f"{path}, row {number}: {name!r} is empty")
    return [str(cell) for cell in columns[name]]


def read_numbers(path: Path, cells: Iterable[Any], name: str) -> list[float]:
    numbers = []
    for number, cell in enumerate(cells, start=1):
        try:
            numbers.append(float(cell))
        except (TypeError, ValueError):
            numbers.append(np.nan)
        if not np.isfinite(numbers[-1]):
            raise InvalidInput(
                f"{path}, row {number}, column {name!r}: is not a finite number; expected the probability of a label "
                f"in every column but {ID!r} and {PREDICTED!r}"
            )
    return numbers


def read_indices(path: Path, names: Sequence[str], column: str, labels: Sequence[str]) -> list[int]:
    index = {label: i for i, label in enumerate(labels)}
    for number, name in enumerate(names, start=1):
        if name not in index:
            raise InvalidInput(
                f"{path}, row {number}: {column!r} is {name!r}, which is none of the {len(labels)} labels; they are "
                f"{', '.join(map(repr, labels))}"
            )
    return [index[name] for name in names]


def check_ids(path: Path, ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, name in enumerate(ids, start=1):
        if name in first:
            raise InvalidInput(
                f"{path}, rows {first[name]} and {number}: have the same id {name!r}; give each image once"
            )
        first[name] = number


def import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:  # absent, or of a version that does not suit NumPy's
        raise MissingExtra("Parquet", "pyarrow", "parquet") from None
    return pa, pq
