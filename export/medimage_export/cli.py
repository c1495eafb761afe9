"""`medimage export`: a checkpoint into the model repository."""

import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from medimage_export.errors import ExportError, OpenVINOMissing
from medimage_install.places import repository_option

if TYPE_CHECKING:
    from medimage_export.cxrreportgen.decoder_graph import Precision as ReportPrecision
    from medimage_export.medimageinsight.encoder_writer import Precision
    from medimage_export.served_config import Format

F = TypeVar("F", bound=Callable[..., Any])


into_repository = repository_option("The model repository. One that is not there yet is made, as by `medimage init`.")


@click.group()
def export() -> None:
    """Export a checkpoint into the model repository."""


@click.command()
@repository_option("Folder to write into.")
def init(repository: Path) -> None:
    """Make a model repository, or bring one of an earlier version up to date.

    Writes configs and adapters, which `medimage export` completes with a checkpoint. Says what it changed. What was
    exported, and every file that this command did not write or that was edited since, stays as it is.
    """
    from medimage_export.initial_repository import init_repository, summary

    try:
        click.echo("\n".join(summary(repository, init_repository(repository))))
    except (ExportError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


@export.command()
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Published folder (config.yaml, vision_model/, language_model/), or an MLflow package that contains it.",
)
@click.option("--random-weights", is_flag=True, help="Full size without a checkpoint, for benchmarks.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 is for GPUs, int8 for CPUs, bf16 for CPUs with bf16 instructions (without them, fp32 with a message).",
)
@click.option(
    "--format",
    type=click.Choice(["onnx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="tensorrt builds plans for the GPU of this machine.",
)
@into_repository
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Image file to add to the parity check; may be repeated.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a dozen typical images: int8 takes its ranges from them instead of from drawings.",
)
def medimageinsight(
    checkpoint: Path | None,
    random_weights: bool,
    precision: "Precision",
    format: "Format",
    repository: Path,
    images: tuple[Path, ...],
    calibration: Path | None,
) -> None:
    """Export MedImageInsight, and check it against PyTorch."""
    # here and below, so that `medimage export --help` need not wait for torch
    from medimage_export.cpu import faster_precisions
    from medimage_export.medimageinsight.export import export_medimageinsight
    from medimage_export.openvino_session import check_bf16

    advice = faster_precisions() if (precision, format) == ("fp32", "onnx") else ""
    if precision == "bf16" and format == "onnx":
        try:
            check_bf16()
        except OpenVINOMissing as missing:
            click.echo(f"{missing}: exporting fp32", err=True)
            precision = "fp32"
    with running(checkpoint, random_weights, repository):
        files = sorted(file for file in calibration.iterdir() if file.is_file()) if calibration else []
        if calibration and not files:
            raise click.UsageError(f"--calibration {calibration} holds no files")
        export_medimageinsight(
            checkpoint, repository, precision=precision, format=format, images=images, calibration=files
        )
        if advice:
            click.echo(advice)


@export.command()
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Hugging Face folder of MAIRA-2 or of a CXRReportGen (config.json, tokenizer.json, safetensors), or an MLflow "
    "package that contains it.",
)
@click.option("--random-weights", is_flag=True, help="CXRReportGen's size without a checkpoint, for benchmarks.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int4"]),
    default="fp32",
    show_default=True,
    help="fp16 is for GPUs. int4 keeps the decoder's weights in 4 bits, for CPUs.",
)
@into_repository
def cxrreportgen(checkpoint: Path | None, random_weights: bool, precision: "ReportPrecision", repository: Path) -> None:
    """Export CXRReportGen or MAIRA-2 as ONNX, and check it against transformers."""
    from medimage_export.cxrreportgen.export import export_cxrreportgen

    with running(checkpoint, random_weights, repository):
        export_cxrreportgen(checkpoint, repository, precision=precision, progress=show_progress)


@export.command()
@click.argument("head", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", required=True, help="Of the model, as cxr_findings; one of an earlier head is replaced.")
@into_repository
@click.option("--force", is_flag=True, help="Also if the head's vectors are of another encoder than the exported one.")
def head(head: Path, name: str, repository: Path, force: bool) -> None:
    """Export HEAD, which `medimage head train` wrote, behind the exported image encoder, and check it against PyTorch.

    Makes the models NAME, of images, and NAME_head, of vectors.
    """
    from medimage_export.heads.export import export_head

    with exporting(repository):
        export_head(head, repository, name, force=force, warn=lambda line: click.echo(f"Warning: {line}", err=True))


@contextmanager
def running(checkpoint: Path | None, random_weights: bool, repository: Path) -> Iterator[None]:
    """What the export of a checkpoint does around its work."""
    if (checkpoint is None) != random_weights:
        raise click.UsageError("give either --checkpoint DIR or --random-weights")
    with exporting(repository):
        yield


@contextmanager
def exporting(repository: Path) -> Iterator[None]:
    """One line for an error, and time and peak memory at the end."""
    from medimage_export.initial_repository import init_repository, is_empty, summary

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: leaves the export's block, which cleans up
    started = time.monotonic()
    try:
        if not repository.is_dir() or is_empty(repository):
            for line in summary(repository, init_repository(repository)):
                click.echo(line)
        yield
    except (ExportError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    click.echo(f"exported to {repository} in {time.monotonic() - started:.0f} s, peak memory {peak_gb:.1f} GB")


def show_progress(line: str) -> None:
    """A line on standard error, which on a terminal takes the place of the one before."""
    terminal = sys.stderr.isatty()
    click.echo(f"\r\033[K{line}" if terminal else line, err=True, nl=not terminal)
