"""The embedding table: a folder of Parquet shards with one schema, all of one model.

It holds nothing else, so that pandas, pyarrow, DuckDB, Polars and Ray read the folder as it is.
"""

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medimage_client.constants import EMBEDDING_SIZE
from medimage_client.errors import InvalidInput

Vectors = NDArray[np.float32]  # (n, 1024)

VECTOR = pa.list_(pa.field("item", pa.float32()), EMBEDDING_SIZE)
# Of a column in which some rows have none: pyarrow 25 writes fixed-size lists with nulls and cannot read them back
# (https://github.com/apache/arrow/issues/35692).
VECTOR_OR_NULL = pa.list_(pa.field("item", pa.float32()))
COLUMNS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the row, unique in the table
        ("source", pa.string()),  # a path, a member of a zip as `archive.zip/name`, or the URL of an object
        ("study_uid", pa.string()),  # null where there is none
        ("series_uid", pa.string()),
        ("sop_uid", pa.string()),
        ("frame", pa.int32()),  # of a multi-frame object, or the slice of a volume, from 0
        pa.field("image_features", VECTOR, nullable=False),  # L2-normalised, as are `text_features`
        ("text", pa.string()),
        ("text_features", VECTOR_OR_NULL),
    ]
)
MODEL_KEY = b"medimage.model"  # in the metadata of a shard's schema
SHARD = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True, slots=True)
class Model:
    """What made the vectors. Those of two models cannot be compared, even if the models differ in precision alone."""

    name: str  # as `medimageinsight`
    checkpoint: str | None  # SHA-256 of the checkpoint's weights, from the export's manifest; None of random weights
    precision: str  # as `fp32`, `int8`
    profile: str  # of preprocessing: `azure` or `reference`
    windowing: str  # how DICOM files were shown: `file`, `percentile` or `LOW,HIGH`

    def __str__(self) -> str:
        checkpoint = "no known checkpoint" if self.checkpoint is None else f"checkpoint {self.checkpoint[:12]}"
        return f"{self.name} ({checkpoint}, {self.precision}, profile {self.profile}, windowing {self.windowing})"

    def to_json(self) -> dict[str, str | None]:
        return asdict(self)

    def to_metadata(self) -> dict[bytes, bytes]:
        return {MODEL_KEY: json.dumps(self.to_json()).encode()}

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """Of the metadata of a shard's schema.

        Raises:
            ValueError: there is none, or it is not one.
        """
        try:
            return cls(**json.loads((schema.metadata or {})[MODEL_KEY]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no {MODEL_KEY.decode()} in its metadata") from error


class OtherModel(InvalidInput):
    """Vectors of two models met."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table on disk; its rows are read when they are asked for."""

    path: Path
    model: Model
    schema: pa.Schema
    dataset: ds.Dataset

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Look at the head of each shard.

        Raises:
            InvalidInput: not a table, a shard is damaged, or shards differ in their columns.
            OtherModel: shards are of two models.
        """
        folder = Path(path)
        shards = shards_of(folder)
        if not shards:
            raise InvalidInput(f"{folder}: no table; expected a folder with part-00000.parquet, as `--to` writes it")
        schemas = {shard: read_schema(shard) for shard in shards}
        models = {str(shard): model_of(shard, schema) for shard, schema in schemas.items()}
        check_same_model(models)
        first, schema = shards[0], schemas[shards[0]]
        for shard, other in schemas.items():
            if not other.equals(schema):
                raise InvalidInput(f"{shard}: has columns {describe(other)}; {first} has {describe(schema)}")
        dataset = ds.dataset([str(shard) for shard in shards], schema=schema, format="parquet")
        return cls(folder, models[str(first)], schema, dataset)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows in the order of the shards, of all columns or of some.

        Raises:
            InvalidInput: there is no such column, or a shard is damaged.
        """
        for name in columns or ():
            self.check_column(name)
        try:
            return self.dataset.to_table(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError):
            raise self.damage() from None

    def damage(self) -> InvalidInput:
        """Which shard cannot be read, once that one is known to be."""
        for shard in shards_of(self.path):
            try:
                rows_of_shard(shard)
            except InvalidInput as error:
                return error
        return InvalidInput(f"{self.path}: could not be read, and can be now; give the command again")

    def vectors(self, column: str = "image_features") -> Vectors:
        """A column of vectors, (n, 1024) float32.

        Raises:
            InvalidInput: there is no such column, it has other values, or a row has none.
        """
        self.check_column(column)
        if self.schema.field(column).type not in (VECTOR, VECTOR_OR_NULL):
            raise InvalidInput(
                f"{self.path}: column {column!r} is of {self.schema.field(column).type}; it has no vectors"
            )
        values = self.read([column])[column]
        if values.null_count:
            raise InvalidInput(f"{self.path}: {values.null_count} of {len(values)} rows have no {column}")
        return vectors_of(values)

    def check_column(self, name: str) -> None:
        """Raise InvalidInput unless the table has the column."""
        if name not in self.schema.names:
            raise InvalidInput(f"{self.path}: no column {name!r}; it has {', '.join(self.schema.names)}")

    def check_values(self, name: str) -> None:
        """Raise InvalidInput unless the table has the column, with one value in a row."""
        self.check_column(name)
        if pa.types.is_nested(kind := self.schema.field(name).type):
            raise InvalidInput(f"{self.path}: column {name!r} is of {kind}; expected texts or numbers")


def write(path: str | os.PathLike[str], rows: pa.Table, model: Model, *, shard: int = 0) -> Path:
    """Write rows as one shard of a table, whole or not at all; returns its file.

    Columns of COLUMNS that are absent are null; those that are not of it follow it.

    Raises:
        InvalidInput: there is no `id` or `image_features`, a column is of another type, or two rows have one id.
        OSError: the system refuses.
    """
    folder = Path(path)
    content = arranged(rows, model)
    check_unique(content["id"], str(folder), "give each row an id of its own")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / shard_name(shard)
    write_parquet(file, content, folder.parent / f".{folder.name}-{file.stem}")  # not in the table, which is read
    return file


def write_parquet(file: Path, content: pa.Table, beside: Path) -> None:
    """Write a Parquet file, whole or not at all; until it is whole, under a name that begins as `beside`."""
    partial = beside.with_name(f"{beside.name}-{secrets.token_hex(4)}.partial")  # of its own on each machine
    try:
        with partial.open("wb") as opened:
            pq.write_table(content, opened, compression="zstd")
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def arranged(rows: pa.Table, model: Model) -> pa.Table:
    """Rows in the columns of a table, with the model in their metadata."""
    for name in ("id", "image_features"):
        if name not in rows.column_names or rows[name].null_count:
            raise InvalidInput(f"rows of a table need {name!r}, each of them")
    extra = [rows.schema.field(name) for name in rows.column_names if name not in COLUMNS.names]
    schema = pa.schema([*COLUMNS, *extra], metadata=model.to_metadata())
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type) for field in schema
    ]
    try:
        return pa.table([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)
    except (pa.ArrowException, ValueError) as error:
        raise InvalidInput(f"rows do not fit the columns of a table: {first_line(error)}") from None


def check_same_model(models: Mapping[str, Model]) -> None:
    """Of each name a model, such as of each table.

    Raises:
        OtherModel: two differ; the error names both.
    """
    first: tuple[str, Model] | None = None
    for name, model in models.items():
        if first is None:
            first = name, model
        elif model != first[1]:
            raise OtherModel(
                f"{name} is of {model}, and {first[0]} of {first[1]}: vectors of two models cannot be compared"
            )


def check_unique(ids: pa.ChunkedArray | pa.Array, place: str, remedy: str) -> None:
    """Raise InvalidInput, which names the first of them, if ids come twice."""
    counts = ids.value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise InvalidInput(f"{place}: {len(twice)} ids come twice or more, the first is {twice[0]['values']}; {remedy}")


def check_vectors(vectors: Vectors, ids: Sequence[str], place: str, column: str) -> None:
    """Raise InvalidInput, which names the first row at fault, if a number of vectors (n, d) is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise InvalidInput(f"{place}, id {ids[bad[0]]!r}: {column} has numbers that are not finite; embed it anew")


def vectors_of(column: pa.ChunkedArray | pa.Array) -> Vectors:
    """A column without nulls as (n, 1024)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, EMBEDDING_SIZE) for chunk in chunks]
    return np.concatenate([np.empty((0, EMBEDDING_SIZE), np.float32), *arrays])


