"""The images of a table that have a label: their vectors, labels and groups, by their ids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medimage_analysis.heads.splits import SPLITS, check_no_leak
from medimage_analysis.table import Table, Vectors, check_unique, check_vectors
from medimage_client.errors import InvalidInput
from medimage_client.labels.predictions import ID, check_ids, check_labels, read_columns, read_names

STUDY = "study_uid"
MIN_GROUPS = len(SPLITS)  # of a label: one for each part


@dataclass(frozen=True, slots=True)
class Labelled:
    ids: list[str]
    vectors: Vectors = field(repr=False)  # (n, 1024)
    labels: list[str]
    targets: NDArray[np.bool_]  # (n, labels); of one label an image in each row a single one is true
    multilabel: bool
    groups: list[str]  # of each image, such as its patient
    parts: NDArray[np.int64] | None  # of each image its index in SPLITS, where a column tells

    def take(self, rows: NDArray[np.int64]) -> Self:
        return type(self)(
            [self.ids[row] for row in rows],
            self.vectors[rows],
            self.labels,
            self.targets[rows],
            self.multilabel,
            [self.groups[row] for row in rows],
            None if self.parts is None else self.parts[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelColumns:
    """Where labels stand.

    Attributes:
        file: with a column `id`; None for columns of the table itself.
        names: one column of labels, or several of 0 and 1, each a label of its own.
        separator: between the labels of one cell, as | in `Mass|Nodule`; makes them labels of their own, too.
        group: column of what must stay together, such as the patient; None for the study or, without one, the image.
        split: column of train, validation or test.
    """

    file: Path | None
    names: Sequence[str]
    separator: str | None = None
    group: str | None = None
    split: str | None = None

    @property
    def multilabel(self) -> bool:
        return len(self.names) > 1 or self.separator is not None

    def place(self, column: str) -> str:
        return f"{self.file or 'the table'}, column {column!r}"


def read_labelled(
    table: Table, columns: LabelColumns, *, note: Callable[[str], None], labels: Sequence[str] | None = None
) -> Labelled:
    """The rows of a table that have a label, in its order.

    Args:
        note: is told, in one line each, of images without a label and of labels without an image.
        labels: those that there may be, in this order; None for those that there are.

    Raises:
        InvalidInput: names the file, and the row, id or column at fault.
    """
    ids = table.read([ID])[ID]
    check_unique(ids, str(table.path), "embed its sources anew, into another table")
    names: list[str] = ids.to_pylist()
    cells = cells_of(table, names, columns, note)
    rows = np.array([i for i in range(len(names)) if all(cells[name][i] for name in columns.names)], np.int64)
    if not rows.size:
        raise InvalidInput(f"{table.path}: no row has a label in {columns.place(columns.names[0])}")
    if len(rows) < len(names):
        missing = sorted({*range(len(names))} - {*rows.tolist()})
        note(f"{len(missing)} of {len(names)} images have no label and are left out, first {names[missing[0]]!r}")
    found, targets = read_targets({name: [cells[name][i] for i in rows] for name in columns.names}, columns, labels)
    kept = [names[i] for i in rows]
    groups = read_groups(cells, columns, rows, names)
    parts = None
    if columns.split is not None:
        parts = read_parts([cells[columns.split][i] for i in rows], kept, columns.place(columns.split))
        check_no_leak(parts, groups, kept, columns.place(columns.split))
    vectors = table.vectors()[rows]
    check_vectors(vectors, kept, f"{table.path}", "image_features")
    return Labelled(kept, vectors, found, targets, columns.multilabel, groups, parts)


def cells_of(
    table: Table, ids: Sequence[str], columns: LabelColumns, note: Callable[[str], None]
) -> dict[str, list[str]]:
    """Of each row of the table, the texts of the columns that are needed; "" where there is nothing."""
    needed = [*columns.names, *filter(None, (columns.group, columns.split))]
    cells: dict[str, list[str]] = {}
    if columns.file is not None:
        in_file = read_columns(columns.file, needed=[ID, *columns.names])
        given = read_names(columns.file, in_file, ID)
        check_ids(columns.file, given)
        place = {name: row for row, name in enumerate(given)}
        there = {*ids}
        lost = [name for name in given if name not in there]
        if len(lost) == len(given):
            raise InvalidInput(
                f"{columns.file}: none of its ids is in {table.path}; it has {given[0]!r}, the table {ids[0]!r}"
            )
        if lost:
            note(f"{columns.file}: {len(lost)} of {len(given)} ids have no image in {table.path}, first {lost[0]!r}")
        for name in in_file.keys() & {*needed}:
            cells[name] = [text_of(in_file[name][place[i]]) if i in place else "" for i in ids]
    for name in needed:
        if name not in cells:
            cells[name] = [text_of(cell) for cell in table.read([name])[name].to_pylist()]
    if columns.group is None:
        cells[STUDY] = [text_of(cell) for cell in table.read([STUDY])[STUDY].to_pylist()]
    return cells


def text_of(cell: Any) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()


def read_groups(
    cells: Mapping[str, Sequence[str]], columns: LabelColumns, rows: NDArray[np.int64], names: Sequence[str]
) -> list[str]:
    if columns.group is None:
        return [cells[STUDY][i] or names[i] for i in rows]
    empty = next((names[i] for i in rows if not cells[columns.group][i]), None)
    if empty is not None:
        raise InvalidInput(f"{columns.place(columns.group)}, id {empty!r}: is empty; expected the group of each image")
    return [cells[columns.group][i] for i in rows]


def read_parts(cells: Sequence[str], ids: Sequence[str], place: str) -> NDArray[np.int64]:
    for name, cell in zip(ids, cells, strict=True):
        if cell not in SPLITS:
            raise InvalidInput(f"{place}, id {name!r}: is {cell!r}; expected one of {', '.join(SPLITS)}")
    return np.array([SPLITS.index(cell) for cell in cells])


def read_targets(
    cells: Mapping[str, Sequence[str]], columns: LabelColumns, known: Sequence[str] | None
) -> tuple[list[str], NDArray[np.bool_]]:
    """Labels, and of each row (n, labels) whether it has them."""
    if len(columns.names) > 1:
        for name, values in cells.items():
            wrong = next((value for value in values if value not in ("0", "1", "0.0", "1.0")), None)
            if wrong is not None:
                raise InvalidInput(f"{columns.place(name)}: has {wrong!r}; expected 0 or 1 in each of several columns")
        sets = [
            {name for name, value in zip(cells, row, strict=True) if float(value)}
            for row in zip(*cells.values(), strict=True)
        ]
        there = list(columns.names)
    else:
        (values,) = cells.values()
        sets = [
            {part.strip() for part in value.split(columns.separator)} - {""} if columns.separator else {value}
            for value in values
        ]
        there = sorted(set().union(*sets))
    labels = there if known is None else [*known]
    strange = next((label for label in there if label not in labels), None)
    if strange is not None:
        raise InvalidInput(
            f"{columns.place(columns.names[0])}: {strange!r} is none of the head's labels, "
            f"{', '.join(map(repr, labels))}; take its rows out"
        )
    check_labels(labels)
    if len(labels) < 2 and not columns.multilabel:
        raise InvalidInput(f"{columns.place(columns.names[0])}: has {labels[0]!r} alone; expected two labels or more")
    index = {label: column for column, label in enumerate(labels)}
    targets = np.zeros((len(sets), len(labels)), bool)
    for row, some in enumerate(sets):
        targets[row, [index[label] for label in some]] = True
    return labels, targets


def check_enough(labelled: Labelled, columns: LabelColumns) -> None:
    """Raise InvalidInput unless each label has a group for each part."""
    for column, label in enumerate(labelled.labels):
        rows = np.flatnonzero(labelled.targets[:, column])
        n_groups = len({labelled.groups[row] for row in rows})
        if n_groups < MIN_GROUPS:
            kind = repr(columns.group) if columns.group else "study or image"
            raise InvalidInput(
                f"{columns.place(columns.names[0])}: {label!r} has {len(rows)} images of {n_groups} groups "
                f"(by {kind}); expected at least {MIN_GROUPS}, one each for {', '.join(SPLITS)}: add images of it, or "
                "take its rows out"
            )
