"""Does a bulk run keep Triton busy: images a second of `medimage embed --to` beside perf_analyzer's on the same server?

Both send the same PNG files over gRPC, in alternating rounds. perf_analyzer keeps a fixed number of images in flight,
and of several numbers the fastest counts; the bulk run goes by its own throttle. Both share the cores with the server.
"""

import asyncio
import json
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from medimage_analysis.bulk import How
from medimage_analysis.engine import Servers, embed_shards
from medimage_analysis.plan import Plan
from medimage_analysis.planned import Wanted, rows_of, schema_of
from medimage_analysis.served import served_model
from medimage_client.archive.sources import Sources
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_server.launcher import run_triton
from perf import tables
from perf.cases.perf_analyzer import IMAGE_SIZE, RUNS, analyze
from perf.cases.perf_analyzer.inputs import make_input
from perf.cases.perf_analyzer.outputs import read_csv
from perf.cases.perf_analyzer.tool import perf_analyzer
from perf.measure import Report, alternate, quick_option, wall_clock
from perf.pictures import png
from perf.servers import exported_repository, repository_option

MODEL = "medimageinsight_image"


@click.command()
@quick_option
@repository_option
@click.option("--concurrency", "levels", type=click.IntRange(1), multiple=True, default=(8, 16, 32))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--images", type=click.IntRange(1), default=400, show_default=True, help="Of each run in a round.")
@click.option("--shard-size", type=click.IntRange(1), default=100, show_default=True)
def main(
    quick: bool, repository: Path | None, levels: tuple[int, ...], rounds: int, images: int, shard_size: int
) -> None:
    """Measure on model_repository, or another; --quick on the phantom checkpoint, and little."""
    if quick:
        levels, rounds, images, shard_size = (4,), 1, 24, 8
    report, analyzer = Report("bulk", quick=quick), perf_analyzer()
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        server = held.enter_context(
            run_triton(exported_repository(repository, quick, scratch), models=[MODEL], log=scratch / "triton.log")
        )
        shutil.rmtree(RUNS / MODEL, ignore_errors=True)
        (RUNS / MODEL).mkdir(parents=True)
        (RUNS / MODEL / "input.json").write_text(json.dumps(make_input(MODEL, server.url, IMAGE_SIZE)))
        folder = scratch / "images"
        write_images(folder, images)
        calls = {f"perf_analyzer, {n}": partial(analyzed, analyzer, server.url, n, images) for n in levels}
        calls["bulk run"] = partial(embedded, folder, server.url, shard_size, scratch)
        calls["bulk run"]()  # the encoder's first batches of each size
        rates = alternate(calls, rounds)
    report.put(rounds=rounds, images=images, shard_size=shard_size, per_second=rates)
    print(tables.of("bulk", report.content))


def write_images(folder: Path, n: int) -> None:
    """The files that perf_analyzer sends, again and again."""
    folder.mkdir()
    files = [png(phantom(caption, seed=0, size=IMAGE_SIZE).image) for caption in CAPTIONS]
    for i in range(n):
        (folder / f"{i:06d}.png").write_bytes(files[i % len(files)])


def analyzed(analyzer: list[str], url: str, concurrency: int, n_images: int) -> float:
    """Images a second."""
    with tempfile.TemporaryDirectory(dir=RUNS / MODEL) as folder:
        # below RUNS, where the model's input lies
        run = Path(folder) / str(concurrency)
        analyze(analyzer, MODEL, url, concurrency, run, f"--request-count={max(n_images, 2 * concurrency)}")
        return float(read_csv(run / "report.csv")["Inferences/Second"])


def embedded(folder: Path, url: str, shard_size: int, scratch: Path) -> float:
    """Images a second of a run and its writing, of the last three quarters: in the first the throttle opens."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        how, wanted, archives = How(), Wanted(), Sources()
        rows = rows_of([folder], archives, wanted, print)
        model = asyncio.run(served_model(url, how.dicom_window))
        plan = Plan.make(
            Path(place) / "table", rows, schema_of([folder], wanted), shard_size=shard_size, model=model, settings={}
        )
        servers = Servers(urls=[url], timeout=120.0, shared_memory=False)
        times: list[float] = []  # of each row

        def report(n_embedded: int, n_failed: int) -> None:
            times.extend([wall_clock()] * (n_embedded + n_failed))

        asyncio.run(embed_shards(plan, range(plan.n_shards), servers, archives, how, report=report, tell=print))
        assert len(plan.done()) == plan.n_shards and not plan.failed()
        first = len(times) // 4
        return (len(times) - first) / (wall_clock() - times[first - 1])
