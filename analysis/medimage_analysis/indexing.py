"""An embedding table to a search index: rows or volumes are copied, and large ones get an IVF-PQ index.

IVF-PQ keeps the vectors in parts around centres, and of each vector a code of 128 bytes. A search looks into a few
parts, and ranks the best of them by the vectors themselves. How many of either are needed is measured here on a sample
of the vectors, against the exact answers.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from medimage_analysis.index import (
    FEATURES,
    GROUP_KEY,
    LANCE_DISTANCE,
    POOL_KEY,
    PROBES_KEY,
    RECALL_K,
    RECALL_KEY,
    REFINED_KEY,
    TABLE,
    Among,
    Index,
    connect,
    failing_at,
    is_remote,
    name_in_index,
    open_lance,
)
from medimage_analysis.table import VECTOR, Table, Vectors, check_unique, vectors_of
from medimage_analysis.volumes import GROUPS, Pool, count_images, volume_schema, volumes
from medimage_client.constants import EMBEDDING_SIZE
from medimage_client.errors import InvalidInput

Kind = Literal["auto", "exact", "ivf-pq"]

BATCH_ROWS = 2048  # 8 MiB of vectors
APPROXIMATE_FROM = 250_000  # vectors, which take a second of processor time: docs/search.md
MIN_APPROXIMATE = 256  # vectors, from which the codes of IVF-PQ can be learned
PART_ROWS = 4096  # of an IVF part, about: a millisecond's work
CODE_BYTES = 128  # of a vector, one for 8 of its numbers
# Of the k-means that finds parts and codes; LanceDB's own are 50 and 256. What they find is measured all the same, and
# more parts are looked into where it is too little.
ITERATIONS, SAMPLE_RATE = 15, 128
# times k candidates of the codes are ranked by their vectors; as few as find, if a search looks into all parts, half of
# what it may miss
REFINEMENTS = (20, 40, 80, 160)
SAMPLE = 200  # vectors that are looked for to measure the recall
WANTED_RECALL = 0.95


@dataclass(frozen=True, slots=True)
class Approximation:
    """An IVF-PQ index, and what was measured of it."""

    among: Among
    parts: int
    probes: int  # parts that a search looks into
    refined: int  # times k candidates that it ranks by their vectors
    recall: float  # part of the 10 nearest that it finds, mean of the sample
    seconds: float  # to make it, without the measurement


@dataclass(frozen=True, slots=True)
class Built:
    rows: int
    seconds: float  # to copy them
    approximations: list[Approximation]


def build(
    table: Table,
    uri: str | os.PathLike[str],
    *,
    group_by: str | None = None,
    pool: Pool = "mean",
    kind: Kind = "auto",
    replace: bool = False,
    recall: float = WANTED_RECALL,
) -> Built:
    """Make an index of a table. Until it is complete there is none, or the one before.

    Args:
        group_by: `series`, `study`, or a column whose values each stand for a volume; None for single images.
        pool: of the vectors of a volume.
        kind: `exact` looks at each vector, `ivf-pq` finds nearly all; `auto` is exact below 250,000 vectors.
        replace: an index that is there.
        recall: part of the 10 nearest that an approximate search should find, which decides how much it looks at.

    Raises:
        InvalidInput: the table has no such column, damaged vectors or equal ids, or the place is taken or fails.
    """
    place = os.fspath(uri)
    is_there = check_target(place, replace=replace)
    column = None if group_by is None else GROUPS.get(group_by, group_by)
    if column is not None:
        table.check_values(column)
    check_unique(table.read(["id"])["id"], str(table.path), "embed its sources anew, into another table")
    n_rows = table.dataset.count_rows() if column is None else len(count_images(table, column))
    if kind == "ivf-pq" and n_rows < MIN_APPROXIMATE:
        raise InvalidInput(
            f"{table.path}: {n_rows} vectors are too few for an IVF-PQ index, which needs {MIN_APPROXIMATE}; leave it "
            "exact"
        )
    schema = index_schema(table, column, pool)
    started = time.perf_counter()
    rows = (
        table.dataset.to_batches(batch_size=BATCH_ROWS) if column is None else volumes(table, column, pool, BATCH_ROWS)
    )
    failed: list[InvalidInput] = []  # LanceDB wraps what its reader raises
    is_interrupted, making = Event(), Lock()

    def checked() -> Iterator[pa.RecordBatch]:
        batches = iter(rows)
        try:
            while True:
                with making:
                    if is_interrupted.is_set():
                        raise InvalidInput("interrupted")
                    batch = next(batches, None)
                    if batch is None:
                        return
                    made = arranged_batch(batch, schema, str(table.path))
                yield made
        except InvalidInput as error:
            failed.append(error)
            raise
        except (pa.ArrowException, OSError):
            failed.append(table.damage())
            raise

    reader = pa.RecordBatchReader.from_batches(schema, checked())
    database = connect(place)
    try:
        with failing_at(place):
            # "null" would take out bad vectors; there are none any more, and else it refuses vectors that are null
            lance = database.create_table(TABLE, reader, schema=schema, mode="overwrite", on_bad_vectors="null")
            if is_there:  # its vectors; who has it open has to open it again
                lance.optimize(cleanup_older_than=timedelta(milliseconds=1))
    except InvalidInput as error:
        raise failed[0] if failed else error from None
    except KeyboardInterrupt:  # a thread of LanceDB that makes rows while Python ends would be fatal
        is_interrupted.set()
        with making:
            raise
    copied_s = time.perf_counter() - started
    index = Index.open(place)
    made = []
    for among, features in FEATURES.items():
        if features in schema.names:
            n_vectors = index.lance.count_rows(f"{features} IS NOT NULL")
            from_n_vectors = {"auto": APPROXIMATE_FROM, "ivf-pq": MIN_APPROXIMATE, "exact": math.inf}[kind]
            if n_vectors >= from_n_vectors:
                made.append(approximate(index, among, n_vectors, recall))
    return Built(len(index), copied_s, made)


def check_target(place: str, *, replace: bool) -> bool:
    """Refuse before the work what could not be written after it; returns whether there is an index."""
    folder = Path(place)
    try:
        is_taken = folder.exists() and not Path(folder, f"{TABLE}.lance").exists()
        if not is_remote(place) and is_taken and not (folder.is_dir() and not any(folder.iterdir())):
            raise InvalidInput(f"{place}: is there and is no index; choose another place")
    except OSError as error:
        raise InvalidInput(f"{place}: {error.strerror}") from None
    is_there = open_lance(place) is not None
    if is_there and not replace:
        raise InvalidInput(f"{place}: there is an index already; --replace makes it anew")
    return is_there


def index_schema(table: Table, column: str | None, pool: Pool) -> pa.Schema:
    """The columns of the table with vectors as LanceDB wants them, and without `text_features` where there are none."""
    schema = table.schema
    metadata = table.model.to_metadata()
    if column is not None:
        schema = volume_schema(schema)
        metadata |= {GROUP_KEY: column.encode(), POOL_KEY: pool.encode()}
    has_texts = "text_features" in schema.names and table.dataset.count_rows(
        filter=ds.field("text_features").is_valid()
    )
    fields = [
        pa.field(name_in_index(field.name), VECTOR if field.name in FEATURES.values() else field.type)
        for field in schema
        if has_texts or field.name != "text_features"
    ]
    for field in fields:
        if sum(other.name == field.name for other in fields) > 1:
            raise InvalidInput(
                f"{table.path}: two columns would be {field.name!r} in an index, where a dot becomes _; embed its "
                "sources anew with other names"
            )
    return pa.schema(fields, metadata=metadata)


def arranged_batch(batch: pa.RecordBatch, schema: pa.Schema, place: str) -> pa.RecordBatch:
    """In the columns of the index; the error names the first damaged vector."""
    batch = batch.rename_columns([name_in_index(name) for name in batch.schema.names])
    columns = []
    for field in schema:
        column = batch.column(field.name)
        columns.append(fixed_size(column, batch.column("id"), place) if field.type == VECTOR else column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def fixed_size(column: pa.Array, ids: pa.Array, place: str) -> pa.Array:
    """A column of vectors, some of which may be null, each of 1024 finite numbers."""
    is_null = np.asarray(column.is_null())
    vectors = np.zeros((len(column), EMBEDDING_SIZE), np.float32)
    try:
        vectors[~is_null] = vectors_of(column.drop_null())
    except ValueError:
        raise InvalidInput(f"{place}: has vectors of other than {EMBEDDING_SIZE} numbers") from None
    length = np.linalg.norm(vectors[~is_null], axis=1)
    bad = np.flatnonzero(~is_null)[~(np.isfinite(length) & (length > 0))]
    if bad.size:
        raise InvalidInput(
            f"{place}, id {ids[int(bad[0])].as_py()!r}: its vector is zero or not finite; embed the image anew"
        )
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=VECTOR, mask=pa.array(is_null))


def approximate(index: Index, among: Among, n_vectors: int, wanted: float) -> Approximation:
    """Make the IVF-PQ index of a column, and find out what the wanted recall takes."""
    from lancedb.index import IvfPq

    features = FEATURES[among]
    parts = max(1, n_vectors // PART_ROWS)
    started = time.perf_counter()
    with failing_at(index.uri):
        index.lance.create_index(
            features,
            config=IvfPq(
                distance_type="cosine",
                num_partitions=parts,
                num_sub_vectors=CODE_BYTES,
                max_iterations=ITERATIONS,
                sample_rate=SAMPLE_RATE,
            ),
        )
    seconds = time.perf_counter() - started
    queries, truth = exact_answers(index, features)

    def recall(probes: int, refined: int) -> float:
        return recall_of(partial(nearest, index, features, probes, refined), queries, truth)

    for refined in REFINEMENTS:
        if recall(parts, refined) >= (1 + wanted) / 2:
            break
    probes = 1
    while (found := recall(probes, refined)) < wanted and probes < parts:
        probes = min(2 * probes, parts)
    metadata = {PROBES_KEY: str(probes), REFINED_KEY: str(refined), RECALL_KEY: f"{found:.4f}"}
    with failing_at(index.uri):
        index.lance.update_field_metadata(
            {"path": features, "metadata": {key.decode(): value for key, value in metadata.items()}}
        )
    return Approximation(among, parts, probes, refined, found, seconds)


def nearest(index: Index, features: str, probes: int, refined: int, query: Vectors) -> list[int]:
    """Row ids by the IVF-PQ index, the query's own among them."""
    with failing_at(index.uri):
        search = index.query(query, features).nprobes(probes).refine_factor(refined).with_row_id(True)
        rows: list[int] = search.select([LANCE_DISTANCE]).limit(RECALL_K + 1).to_arrow()["_rowid"].to_pylist()
    return rows


