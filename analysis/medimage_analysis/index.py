"""The search index: a LanceDB table of vectors with what is told of them, in a folder or in object storage.

It remembers the model of the embedding table that it was made of. Distances are of the cosine: 1 less the cosine of two
vectors, from 0 to 2. Vectors of single images are of length 1, for which the Euclidean distance gives the same order.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medimage_analysis.table import Model, Vectors, check_same_model, first_line, vectors_of
from medimage_analysis.volumes import Pool, pool_vectors
from medimage_client.constants import EMBEDDING_SIZE
from medimage_client.errors import InvalidInput

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table as LanceTable

Among = Literal["images", "texts"]
FEATURES: dict[Among, str] = {"images": "image_features", "texts": "text_features"}

TABLE = "embeddings"  # the one table of the database
GROUP_KEY, POOL_KEY = b"medimage.group_by", b"medimage.pool"  # in the schema's metadata, of an index of volumes
# in the metadata of a column that has an IVF-PQ index
PROBES_KEY, REFINED_KEY, RECALL_KEY = b"medimage.probes", b"medimage.refined", b"medimage.recall"
RECALL_K = 10  # nearest, of which an approximate search should find as many
DISTANCE = "distance"
LANCE_DISTANCE = "_distance"
RESERVED = (DISTANCE, LANCE_DISTANCE, "_score", "_relevance_score", "_rowid", "_rowaddr", "_rowoffset")
# Of LanceDB's errors: of a folder without a version, the system's number, where in its source, and of damaged files
NOT_WHOLE = f"Table '{TABLE}' was not found"
SYSTEM_ERROR, SOURCE_LINE = re.compile(r"\(os error (\d+)\)"), re.compile(r", /\S+\.rs:\d+:\d+$")
DAMAGE = ("LanceError(IO)", "lance error: Not found", "corrupt", "invalid magic")
MAX_REASON = 400  # characters of an error; object storage answers in XML


@dataclass(frozen=True, slots=True)
class Index:
    """An index to search; several threads may.

    Attributes:
        group_by: the column whose values are the rows' ids, of an index of volumes; None of one of images.
        pool: how the vectors of a volume's images were made one.
    """

    uri: str
    model: Model
    group_by: str | None
    pool: Pool | None
    lance: "LanceTable"

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Self:
        """In a folder, or in object storage by a URI such as `s3://bucket/name`.

        Raises:
            InvalidInput: it is not one, or cannot be read.
        """
        place = os.fspath(uri)
        lance = open_lance(place)
        if lance is None:
            raise InvalidInput(f"{place}: no index; expected what `medimage index TABLE --to {place}` writes")
        metadata = lance.schema.metadata or {}
        try:
            model = Model.of(lance.schema)
        except ValueError as error:
            raise InvalidInput(f"{place}: is no index of embeddings: {error}") from None
        group_by, pool = (metadata[key].decode() if key in metadata else None for key in (GROUP_KEY, POOL_KEY))
        return cls(place, model, group_by, cast("Pool | None", pool), lance)

    @property
    def columns(self) -> list[str]:
        """What is told of each row; without the vectors."""
        return [name for name in self.lance.schema.names if name not in FEATURES.values()]

    def __len__(self) -> int:
        return int(self.lance.count_rows())

    def effort(self, among: Among = "images") -> tuple[int, int] | None:
        """Parts that a search of the IVF-PQ index looks into, and how many times k candidates of the compressed vectors
        it ranks again by the vectors themselves; None where there is no such index, and search is exact.
        """
        metadata = self._metadata(among)
        if PROBES_KEY not in metadata or REFINED_KEY not in metadata:
            return None
        return int(metadata[PROBES_KEY]), int(metadata[REFINED_KEY])

    def recall(self, among: Among = "images") -> float | None:
        """Part of the 10 nearest that the IVF-PQ index found when it was made; None where there is none."""
        value = self._metadata(among).get(RECALL_KEY)
        return None if value is None else float(value)

    def _metadata(self, among: Among) -> dict[bytes, bytes]:
        field: pa.Field = self.lance.schema.field(self._features(among))
        return dict(field.metadata or {})

    def _features(self, among: Among) -> str:
        if FEATURES[among] not in self.lance.schema.names:
            raise InvalidInput(f"{self.uri}: has no {among}; the table that it was made of has no {FEATURES[among]}")
        return FEATURES[among]

    def check_column(self, name: str) -> None:
        """Raise InvalidInput unless there is such a column."""
        if name not in self.columns:
            raise InvalidInput(f"{self.uri}: no column {name!r}; it has {', '.join(self.columns)}")

    def check_model(self, model: Model, place: str) -> None:
        """Raise OtherModel, which names both, unless this model makes vectors that can be looked for here."""
        check_same_model({self.uri: self.model, place: model})

    def vector(self, name: str) -> Vectors:
        """(1024,) of the image or the volume with that id.

        Raises:
            InvalidInput: there is none.
        """
        with failing_at(self.uri):
            query = self.lance.search().where(f"id = {quoted(name)}").select(["image_features"]).limit(1)
            found = query.to_arrow()["image_features"]
        if not len(found):
            raise InvalidInput(f"{self.uri}: no id {name!r}; ids are those of the table, or of its volumes their UIDs")
        vector: Vectors = vectors_of(found)[0]
        return vector

    def pooled(self, vectors: Vectors) -> Vectors:
        """(n, 1024) of the images of one query to (1024,), as those of the index were pooled.

        Raises:
            InvalidInput: several images, and the index is of single ones.
        """
        if self.pool is not None:
            return pool_vectors(vectors, self.pool)
        if len(vectors) != 1:
            raise InvalidInput(
                f"the query has {len(vectors)} images, and {self.uri} is of single images; give one image, or make an "
                "index with --group-by"
            )
        (vector,) = vectors
        return np.asarray(vector)

    def search(
        self,
        query: Vectors,
        *,
        k: int = 10,
        among: Among = "images",
        where: str | None = None,
        without: str | None = None,
        exact: bool = False,
    ) -> pa.Table:
        """The k nearest, nearest first: the columns of the index, and `distance`. Each text comes once.

        Args:
            query: (1024,), of an image, a text, or a volume; `pooled` makes the latter.
            among: what is looked for; an image finds texts, and a text images.
            where: a condition in SQL over the columns, as `modality = 'CR' AND age > 40`.
            without: an id that is left out, such as that of the query.
            exact: do not use an IVF-PQ index.

        Raises:
            InvalidInput: the condition is none, or the index has no texts.
        """
        features = self._features(among)
        conditions = [] if where is None else [f"({where})"]
        if without is not None:
            conditions.append(f"id != {quoted(without)}")
        vector = np.ascontiguousarray(query, np.float32).reshape(EMBEDDING_SIZE)
        limit = k
        while True:
            found = self._nearest(vector, features, " AND ".join(conditions), limit, exact, where)
            first = distinct(found["text"]) if among == "texts" else range(len(found))
            if len(first) >= k or len(found) < limit:
                return found.take(pa.array(first[:k], pa.int64()))
            limit *= 4  # there are texts that several rows have

    def _nearest(
        self, vector: Vectors, features: str, condition: str, limit: int, exact: bool, where: str | None
    ) -> pa.Table:
        with failing_at(self.uri if where is None else f"{self.uri}, where {where!r}"):
            query = self.query(vector, features)
            effort = self.effort("images" if features == FEATURES["images"] else "texts")
            if exact or effort is None:
                query = query.bypass_vector_index()
            else:
                probes, refined = effort
                # all parts may be looked into where few rows fulfil the condition
                query = query.minimum_nprobes(probes).maximum_nprobes(0).refine_factor(refined)
            if condition:
                query = query.where(condition)
            found = query.select([*self.columns, LANCE_DISTANCE]).limit(limit).to_arrow()
        distance = pc.max_element_wise(found[LANCE_DISTANCE], pa.scalar(0, pa.float32()))  # of itself -1e-7
        return found.drop_columns([LANCE_DISTANCE]).add_column(0, DISTANCE, distance)

    def query(self, vector: Vectors, features: str) -> Any:
        """LanceDB's own builder of a search in a column of vectors."""
        builder: Any = self.lance.search(vector, vector_column_name=features)
        return builder.distance_type("cosine")

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Rows, in their order, of some columns; vectors too.

        Raises:
            InvalidInput: it cannot be read.
        """
        with failing_at(self.uri):
            return self.lance.search().select(list(columns)).limit(len(self)).to_arrow()


def distinct(texts: pa.ChunkedArray) -> list[int]:
    """The first row of each text."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts.to_pylist()):
        first.setdefault(text, row)
    return list(first.values())


