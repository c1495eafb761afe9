"""`medimage classify`: image files and labels to a table of probabilities."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from medimage_client.archive.slices import WhichSlices
from medimage_client.archive.sources import Sources
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.cli.options import (
    archive_options,
    dicom_window_option,
    image_paths,
    read_items,
    server_options,
    transfer_options,
)
from medimage_client.cli.progress import EmbeddedItems, embed_items
from medimage_client.cli.table import table
from medimage_client.constants import DEFAULT_TIMEOUT_S
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow


@click.command()
@image_paths(required=True)
@click.option("--label", "labels", multiple=True, help="A label; may be repeated.")
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File of labels, one per line, added after those of --label.",
)
@click.option("--template", default="{}", show_default=True, help="Text around each label, which replaces {}.")
@click.option("--multilabel", is_flag=True, help="Rate each label independently; otherwise each row sums to 1.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@dicom_window_option
@archive_options
@transfer_options
@server_options(timeout=DEFAULT_TIMEOUT_S)
def classify(
    paths: tuple[Path | str, ...],
    slices: WhichSlices | None,
    labels: tuple[str, ...],
    labels_file: Path | None,
    template: str,
    multilabel: bool,
    as_json: bool,
    sources: Sources,
    dicom_window: DicomWindow,
    resize: Resize,
    shared_memory: bool,
    url: str,
    api_key: str | None,
    timeout: float,
) -> None:
    """Zero-shot probabilities of labels for image files, folders, studies (zip, DICOMDIR, dicomweb+https://…) and NIfTI
    volumes.

    Labels follow the pattern that the model was trained on, modality anatomy view finding: "x-ray chest anteroposterior
    Pneumonia". A file that is not an image is skipped and reported, and the exit code is 1.
    """
    all_labels = [*labels, *read_labels(labels_file)]
    if not all_labels:
        raise click.UsageError("no labels; give --label or --labels")
    if "{}" not in template:
        raise click.BadParameter("has no {}, the place of the label", param_hint="--template")

    items = read_items(paths, sources, slices)

    async def classify_all() -> tuple[EmbeddedItems, NDArray[np.float32]]:
        async with AsyncMedImageInsight(url, api_key=api_key, timeout=timeout, shared_memory=shared_memory) as client:
            images = await embed_items(client, items, resize, dicom_window)
            return images, await client.classify(images.features, all_labels, template=template, multilabel=multilabel)

    images, scores = asyncio.run(classify_all())
    render = render_json if as_json else render_table
    click.echo(render(images.names, all_labels, scores))
    images.report_refused()


def read_labels(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8 text", param_hint="--labels") from error
    return [line.strip() for line in lines if line.strip()]


def render_json(names: Sequence[str], labels: Sequence[str], scores: NDArray[Any]) -> str:
    rows = zip(names, scores.tolist(), strict=True)
    return json.dumps([{"image": name, "scores": dict(zip(labels, row, strict=True))} for name, row in rows], indent=2)


def render_table(names: Sequence[str], labels: Sequence[str], scores: NDArray[Any]) -> str:
    """One line an image, one column a label; the best label of an image is marked with *."""
    best = scores.argmax(axis=1)
    cells = [
        [name, *(f"{score:.4f}{'*' if column == best[row] else ' '}" for column, score in enumerate(scores[row]))]
        for row, name in enumerate(names)
    ]
    return "\n".join(table(["image", *labels], cells))