def exact_answers(index: Index, features: str) -> tuple[Vectors, NDArray[np.int64]]:
    """A sample of vectors (n, 1024), and of each the row ids of the 11 nearest, itself among them (n, 11)."""
    with failing_at(index.uri):
        there = index.lance.search().where(f"{features} IS NOT NULL").select(["id"]).with_row_id(True)
        ids = there.limit(len(index)).to_arrow()["_rowid"].to_numpy()
        chosen = np.random.default_rng(0).choice(ids, min(SAMPLE, len(ids)), replace=False)
        sample = index.lance.take_row_ids(chosen.tolist()).select([features]).to_arrow()[features]
    queries = unit(vectors_of(sample))
    k = RECALL_K + 1
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1)
    for vectors, row_ids in row_batches(index, features):
        candidates = np.concatenate([scores, queries @ unit(vectors).T], axis=1)
        names = np.concatenate([rows, np.broadcast_to(row_ids, (len(queries), len(row_ids)))], axis=1)
        best = np.argpartition(-candidates, k - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(candidates, best, axis=1), np.take_along_axis(names, best, axis=1)
    return queries, rows


def row_batches(index: Index, features: str) -> Iterator[tuple[Vectors, NDArray[np.int64]]]:
    """All vectors and their row ids."""
    with failing_at(index.uri):
        search = index.lance.search().select([features]).with_row_id(True).limit(len(index))
        for batch in search.to_batches(BATCH_ROWS):
            there = batch.filter(batch.column(features).is_valid())
            yield vectors_of(there.column(features)), np.asarray(there.column("_rowid"))


def recall_of(search: Callable[[Vectors], list[int]], queries: Vectors, truth: NDArray[np.int64]) -> float:
    """Mean part of the nearest that a search finds, which does not count what it was asked for."""
    parts = []
    for query, rows in zip(queries, truth, strict=True):
        parts.append((len(set(search(query)) & set(rows.tolist())) - 1) / RECALL_K)
    return float(np.mean(parts))


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