def to_column(vectors: Vectors) -> pa.Array:
    """(n, 1024) as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=VECTOR)


def to_column_with_nulls(vectors: Vectors, rows: Sequence[int], n: int) -> pa.Array:
    """(k, 1024) as a column of `n` rows: those of `rows` have the vectors in this order, and the others none."""
    at = np.full(n, -1)
    at[list(rows)] = np.arange(len(rows))
    return to_column(vectors).cast(VECTOR_OR_NULL).take(pa.array(at, mask=at < 0))


def shard_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def shards_of(folder: Path) -> list[Path]:
    """The shards in a folder, in order; none of a folder that is not there."""
    try:
        found = [path for path in folder.iterdir() if SHARD.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidInput(f"cannot read {folder}: {error.strerror}") from None
    return sorted(found, key=lambda path: int(path.stem.removeprefix("part-")))


def rows_of_shard(shard: Path) -> pa.Table:
    """Of one shard, in its columns as they are in the table.

    Raises:
        InvalidInput: it is damaged or cannot be read.
    """
    schema = read_schema(shard)
    with reading(shard, remedy_of(shard)):
        return ds.dataset(str(shard), schema=schema, format="parquet").to_table()


def read_schema(shard: Path) -> pa.Schema:
    """Of a shard.

    Raises:
        InvalidInput: it is damaged or cannot be read.
    """
    with reading(shard, remedy_of(shard)):
        return pq.read_schema(shard)


def check_shards(folder: Path, model: Model) -> None:
    """Look at the head of each shard of a run that goes on.

    Raises:
        InvalidInput: one is damaged.
        OtherModel: one is of another model than the run.
    """
    for shard in shards_of(folder):
        check_same_model({str(folder): model, str(shard): model_of(shard, read_schema(shard))})


@contextmanager
def reading(file: Path, remedy: str) -> Iterator[None]:
    """Raise InvalidInput where a Parquet file cannot be read, with a remedy for one that is damaged or gone."""
    try:
        yield
    except PermissionError:
        raise InvalidInput(f"{file}: cannot be read: {os.strerror(errno.EACCES)}") from None
    except (pa.ArrowException, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        why = os.strerror(number) if number else "it is truncated or damaged"
        raise InvalidInput(f"{file}: cannot be read: {why}; {remedy}") from None


def remedy_of(shard: Path) -> str:
    """For a shard that is damaged."""
    if folder_of_run(shard.parent).is_dir():
        return "remove it and give the command that wrote the table again, which makes this shard anew"
    return f"its rows can only be embedded anew, into another table, for {folder_of_run(shard.parent)} is gone"


def folder_of_run(table: Path) -> Path:
    """What a run keeps beside its table."""
    table = table if table.name else table.resolve()  # `.`, which has none
    return table.with_name(f"{table.name}.run")


def model_of(shard: Path, schema: pa.Schema) -> Model:
    try:
        return Model.of(schema)
    except ValueError as error:
        raise InvalidInput(f"{shard}: is no shard of an embedding table: {error}") from None


def describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema if field.name not in COLUMNS.names) or "no more"


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
