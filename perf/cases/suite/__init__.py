"""How fast is MedImageInsight as exported and served, against PyTorch and OpenVINO, and does it answer the same?

One run measures the baselines and ours side by side: both encoders alone, the whole path from a PNG to its vector at
four image sizes, and the accuracy of each precision on drawings. Speed is that of the published architecture with
random weights, right in size and without meaning; accuracy is that of the phantom checkpoint. Unit: milliseconds per
call, medians of alternating rounds.

Run: make perf (or perf-gpu)        Result: perf/results/suite-cpu.json, docs/latency.png
"""

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from medimage_export.errors import OpenVINOMissing
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model, random_model
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.openvino_session import check_bf16
from medimage_export.repository import copy_unexported
from perf import tables
from perf.cases.suite import accuracy, encoders, whole_path
from perf.cases.suite.baselines import ImageEncoder, eager, in_dtype
from perf.cases.suite.device import DEVICES, SHORT, Device, Precision, runtime_of, without_bf16
from perf.cases.suite.floor import IMAGE_GFLOP, matrix_rates
from perf.cases.suite.rounds import compare
from perf.cases.suite.sessions import check_present
from perf.measure import ROOT, Report, installed_version, quick_option
from perf.plots import latency_by_size
from perf.servers import MODEL_REPOSITORY, exported

PHANTOM = ROOT / "checkpoints" / "medimageinsight-phantom"

DECODE_ROUNDS = 10
MIN_COSINE = 0.9  # far below any precision: other weights


def _earlier_export(precision: Precision) -> Callable[[Callable], Callable]:
    return click.option(
        f"--repository-{precision}",
        precision,
        type=click.Path(path_type=Path, exists=True),
        help=f"An earlier {precision} export, to save the time.",
    )


@click.command()
@click.option("--device", "device_name", type=click.Choice(sorted(DEVICES)), default="cpu", show_default=True)
@quick_option
@_earlier_export("fp32")
@_earlier_export("fp16")
@_earlier_export("bf16")
@_earlier_export("int8")
def main(device_name: str, quick: bool, **earlier: Path | None) -> None:
    """Measure both encoders and the whole path, side by side with PyTorch.

    The repositories are exports with --random-weights, which are otherwise made first. With --quick: the phantom
    checkpoint in fp32, without torch.compile, one round, one size of image and few drawings.
    """
    device = DEVICES[device_name]
    check_present(device)
    repositories = {precision: path for precision, path in earlier.items() if path}
    for precision, path in repositories.items():
        check_export(path, precision)
    if "bf16" in device.precisions:
        try:
            check_bf16()
        except OpenVINOMissing as missing:
            print(f"without bf16: {missing}")
            device = without_bf16(device)
    if quick:
        device = replace(device, eager=device.eager[:1], precisions=("fp32",), accuracies=("fp32",))
        device = replace(device, encoder_rounds=1, path_rounds=1, with_compilation=False)
    report = Report(f"suite-{device.name}", quick=quick)
    weights = "phantom checkpoint" if quick else "random weights of the published size"
    report.put(machine={"device": device.name, "openvino": installed_version("openvino"), "weights": weights})
    with tempfile.TemporaryDirectory() as scratch:
        run(device, quick, repositories, report, Path(scratch))
    picture = report.path.with_name(device.plot) if quick else ROOT / "docs" / device.plot
    latency_by_size(report.content["whole_path"]).savefig(picture)
    print(tables.of("suite", report.content))


def check_export(repository: Path, precision: Precision) -> None:
    """Stop at a repository that holds something else than ONNX files of that precision."""
    found = exported(repository)
    if found["precision"] != precision:
        raise click.ClickException(f"--repository-{precision} holds an export of precision {found['precision']}")
    if found["format"] != "onnx":
        raise click.ClickException(
            f"--repository-{precision} holds an export of format {found['format']}: only onnx is measured"
        )


