"""Slices to volumes: the vectors of a series or a study pooled into one, as Microsoft's 3-D search does it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medimage_analysis.table import Table, Vectors, to_column, vectors_of
from medimage_client.errors import InvalidInput

Pool = Literal["mean", "median", "max", "std"]
POOLS: Mapping[Pool, Callable[[Vectors], Vectors]] = {
    "mean": lambda vectors: vectors.mean(axis=0),
    "median": lambda vectors: np.median(vectors, axis=0),
    "max": lambda vectors: vectors.max(axis=0),
    "std": lambda vectors: vectors.std(axis=0),
}
GROUPS = {"series": "series_uid", "study": "study_uid"}  # short names of columns
COUNT = "n_images"  # of a volume, a column beside those of its images
OF_ONE_IMAGE = ("source", "sop_uid", "frame")  # columns that a volume has of its middle image


def pool_vectors(vectors: Vectors, pool: Pool) -> Vectors:
    """(n, 1024) of the slices of one volume to (1024,), which is no unit vector.

    Raises:
        InvalidInput: `std` of a single slice, which is zero.
    """
    if pool == "std" and len(vectors) < 2:
        raise InvalidInput("has one image, whose standard deviation is zero; choose mean, median or max")
    return np.asarray(POOLS[pool](vectors), np.float32)


def volume_schema(schema: pa.Schema) -> pa.Schema:
    """Of a table's volumes."""
    if COUNT in schema.names:
        raise InvalidInput(f"the table has a column {COUNT!r}, which grouping makes; embed it under another name")
    return schema.append(pa.field(COUNT, pa.int32()))


def volumes(table: Table, column: str, pool: Pool, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """One row for each value of the column, as soon as its last image is read: memory holds the open ones alone.

    The id is the value. Other columns have what all images of the volume agree in, and are null otherwise; source, SOP
    UID and frame are the middle image's.

    Raises:
        InvalidInput: there is no such column, or a row has no value in it.
    """
    counts = count_images(table, column)
    schema = volume_schema(table.schema)
    parts: dict[object, list[pa.RecordBatch]] = defaultdict(list)
    done: list[pa.RecordBatch] = []
    for batch in table.dataset.to_batches(batch_size=batch_rows):
        rows_of = defaultdict(list)
        for row, value in enumerate(batch.column(column).to_pylist()):
            rows_of[value].append(row)
        for value, rows in rows_of.items():
            parts[value].append(batch.take(pa.array(rows)))
            counts[value] -= len(rows)
            if counts[value] == 0:
                done.append(volume(pa.Table.from_batches(parts.pop(value)), str(value), pool, schema))
        if len(done) >= batch_rows:
            yield joined(done, schema)
            done = []
    if done:
        yield joined(done, schema)


def count_images(table: Table, column: str) -> dict[object, int]:
    """Of each value of the column."""
    read = table.read([column])[column]
    if read.null_count:
        raise InvalidInput(
            f"{table.path}: {read.null_count} of {len(read)} rows have no {column}; group by a column that all rows "
            "have, as --group-by source for NIfTI volumes"
        )
    return {count["values"]: count["counts"] for count in read.value_counts().to_pylist()}


def volume(images: pa.Table, name: str, pool: Pool, schema: pa.Schema) -> pa.RecordBatch:
    """The images of one volume, in their order, to its row."""
    middle = images.slice(len(images) // 2, 1)
    try:
        vector = pool_vectors(vectors_of(images["image_features"]), pool)
    except InvalidInput as error:
        raise error.at(place=name) from None
    columns = []
    for field in schema:
        if field.name == "id":
            column = pa.array([name])
        elif field.name == COUNT:
            column = pa.array([len(images)], field.type)
        elif field.name == "image_features":
            column = to_column(vector)
        elif field.name in OF_ONE_IMAGE:
            column = middle[field.name]
        elif field.name == "text_features":  # follow from the text
            column = agreed(images, "text", field)
        else:
            column = agreed(images, field.name, field)
        columns.append(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def agreed(images: pa.Table, by: str, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """The first image's value of a column if all images have one value of `by`."""
    values = images[by]
    try:
        n_values = pc.count_distinct(values, mode="all").as_py()
    except pa.ArrowNotImplementedError:  # of lists
        n_values = len({repr(value) for value in values.to_pylist()})
    return images[field.name].slice(0, 1) if n_values == 1 else pa.nulls(1, field.type)


def joined(rows: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(rows, schema).combine_chunks().to_batches()
    return batch
