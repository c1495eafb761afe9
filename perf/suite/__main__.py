"""How fast is MedImageInsight as exported and served, against PyTorch and OpenVINO, and does it answer the same?

One run measures the baselines and ours side by side: both encoders alone, the whole path from a PNG to its vector at
four image sizes, and the accuracy of each precision on drawings. Speed is that of the published architecture with
random weights, right in size and without meaning; accuracy is that of the phantom checkpoint. Unit: milliseconds per
call, medians of alternating rounds.

Run: make perf (or perf-gpu)        Result: perf/results/suite-cpu.json and .md, docs/latency.png
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
from perf.machine import exported
from perf.suite import accuracy, encoders, plots, tables, whole_path
from perf.suite.baselines import ImageEncoder, eager, in_dtype
from perf.suite.device import DEVICES, SHORT, Device, Precision, runtime_of, without_bf16
from perf.suite.floor import IMAGE_GFLOP, floor_ms, matrix_rates
from perf.suite.results import Results, about
from perf.suite.rounds import Timing, compare
from perf.suite.sessions import check_present

ROOT = Path(__file__).parents[2]
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
@click.option("--quick", is_flag=True, help="The phantom checkpoint, two rounds, few drawings; results in build/perf.")
@_earlier_export("fp32")
@_earlier_export("fp16")
@_earlier_export("bf16")
@_earlier_export("int8")
def main(device_name: str, quick: bool, **earlier: Path | None) -> None:
    """Measure both encoders and the whole path, side by side with PyTorch.

    The repositories are exports with --random-weights (with --quick, of the phantom checkpoint), which are otherwise
    made first.
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
    folder, pictures = ROOT / "perf" / "results", ROOT / "docs"
    if quick:
        device = replace(device, encoder_rounds=2, path_rounds=2)
        folder = pictures = ROOT / "build" / "perf"
    results = Results(folder / f"suite-{device.name}.json")
    weights = "phantom checkpoint" if quick else "random weights of the published size"
    results.put("about", **about(device), weights=weights)
    with tempfile.TemporaryDirectory() as scratch:
        run(device, quick, repositories, results, Path(scratch))
    content = results.content
    plots.latency_by_size(content["whole_path"]).savefig(pictures / device.plot)
    report = results.path.with_suffix(".md")
    report.write_text(tables.report(content))
    print(tables.card(content["whole_path"], content["accuracy"]))
    print(f"\n{report.relative_to(ROOT)} has all tables, {(pictures / device.plot).relative_to(ROOT)} the picture")


def check_export(repository: Path, precision: Precision) -> None:
    """Stop at a repository that holds something else than ONNX files of that precision."""
    found = exported(repository)
    if found["precision"] != precision:
        raise click.ClickException(f"--repository-{precision} holds an export of precision {found['precision']}")
    if found["format"] != "onnx":
        raise click.ClickException(
            f"--repository-{precision} holds an export of format {found['format']}: only onnx is measured"
        )


def run(device: Device, quick: bool, earlier: Mapping[Precision, Path], results: Results, scratch: Path) -> None:
    """Measure everything, the floor first."""
    results.put("floor", **measure_floor(device))
    print(f"\n{tables.about(results.content['about'])}\n\n{tables.floor(results.content['floor'])}", flush=True)
    phantoms = exports(PHANTOM, device.accuracies, earlier if quick else {}, scratch / "phantom")
    phantom = load_model(find_checkpoint(PHANTOM))
    if quick:
        model, repositories = phantom, {precision: phantoms[precision] for precision in device.precisions}
        sizes, drawings = whole_path.SIZES[:2], (2, 1)
    else:
        model = random_model(MedImageInsightConfig())  # the seed of the export, so the very same weights
        repositories = exports(None, device.precisions, earlier, scratch / "random")
        sizes, drawings = whole_path.SIZES, (accuracy.NORMAL, accuracy.FINDING)
    measure_encoders(model, repositories, device, results, published_size=not quick)
    measure_whole_path(model, repositories, device, sizes, results, scratch)
    measure_accuracy(phantom, phantoms, device, drawings, results)


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
            repositories[precision] = copy_unexported(ROOT / "model_repository", scratch / precision)
            export_medimageinsight(checkpoint, repositories[precision], precision=precision)
    return repositories


def measure_floor(device: Device) -> dict[str, dict[str, float]]:
    rates = matrix_rates(device)
    return {
        precision: {"gflop_per_s": rate, "image_ms": floor_ms(IMAGE_GFLOP, rate)} for precision, rate in rates.items()
    }


def measure_encoders(
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
    results: Results,
    *,
    published_size: bool,
) -> None:
    for case in encoders.cases(model, repositories, device):
        timings = compare(case.calls, device.encoder_rounds)
        case.calls.clear()  # and with them the weights, before the next case's come
        check_same_weights(timings, case.name)
        measured = {
            "gflop": case.gflop if published_size else None,
            "runtimes": {name: timing.as_json() for name, timing in timings.items()},
            "not_measured": case.not_measured,
        }
        results.put("encoders", **{case.name: measured})
    print(f"\n{tables.encoders(results.content['encoders'], results.content['floor'])}\n", flush=True)
    gc.collect()


def check_same_weights(timings: Mapping[str, Timing], case: str) -> None:
    """Stop at a repository that was exported from something else."""
    for runtime, timing in timings.items():
        if not timing.min_cosine >= MIN_COSINE:
            raise click.ClickException(
                f"{case}: {runtime} gives other vectors than the PyTorch model (cosine {timing.min_cosine:.3f}); "
                "is its repository an export of the same weights?"
            )


def measure_whole_path(
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
    sizes: Sequence[tuple[int, int]],
    results: Results,
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
                "decode": decoding["decode"].as_json(),
                "runtimes": {name: timing.as_json() for name, timing in timings.items()},
            }
            results.put("whole_path", through=through, profile=profile, cases=cases)
    print(f"{tables.whole_path(results.content['whole_path'])}\n", flush=True)


def measure_accuracy(
    model: UniCL,
    repositories: Mapping[Precision, Path],
    device: Device,
    drawings: tuple[int, int],
    results: Results,
) -> None:
    test_set = accuracy.drawings(*drawings)
    candidates = accuracy.encoders(model, repositories, device)
    repository = next(iter(repositories.values()))
    results.put(
        "accuracy",
        drawings=len(test_set),
        normal=drawings[0],
        finding=drawings[1],
        runtimes=accuracy.evaluate(candidates, test_set, repository, float(model.logit_scale)),
    )
    print(f"{tables.accuracy(results.content['accuracy'])}\n", flush=True)


if __name__ == "__main__":
    main()
