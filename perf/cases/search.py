"""How large and how fast is a search index of 100,000 and of a million vectors, and how much does IVF-PQ find?

Unit: milliseconds of one search for the 10 nearest, one at a time, and searches a second of two threads; recall is the
part of the 10 nearest that IVF-PQ finds, of 200 of its vectors. Vectors are made: centres, and around each of them
vectors whose spread falls off over the dimensions as that of embeddings does. A million take 4 GB in the table and as
much in each index, in build/perf.
"""

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from medimage_analysis.index import Index
from medimage_analysis.indexing import Kind, build
from medimage_analysis.table import Model, Table, Vectors, to_column, write
from perf import tables
from perf.measure import QUICK_RESULTS, Report, quick_option

SIZES = (100_000, 1_000_000)
SHARD_ROWS = 20_000
CENTRES, SPREAD = 1000, 1.0  # how far from its centre a vector lies, of the centre's own length
MODALITIES = 20  # of which a condition asks for one
MODEL = Model("made", None, "fp32", "none", "file")
EXACT_QUERIES, APPROXIMATE_QUERIES = 10, 100
THREADS = 2
K = 10


@click.command()
@quick_option
@click.option("--size", "sizes", multiple=True, type=int, help="Vectors; may be repeated.  [default: 100000, 1000000]")
def main(quick: bool, sizes: tuple[int, ...]) -> None:
    """Make tables and indexes of random vectors, and search them."""
    report = Report("search", quick=quick)
    folder = QUICK_RESULTS / "search"
    runs = []
    for size in (5000,) if quick else sizes or SIZES:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for run in measure(folder, size):
                runs.append(run)
                report.put(runs=runs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(tables.of("search", report.content))


def measure(folder: Path, size: int) -> Iterator[dict[str, object]]:
    """A run for the exact index, and one for IVF-PQ."""
    for shard, rows in enumerate(shards(size)):
        write(folder / "table", rows, MODEL, shard=shard)
    table = Table.open(folder / "table")
    queries = next(drawn(APPROXIMATE_QUERIES, seed=1))
    kinds: tuple[Kind, ...] = ("exact", "ivf-pq")
    for kind in kinds:
        started = time.perf_counter()
        built = build(table, folder / "index", kind=kind, replace=True)
        seconds = time.perf_counter() - started
        index = Index.open(folder / "index")
        made = built.approximations[0] if built.approximations else None
        asked = queries[: EXACT_QUERIES if made is None else APPROXIMATE_QUERIES]
        yield {
            "vectors": size,
            "kind": kind,
            "copy_s": built.seconds,
            "index_s": None if made is None else made.seconds,
            "build_s": seconds,  # with the measurement of the recall
            "bytes": sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file()),
            "probes": None if made is None else made.probes,
            "parts": None if made is None else made.parts,
            "recall": 1.0 if made is None else made.recall,
            **one_at_a_time(lambda query, index=index: index.search(query, k=K), asked),
            "per_s_of_two": at_once(index, asked),
            "filtered_ms": one_at_a_time(
                lambda query, index=index: index.search(query, k=K, where="modality = 'M7'"), asked[:EXACT_QUERIES]
            )["median_ms"],
        }


def drawn(n: int, *, seed: int) -> Iterator[Vectors]:
    """Unit vectors (n, 1024) again and again, each time others, around the same centres."""
    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(1024) / 16)).astype(np.float32)
    centres = rng.standard_normal((CENTRES, 1024), np.float32) * scale
    rng = np.random.default_rng(seed)
    while True:
        around = centres[rng.integers(0, CENTRES, n)]
        vectors = around + SPREAD * scale * rng.standard_normal((n, 1024), np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shards(size: int) -> Iterator[pa.Table]:
    for start, vectors in zip(range(0, size, SHARD_ROWS), drawn(min(size, SHARD_ROWS), seed=0), strict=False):
        names = range(start, start + len(vectors))
        yield pa.table(
            {
                "id": [f"image-{n}" for n in names],
                "image_features": to_column(vectors),
                "modality": [f"M{n % MODALITIES}" for n in names],
            }
        )


def one_at_a_time(search: Callable[[Vectors], object], queries: Vectors) -> dict[str, float]:
    """Milliseconds, of queries after three that are not counted."""
    times_ms = []
    for query in np.concatenate([queries[:3], queries]):
        started = time.perf_counter()
        search(query)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return {"median_ms": statistics.median(times_ms[3:]), "max_ms": max(times_ms[3:])}


def at_once(index: Index, queries: Vectors) -> float:
    """Searches a second by two threads."""

    def ask(part: Vectors) -> None:
        for query in part:
            index.search(query, k=K)

    threads = [threading.Thread(target=ask, args=[queries[n::THREADS]]) for n in range(THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(queries) / (time.perf_counter() - started)
