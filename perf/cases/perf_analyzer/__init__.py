"""How fast do the served models answer, by concurrency, over gRPC and HTTP, measured by Triton's own perf_analyzer?

One run for each model, protocol and concurrency, and from the server's own clock where the time went. The three windows
of a run are averaged: waiting for stable ones would not end in good time where a request takes seconds.
"""

import csv
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from medimage_server.launcher import run_triton
from perf import tables
from perf.cases.perf_analyzer.inputs import PUBLIC, STEPS_BEFORE, make_input
from perf.cases.perf_analyzer.outputs import read_runs
from perf.cases.perf_analyzer.tool import perf_analyzer
from perf.measure import QUICK_RESULTS, Report, quick_option
from perf.servers import exported_repository, repository_option

MODELS = (*PUBLIC, *STEPS_BEFORE)
RUNS = QUICK_RESULTS / "perf_analyzer"  # all that perf_analyzer prints and writes
IMAGE_SIZE = 512
WINDOWS = 3  # of a run
# of an ensemble inside an ensemble, which perf_analyzer does not find by itself
INNER_PARTS = "--bls-composing-models=text_tokenizer,text_encoder"


def urls(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for url in values:
        if not re.fullmatch(r"(grpc|http)://[^/]+:[0-9]+", url):
            raise click.BadParameter(f"{url}: expected grpc://HOST:PORT or http://HOST:PORT")
    return values


@click.command()
@quick_option
@repository_option
@click.option(
    "--url",
    "others",
    multiple=True,
    callback=urls,
    help="Another server to measure, grpc://HOST:PORT or http://HOST:PORT; once for each protocol.",
)
@click.option("--concurrency", "levels", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 8, 16, 32))
@click.option("--seconds", type=click.IntRange(1), default=10, show_default=True, help="Least time of each run.")
@click.argument("models", nargs=-1, type=click.Choice(MODELS))
def main(
    quick: bool,
    repository: Path | None,
    others: tuple[str, ...],
    levels: tuple[int, ...],
    seconds: int,
    models: tuple[str, ...],
) -> None:
    """Measure MODELS, or all five, of model_repository; with --quick two, of the phantom checkpoint.

    The server is one of its own without the cache of text vectors, because perf_analyzer sends the same texts again and
    again. Start another one, for --url, with --text-cache-mb 0.
    """
    models = models or MODELS
    if quick:
        models, levels, seconds = ("medimageinsight_image", "text_encoder"), (2,), 1
    report, analyzer = Report("perf_analyzer", quick=quick), perf_analyzer()
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    with ExitStack() as held:
        measured = list(others)
        if not measured:
            scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
            repository = exported_repository(repository, quick, scratch)
            server = held.enter_context(run_triton(repository, models=list(PUBLIC), log=RUNS / "triton.log"))
            measured = [server.url, f"http://127.0.0.1:{server.http_port}"]
        for model in models:
            (RUNS / model).mkdir()
            (RUNS / model / "input.json").write_text(json.dumps(make_input(model, measured[0], IMAGE_SIZE)))
            for url in measured:
                measure(analyzer, model, url, levels, seconds)
    report.put(other_server=bool(others), runs=read_runs(RUNS))
    print(tables.of("perf_analyzer", report.content))


def measure(analyzer: Sequence[str], model: str, url: str, levels: Sequence[int], seconds: int) -> None:
    """A run for each number of requests in flight, each as long as the one before lets expect."""
    folder = RUNS / model / url.partition(":")[0]
    analyze(analyzer, model, url, 1, folder / "first", "--request-count=3")  # warms up, and says how long one takes
    before = folder / "first"
    for concurrency in levels:
        requests = window(before / "report.csv", concurrency, seconds)
        print(f"{folder.relative_to(RUNS)}, concurrency {concurrency}: windows of {requests} requests")
        before = folder / str(concurrency)
        analyze(
            *(analyzer, model, url, concurrency, before, "--measurement-mode=count_windows"),
            *(f"--measurement-request-count={requests}", "--stability-percentage=999"),
        )


def window(report: Path, concurrency: int, seconds: float) -> int:
    """Requests of a window: as many as fill the time at the rate of the run before.

    And together twice those in flight, so that what is sent first, into an empty queue, weighs less; 12 where requests
    take long.
    """
    with report.open(newline="") as file:
        (row,) = csv.DictReader(file)
    rate = int(row["Concurrency"]) * 1e6 / float(row["Avg latency"])
    requests = max(rate * seconds, 2 * concurrency, 12)
    return int((requests + WINDOWS - 1) / WINDOWS)


def analyze(analyzer: Sequence[str], model: str, url: str, concurrency: int, folder: Path, *options: str) -> None:
    """One run; `folder` gets what it prints and its reports.

    Raises:
        ClickException: a request failed, or a measurement could not be made.
    """
    folder.mkdir(parents=True)
    protocol, _, address = url.partition("://")
    command = [*analyzer, "-m", model, "-u", address, "-i", protocol, "--async", "-f", "report.csv", "--verbose-csv"]
    command += [f"--input-data={RUNS / model / 'input.json'}", f"--concurrency-range={concurrency}", *options]
    if model in ("medimageinsight", "medimageinsight_text"):
        command.append(INNER_PARTS)
    # from within the folder, because reports of an ensemble's parts are named PART.FILE
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (folder / "printed.txt").write_text(done.stdout)
    if done.returncode:
        last = " ".join(done.stdout.strip().splitlines()[-3:])
        raise click.ClickException(f"perf_analyzer on {model}, {protocol}, concurrency {concurrency}: {last}")
