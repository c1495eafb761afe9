"""`medimage export`: a checkpoint into the model repository."""

import resource
import signal
import sys
import time
from pathlib import Path

import click

from medimage_export.errors import ExportError


@click.group()
def export() -> None:
    """Export a checkpoint into the model repository."""


@export.command()
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Published folder (config.yaml, vision_model/, language_model/), or an MLflow package that holds it.",
)
@click.option("--random-weights", is_flag=True, help="Full size without a checkpoint, for benchmarks.")
@click.option("--repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="An image file to add to the parity check; may be repeated.",
)
def medimageinsight(checkpoint: Path | None, random_weights: bool, repository: Path, images: tuple[Path, ...]) -> None:
    """Export MedImageInsight as ONNX, and check it against PyTorch."""
    if (checkpoint is None) != random_weights:
        raise click.UsageError("give either --checkpoint DIR or --random-weights")
    # here, so that `medimage export --help` need not wait for torch
    from medimage_export.medimageinsight.export import export_medimageinsight

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: leaves the export's block, which cleans up
    started = time.monotonic()
    try:
        export_medimageinsight(checkpoint, repository, images=images)
    except (ExportError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    click.echo(f"exported to {repository} in {time.monotonic() - started:.0f} s, peak memory {peak_gb:.1f} GB")