def run(device: Device, quick: bool, earlier: Mapping[Precision, Path], report: Report, scratch: Path) -> None:
    """Measure everything, the floor first."""
    report.put(floor=measure_floor(device))
    phantoms = exports(PHANTOM, device.accuracies, earlier if quick else {}, scratch / "phantom")
    phantom = load_model(find_checkpoint(PHANTOM))
    if quick:
        model, repositories = phantom, {precision: phantoms[precision] for precision in device.precisions}
        sizes, drawings = whole_path.SIZES[:1], (2, 1)
    else:
        model = random_model(MedImageInsightConfig())  # the seed of the export, so the very same weights
        repositories = exports(None, device.precisions, earlier, scratch / "random")
        sizes, drawings = whole_path.SIZES, (accuracy.NORMAL, accuracy.FINDING)
    measure_encoders(model, repositories, device, report, published_size=not quick)
    measure_whole_path(model, repositories, device, sizes, report, scratch)
    measure_accuracy(phantom, phantoms, device, drawings, report)


def exports(
    checkpoint: Path | None, precisions: Sequence[Precision], earlier: Mapping[Precision, Path], scratch: Path
) -> dict[Precision, Path]:
    """A model repository for each precision; `checkpoint=None` is random weights at full size."""
    repositories: dict[Precision, Path] = {}
    for precision in precisions:
        if precision in earlier:
            repositories[precision] = earlier[precision]
        else:
            scratch.mkdir(exist_ok=True)
            repositories[precision] = copy_unexported(MODEL_REPOSITORY, scratch / precision)
            export_medimageinsight(checkpoint, repositories[precision], precision=precision)
    return repositories


def measure_floor(device: Device) -> dict[str, dict[str, float]]:
    rates = matrix_rates(device)
    return {
        precision: {"gflop_per_s": rate, "image_ms": tables.floor_ms(IMAGE_GFLOP, rate)}
        for precision, rate in rates.items()
    }


def measure_encoders(
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
    report: Report,
    *,
    published_size: bool,
) -> None:
    for case in encoders.cases(model, repositories, device):
        timings = compare(case.calls, device.encoder_rounds)
        case.calls.clear()  # and with them the weights, before the next case's come
        check_same_weights(timings, case.name)
        measured = {
            "gflop": case.gflop if published_size else None,
            "runtimes": timings,
            "not_measured": case.not_measured,
        }
        report.put(encoders={case.name: measured})
        print(f"measured: {case.name}")
    gc.collect()


def check_same_weights(timings: Mapping[str, dict], case: str) -> None:
    """Stop at a repository that was exported from something else."""
    for runtime, timing in timings.items():
        if not timing["min_cosine"] >= MIN_COSINE:
            raise click.ClickException(
                f"{case}: {runtime} gives other vectors than the PyTorch model (cosine {timing['min_cosine']:.3f}); "
                "is its repository an export of the same weights?"
            )


def measure_whole_path(
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
    sizes: Sequence[tuple[int, int]],
    report: Report,
    scratch: Path,
) -> None:
    profile = whole_path.served_profile(next(iter(repositories.values())))
    dtype = device.eager[0]
    encode = eager(ImageEncoder(in_dtype(model, dtype, device.torch)).eval(), device.torch)
    reference = whole_path.reference_pipeline(encode, profile)
    with whole_path.served(repositories, device, scratch) as (through, embeds):
        cases: dict[str, dict] = {}
        for width, height in sizes:
            file = whole_path.film_file(width, height)
            calls = {f"PyTorch eager {SHORT[dtype]}": reference}
            calls |= {runtime_of(precision): embed for precision, embed in embeds.items()}
            timings = compare({name: partial(call, file) for name, call in calls.items()}, device.path_rounds)
            decoding = compare({"decode": lambda file=file: np.asarray(whole_path.decode(file))}, DECODE_ROUNDS)
            cases[f"{width} x {height}"] = {
                "png_bytes": len(file),
                "decode": decoding["decode"],
                "runtimes": timings,
            }
            print(f"measured: {width} x {height}")
            report.put(whole_path={"through": through, "profile": profile, "cases": cases})


def measure_accuracy(
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
    drawings: tuple[int, int],
    report: Report,
) -> None:
    test_set = accuracy.drawings(*drawings)
    candidates = accuracy.encoders(model, repositories, device)
    repository = next(iter(repositories.values()))
    report.put(
        accuracy={
            "drawings": len(test_set),
            "normal": drawings[0],
            "finding": drawings[1],
            "runtimes": accuracy.evaluate(candidates, test_set, repository, float(model.logit_scale)),
        }
    )
