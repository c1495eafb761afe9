"""`medimage evaluate servers`: the table of the model card, of one's own images and servers."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np

from medimage_client.archive.slices import WhichSlices
from medimage_client.archive.sources import Sources
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.cli.label_options import bootstrap_option, label_options, truth_option
from medimage_client.cli.options import (
    archive_options,
    dicom_window_option,
    image_paths,
    key_option,
    read_items,
    timeout_option,
    transfer_options,
)
from medimage_client.cli.progress import Item, embed_items, name_of
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.images.encoding import ImageInput
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow
from medimage_client.labels.predictions import Predictions, check_labels, predictions_of, read_truth, truth_of
from medimage_client.labels.scores import Estimate, LabelScores, check_truth, evaluate
from medimage_client.wire.scoring import is_scoring_uri

COLUMNS = {"accuracy": "Accuracy", "balanced_accuracy": "BACC", "mauc": "mAUC"}  # of the card, by the names of scores
DEFAULT_RUNS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one server."""

    latencies_ms: list[float]  # of requests with one image, one after the other
    predictions: Predictions
    scores: LabelScores


def read_servers(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """URLs by the name of a server."""
    servers: dict[str, str] = {}
    for value in values:
        name, _, url = value.partition("=")
        if not name or not url:
            raise click.BadParameter(f"{value!r} is not NAME=URL, such as int8=grpc://localhost:8001")
        if name in servers:
            raise click.BadParameter(f"the name {name!r} is given twice")
        servers[name] = url
    return servers


@click.command()
@image_paths(required=True)
@click.option(
    "--server",
    "servers",
    multiple=True,
    required=True,
    metavar="NAME=URL",
    callback=read_servers,
    help="A server, such as int8=grpc://localhost:8001; may be repeated. The others are compared with the first.",
)
@label_options
@truth_option(required=True)
@bootstrap_option
@click.option(
    "--runs",
    default=DEFAULT_RUNS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests of one image, one after the other, of which the latency is the median.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@dicom_window_option
@archive_options
@transfer_options
@key_option("Key of scoring URIs")
@timeout_option(DEFAULT_TIMEOUT_S)
def servers(
    paths: tuple[Path | str, ...],
    slices: WhichSlices | None,
    servers: dict[str, str],
    prompts: dict[str, list[str]],
    truth: Path,
    samples: int,
    runs: int,
    as_json: bool,
    sources: Sources,
    dicom_window: DicomWindow,
    resize: Resize,
    shared_memory: bool,
    api_key: str | None,
    timeout: float,
) -> None:
    """Compare servers on images whose labels are known, such as one a precision: latency, accuracy, BACC and mAUC.

    The table is laid out as that of the MedImageInsight-onnx card. Speed-up is the reduction of the first server's
    latency. Servers are asked one after the other; on one machine, let only one have work at a time.
    """
    check_labels([*prompts])
    items = read_items(paths, sources, slices)
    true = truth_of([*map(name_of, items)], read_truth(truth, [*prompts]), truth)
    check_truth([*prompts], true, samples=samples)

    async def measure(url: str) -> Measured:
        key = api_key if is_scoring_uri(url) else None
        async with AsyncMedImageInsight(url, api_key=key, timeout=timeout, shared_memory=shared_memory) as client:
            images = await embed_items(client, items, resize, dicom_window)
            images.report_refused()  # which ends the command: servers are compared on the same images
            probabilities = await client.classify(images.features, prompts)
            found = predictions_of(images.names, [*prompts], probabilities)
            some = [await read_item(item, dicom_window) for item in items[:runs]]

            latencies_ms = []
            for run in range(runs):
                started = perf_counter()
                await client.embed_images([some[run % len(some)]], resize=resize, dicom_window=dicom_window)
                latencies_ms.append(1e3 * (perf_counter() - started))
        return Measured(latencies_ms, found, evaluate(found, true, samples=samples))

    async def read_item(item: Item, window: DicomWindow) -> ImageInput:
        return item if isinstance(item, Path) else await asyncio.to_thread(item.read, window)

    measured = {name: asyncio.run(measure(url)) for name, url in servers.items()}
    click.echo(json.dumps(as_object(measured), indent=2) if as_json else render(measured, runs=runs, samples=samples))


def changed_answers(found: Measured, first: Measured) -> int:
    return int((np.array(found.predictions.answers) != first.predictions.answers).sum())


def speed_up(found: Measured, first: Measured) -> float:
    """The part of the first one's latency that is saved."""
    return 1 - median(found.latencies_ms) / median(first.latencies_ms)


def render(measured: Mapping[str, Measured], *, runs: int, samples: int) -> str:
    first = next(iter(measured.values()))
    head = (
        f"{first.scores.n_images} images, {len(first.scores.labels)} labels; latency is the median of {runs} requests "
        "of one image, one after the other"
    )
    if samples:
        head += f"; in brackets 95 % intervals of {samples} bootstrap samples"
    rows = [
        [
            name,
            f"{median(found.latencies_ms):.1f}",
            "-" if found is first else f"{speed_up(found, first):.2%}",
            *(cell(found.scores.overall[score]) for score in COLUMNS),
            "-" if found is first else str(changed_answers(found, first)),
        ]
        for name, found in measured.items()
    ]
    columns = ["Model", "Latency (ms)", "Speed-up", *COLUMNS.values(), "Changed answers"]
    return "\n".join([head, "", *markdown(columns, rows)])


def cell(estimate: Estimate) -> str:
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f" ({100 * low:.2f} to {100 * high:.2f})"
    return f"{estimate.value:.2%}{interval}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sides: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(head) - 1)]

    def line(cells: Sequence[str]) -> str:
        padded = (side(text, width) for side, text, width in zip(sides, cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rules = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return [line(head), line(rules), *map(line, rows)]


def as_object(measured: Mapping[str, Measured]) -> dict[str, Any]:
    first = next(iter(measured.values()))
    return {
        name: {
            "latency_ms": median(found.latencies_ms),
            "latencies_ms": found.latencies_ms,
            "speed_up": speed_up(found, first),
            "changed_answers": changed_answers(found, first),
            **{score: asdict(estimate) for score, estimate in found.scores.overall.items()},
        }
        for name, found in measured.items()
    }
