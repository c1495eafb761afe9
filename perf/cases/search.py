"""How large and how fast is a search index of 100,000 and of a million vectors, and how much does IVF-PQ find?

Unit: milliseconds of one search for the 10 nearest, by the clock and of processor time, which counts all threads and is
nearly the same on a busy machine; recall is the part of the 10 nearest that IVF-PQ finds, of 200 of its vectors.
Vectors are made: centres, and around each of them vectors whose spread falls off over the dimensions as that of
embeddings does. A million take 4 GB in the table and as much in the index, in build/perf.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import pyarrow as pa

from medimage_analysis.index import Index
from medimage_analysis.indexing import WANTED_RECALL, approximate, build
from medimage_analysis.table import Model, Table, Vectors, to_column, write
from perf import tables
from perf.measure import QUICK_RESULTS, Report, quick_option

Result = TypeVar("Result")

SIZES = (100_000, 1_000_000)
SHARD_ROWS = 20_000
CENTRES, SPREAD = 1000, 1.0  # how far from its centre a vector lies, of the centre's own length
MODALITIES = 20  # of which a condition asks for one
MODEL = Model("made", None, "fp32", "none", "file")
EXACT_QUERIES, APPROXIMATE_QUERIES = 7, 50
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
    """A run for the exact index, and one for IVF-PQ beside it."""
    for shard, rows in enumerate(shards(size)):
        write(folder / "table", rows, MODEL, shard=shard)
    built, spent = spending(lambda: build(Table.open(folder / "table"), folder / "index", kind="exact"))
    queries = next(drawn(APPROXIMATE_QUERIES, seed=1))
    yield {"vectors": size, "kind": "exact", "recall": 1.0, "build": spent, **searched(folder, queries[:EXACT_QUERIES])}
    index = Index.open(folder / "index")
    made, more = spending(lambda: approximate(index, "images", built.rows, WANTED_RECALL))
    yield {
        "vectors": size,
        "kind": "ivf-pq",
        "recall": made.recall,
        "probes": made.probes,
        "refined": made.refined,
        "parts": made.parts,
        "build": {name: spent[name] + more[name] for name in spent},  # the copy, the index, the recall
        **searched(folder, queries),
    }


def searched(folder: Path, queries: Vectors) -> dict[str, object]:
    index = Index.open(folder / "index")
    return {
        "bytes": sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file()),
        "search": one_at_a_time(lambda query: index.search(query, k=K), queries),
        "with_condition": one_at_a_time(lambda query: index.search(query, k=K, where="modality = 'M7'"), queries),
    }


def spending(call: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """What a call gives, and its seconds by the clock and of processor time."""
    started, started_cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, {"s": time.perf_counter() - started, "cpu_s": time.process_time() - started_cpu}


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
    """Medians in milliseconds, after a query that is not counted."""
    search(queries[0])
    spent = [spending(partial(search, query))[1] for query in queries]
    return {f"{name.removesuffix('s')}ms": 1e3 * statistics.median(one[name] for one in spent) for name in spent[0]}
