"""How long do both encoders take at full size: PyTorch eager, ONNX Runtime, and through Triton?

The published architecture with random weights: right in size and speed. Each round runs the three side by side, so that
a noisy machine disturbs them alike. Unit: milliseconds per call, from pixels or token ids to vectors for PyTorch and
ONNX Runtime, from an encoded file or a text to vectors through Triton (decoding, tokenising and gRPC included).

Run: make perf        Result: perf/results/encoders.json, and the table on stdout
"""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from machine import machine, peak_memory
from PIL import Image

from medimage_client import MedImageInsight
from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.config import MedImageInsightConfig
from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.medimageinsight.graphs import ImageEncoderGraph, TextEncoderGraph
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.repository import copy_unexported
from medimage_server.image_preprocessing import ImagePreprocessor, Settings
from medimage_server.launcher import run_triton
from medimage_server.model_repository import read_configs
from medimage_server.text_tokenizer import TextTokenizer

ROOT = Path(__file__).parents[1]
RUNTIMES = ("PyTorch eager", "ONNX Runtime", "Triton gRPC")
ROUNDS = 5  # measured, after one that is not
TEXTS = 16
OUTPUT = ROOT / "perf" / "results" / "encoders.json"


@click.command()
@click.option("--repository", type=click.Path(path_type=Path, exists=True), help="An earlier --random-weights export.")
def main(repository: Path | None) -> None:
    """Measure both encoders at full size, side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        if repository is None:
            repository = copy_unexported(ROOT / "model_repository", Path(scratch) / "model_repository")
            export_medimageinsight(None, repository)
        with run_triton(repository, log=Path(scratch) / "triton.log") as server:
            with MedImageInsight(f"grpc://{server.host}:{server.grpc_port}", timeout=600) as client:
                results = [measure(name, calls) for name, calls in cases(repository, client)]
            peak_bytes = peak_memory(server.process.pid)
    report = {"machine": machine(), "rounds": ROUNDS, "triton_peak_bytes": peak_bytes, "results": results}
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


def cases(repository: Path, client: MedImageInsight) -> Iterator[tuple[str, tuple[Callable[[], np.ndarray], ...]]]:
    """What is measured: a name and one call for each of RUNTIMES, all three giving the same vectors."""
    model = random_model(MedImageInsightConfig())  # the seed of the export, so the very same weights
    buffer = io.BytesIO()
    Image.fromarray(phantom(CAPTIONS[0], seed=0, size=512).image).save(buffer, "PNG")
    png = buffer.getvalue()
    pixels = preprocessed(repository, png)
    yield (
        "image, batch 1",
        runtimes(
            ImageEncoderGraph(model).eval(), repository / "image_encoder", [pixels], lambda: client.embed_images([png])
        ),
    )
    tokenizer = TextTokenizer.from_file(repository / "text_tokenizer" / "1" / "tokenizer.json")
    for texts in (CAPTIONS[:1], CAPTIONS[:TEXTS]):
        ids, mask = tokenizer([text.encode() for text in texts])
        yield (
            f"text, batch {len(texts)}",
            runtimes(
                TextEncoderGraph(model).eval(),
                repository / "text_encoder",
                [ids, mask],
                lambda texts=texts: client.embed_texts(texts),
            ),
        )


def preprocessed(repository: Path, image: bytes) -> np.ndarray:
    """The pixels that the served preprocessing hands to the encoder, (1, 480, 480, 3) uint8."""
    parameters = read_configs(repository)["image_preprocessing"].parameters
    settings = Settings.read(
        {name: value.string_value for name, value in parameters.items()},
        repository / "image_preprocessing" / "1" / "preprocessing.json",
    )
    return ImagePreprocessor(settings)([image], {})


def runtimes(
    graph: torch.nn.Module, model: Path, inputs: list[np.ndarray], served: Callable[[], np.ndarray]
) -> tuple[Callable[[], np.ndarray], ...]:
    """One call that gives the vectors for each of RUNTIMES."""
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {tensor.name: array for tensor, array in zip(session.get_inputs(), inputs, strict=True)}
    tensors = [torch.from_numpy(array) for array in inputs]

    def eager() -> np.ndarray:
        with torch.inference_mode():
            return graph(*tensors)[0].numpy()

    return eager, lambda: session.run(None, feed)[0], served


def measure(case: str, calls: tuple[Callable[[], np.ndarray], ...]) -> dict[str, object]:
    """Median and spread of each runtime over alternating rounds, and the largest difference of its vectors."""
    vectors = [call() for call in calls]  # also the warm-up
    times_ms: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, times in zip(calls, times_ms, strict=True):
            started = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started))
    return {
        "case": case,
        "runtimes": {
            runtime: {
                "median_ms": statistics.median(times),
                "min_ms": min(times),
                "max_ms": max(times),
                "max_abs_difference": float(np.abs(found - vectors[0]).max()),
            }
            for runtime, times, found in zip(RUNTIMES, times_ms, vectors, strict=True)
        },
    }


def print_table(report: dict) -> None:
    about = report["machine"]
    print(f"\n{about['cpu']}, {about['cores']} cores; torch {about['torch']}, onnxruntime {about['onnxruntime']}; fp32")
    print(f"Triton's processes at their highest: {report['triton_peak_bytes'] / 1e9:.1f} GB\n")
    print(f"| {'case':<15} | {'runtime':<14} | median ms | min-max ms | PyTorch ÷ it | max diff |")
    print("|---|---|---:|---:|---:|---:|")
    for result in report["results"]:
        baseline_ms = result["runtimes"][RUNTIMES[0]]["median_ms"]
        for runtime, r in result["runtimes"].items():
            spread = f"{r['min_ms']:.0f}-{r['max_ms']:.0f}"
            print(
                f"| {result['case']:<15} | {runtime:<14} | {r['median_ms']:>9.0f} | {spread:>10} "
                f"| {baseline_ms / r['median_ms']:>12.2f} | {r['max_abs_difference']:.1e}  |"
            )


if __name__ == "__main__":
    main()
