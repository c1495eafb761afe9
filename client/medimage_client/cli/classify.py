"""`medimage classify`: image files and labels to a table of probabilities, and to scores where the truth is known."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray

from medimage_client.archive.slices import WhichSlices
from medimage_client.archive.sources import Sources
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.cli.evaluate_classification import render as render_scores
from medimage_client.cli.label_options import bootstrap_option, label_options, truth_option
from medimage_client.cli.options import (
    archive_options,
    dicom_window_option,
    image_paths,
    read_items,
    server_options,
    transfer_options,
)
from medimage_client.cli.output_file import check_place, write_files
from medimage_client.cli.progress import EmbeddedItems, embed_items, name_of
from medimage_client.cli.table import table
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow
from medimage_client.labels.predictions import (
    check_labels,
    check_suffix,
    predictions_of,
    read_truth,
    render_predictions,
    truth_of,
)
from medimage_client.labels.scores import check_truth, evaluate
from medimage_client.schema.heads import HeadScores
from medimage_client.wire.scoring import is_scoring_uri


@click.command()
@image_paths(required=True)
@label_options
@click.option(
    "--head",
    "heads",
    multiple=True,
    help="Ask this head, which `medimage export head` put beside the encoder, instead of labels; may be repeated: one "
    "run of the encoder serves all.",
)
@click.option("--multilabel", is_flag=True, help="Rate each label independently; otherwise each row sums to 1.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=lambda ctx, parameter, path: path and check_output(path),
    help="File to write instead of the table: .csv or .parquet, with the columns id, predicted and one for each label.",
)
@truth_option(required=False)
@bootstrap_option
@dicom_window_option
@archive_options
@transfer_options
@server_options(timeout=DEFAULT_TIMEOUT_S)
def classify(
    paths: tuple[Path | str, ...],
    slices: WhichSlices | None,
    prompts: dict[str, list[str]],
    heads: tuple[str, ...],
    multilabel: bool,
    as_json: bool,
    output: Path | None,
    truth: Path | None,
    samples: int,
    sources: Sources,
    dicom_window: DicomWindow,
    resize: Resize,
    shared_memory: bool,
    url: str,
    api_key: str | None,
    timeout: float,
) -> None:
    """Zero-shot probabilities of labels for image files, folders, studies (zip, DICOMDIR, dicomweb+https://…) and NIfTI
    volumes; or with --head the scores of a trained head.

    Labels follow the pattern that the model was trained on, modality anatomy view finding: "x-ray chest anteroposterior
    Pneumonia". A file that is not an image is skipped and reported, and the exit code is 1.
    """
    if as_json and output and not truth:
        raise click.UsageError("--output takes the place of what --json prints; leave one of them out")
    check_heads(heads, multilabel=multilabel, one_table=bool(output or truth), url=url)
    items = read_items(paths, sources, slices)
    if output or truth:
        check_labels([*prompts])
    if truth and not heads:  # before the work
        known = read_truth(truth, [*prompts])
        check_truth([*prompts], truth_of([*map(name_of, items)], known, truth), samples=samples)

    async def classify_all() -> tuple[EmbeddedItems, dict[str, HeadScores]]:
        async with AsyncMedImageInsight(url, api_key=api_key, timeout=timeout, shared_memory=shared_memory) as client:
            images = await embed_items(client, items, resize, dicom_window)
            if heads:
                return images, await client.classify(images.features, head=[*heads])
            scores = await client.classify(images.features, prompts, multilabel=multilabel)
            return images, {"": HeadScores([*prompts], scores)}

    images, by_head = asyncio.run(classify_all())
    found = next(iter(by_head.values()))
    if truth and heads:
        known = read_truth(truth, found.labels)
    predictions = predictions_of(images.names, found.labels, found.scores)
    if output:
        write_files({output: render_predictions(output, predictions)})
    if truth:
        true = truth_of(images.names, known, truth)
        evaluated = evaluate(predictions, true, samples=samples)
        click.echo(render_scores(evaluated, samples=samples, left_out=len(known) - len(true), as_json=as_json))
    elif not output:
        click.echo(render_heads(images.names, by_head, as_json=as_json))
    images.report_refused()


def check_heads(heads: Sequence[str], *, multilabel: bool, one_table: bool, url: str) -> None:
    if heads and multilabel:
        raise click.UsageError("--multilabel is not for --head, which was trained with or without it")
    if len(heads) > 1 and one_table:
        raise click.UsageError("--output and --truth take one --head; give the command for each of them")
    if heads and is_scoring_uri(url):
        raise click.UsageError("--head takes the url of a Triton server; a scoring URI answers at /HEAD/score")


def check_output(path: Path) -> Path:
    """Refuse before the work what could not be written after it."""
    check_suffix(path)
    check_place(path)
    return path


def render_heads(names: Sequence[str], by_head: Mapping[str, HeadScores], *, as_json: bool) -> str:
    """The scores of one head, or of labels, as they are; those of several under the names of the heads."""
    if as_json:
        rows = {head: rows_of(names, found.labels, found.scores) for head, found in by_head.items()}
        return json.dumps(rows if len(rows) > 1 else next(iter(rows.values())), indent=2)
    texts = {head: render_table(names, found.labels, found.scores) for head, found in by_head.items()}
    return "\n\n".join(f"{head}\n{text}" if len(texts) > 1 else text for head, text in texts.items())


def render_json(names: Sequence[str], labels: Sequence[str], scores: NDArray[Any]) -> str:
    return json.dumps(rows_of(names, labels, scores), indent=2)


def rows_of(names: Sequence[str], labels: Sequence[str], scores: NDArray[Any]) -> list[dict[str, Any]]:
    rows = zip(names, scores.tolist(), strict=True)
    return [{"image": name, "scores": dict(zip(labels, row, strict=True))} for name, row in rows]


def render_table(names: Sequence[str], labels: Sequence[str], scores: NDArray[Any]) -> str:
    """One line an image, one column a label; the best label of an image is marked with *."""
    best = scores.argmax(axis=1)
    cells = [
        [name, *(f"{score:.4f}{'*' if column == best[row] else ' '}" for column, score in enumerate(scores[row]))]
        for row, name in enumerate(names)
    ]
    return "\n".join(table(["image", *labels], cells))