def name_in_index(column: str) -> str:
    """Of a column of the table: LanceDB has no dots in names, and some names for itself."""
    name = column.replace(".", "_")
    return f"column_{name}" if name in RESERVED else name


def quoted(text: str) -> str:
    """As SQL has it."""
    return "'{}'".format(text.replace("'", "''"))


def is_remote(uri: str) -> bool:
    return "://" in uri


def connect(uri: str) -> "DBConnection":
    """Raise InvalidInput if it cannot be reached."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are on how this module calls it
    import lancedb

    with failing_at(uri):
        return lancedb.connect(uri)


def open_lance(uri: str) -> "LanceTable | None":
    """None where there is no index, or one whose making was interrupted."""
    with failing_at(uri):
        if not is_remote(uri) and not Path(uri, f"{TABLE}.lance").is_dir():  # LanceDB would make the folder
            return None
    database = connect(uri)
    with failing_at(uri):
        if TABLE not in database.list_tables().tables:
            return None
        try:
            return database.open_table(TABLE)
        except ValueError as error:
            if NOT_WHOLE in str(error):
                return None
            raise


@contextmanager
def failing_at(place: str) -> Iterator[None]:
    """What LanceDB fails with, as one line."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{place}: {reason(error, place)}") from None


def reason(error: Exception, place: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = first_line(error)
    if number := SYSTEM_ERROR.search(line):
        return os.strerror(int(number[1]))
    if "tcp connect error" in line or "ConnectionRefused" in line:
        return "cannot be reached: the object storage refuses the connection; is AWS_ENDPOINT right?"
    if "could not convert to literal" in line:
        return "compares a column with a value of another type; those of a CSV are texts, CAST(age AS INT) is a number"
    if not is_remote(place) and any(mark in line for mark in DAMAGE):
        return "is damaged; remove it and make it anew with `medimage index`"
    for words in ("Invalid input, ", "Schema error: ", "lance error: "):
        line = line.removeprefix(words)
    line = SOURCE_LINE.sub("", line)
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}…"
