"""How does cost grow: time and memory by batch size, rate and latency by requests in flight, start, and memory at rest?

Both towers. By batch size, the bare ONNX Runtime session, each in a process of its own, so that its memory peak is its
alone. By requests in flight, the public ensembles through `medimage serve` over gRPC, from an encoded file or a text to
the vector, without the cache of text vectors. The time of each point is bounded; how often it was measured stands
beside it. The picture of the docs is drawn, too.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image

from medimage_client import MedImageInsight
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_server.model_repository import read_configs
from medimage_server.text_tokenizer import TextTokenizer
from perf import tables
from perf.load import TritonRequest, triton_load
from perf.measure import ROOT, Report, Timed, quick_option, timed
from perf.memory import children, memory, peak_memory
from perf.pictures import png
from perf.plots import growth
from perf.servers import exported_for_onnxruntime, exported_repository, repository_option

REPEATS = 20  # at most, of a batch size
LATER = 10  # answers after the first, that it is compared with


class Effort(NamedTuple):
    """What is measured, and how long."""

    sizes: tuple[int, ...]  # of batches, and requests in flight
    seconds: int  # of each, unless one repeat takes longer
    starts: int


FULL = Effort(sizes=(1, 2, 4, 8, 16, 32), seconds=4, starts=3)
QUICK = Effort(sizes=(1, 4), seconds=2, starts=1)


@click.command()
@quick_option
@repository_option
def main(quick: bool, repository: Path | None) -> None:
    """Measure both towers of model_repository; with --quick, of the phantom checkpoint."""
    effort, report = QUICK if quick else FULL, Report("scaling", quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        repository = exported_repository(repository, quick, scratch)
        report.put(exported=exported_for_onnxruntime(repository), effort=effort._asdict())
        report.put(batches=list(batches(repository, effort, scratch)))
        report.put(serving=serving(repository, effort))
    print(tables.of("scaling", report.content))
    growth(report.content).savefig(report.path.with_suffix(".png") if quick else ROOT / "docs" / "scaling.png")


def batches(repository: Path, effort: Effort, scratch: Path) -> Iterator[dict[str, object]]:
    """Time and memory of the bare session by batch size, for both towers."""
    file = scratch / "inputs.npz"
    for tower, inputs in encoder_inputs(repository, max(effort.sizes)).items():
        for size in effort.sizes:
            np.savez(file, **{name: values[:size] for name, values in inputs.items()})
            model = repository / f"{tower}_encoder" / "1" / "model.onnx"
            command = [sys.executable, "-m", "perf.sessions", str(model), str(file), str(effort.seconds), str(REPEATS)]
            answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
            measured = json.loads(answer.stdout)
            times_ms = [1e3 * seconds for seconds in measured.pop("times_s")]
            spread = Timed(None, measured["load_s"], times_ms).spread()
            yield {"tower": tower, "batch": size, "repeats": len(times_ms), **spread, **measured}


def encoder_inputs(repository: Path, rows: int) -> dict[str, dict[str, np.ndarray]]:
    """What the encoders take, by tower: pixels of phantoms, and their captions as token ids."""
    captions = list(islice(cycle(CAPTIONS), rows))
    height, width, _ = read_configs(repository)[0]["image_encoder"].input[0].dims
    drawings = [Image.fromarray(phantom(caption, seed=0).image).convert("RGB") for caption in captions]
    pixels = np.stack([np.asarray(drawing.resize((width, height))) for drawing in drawings])
    tokenizer = TextTokenizer.from_file(repository / "text_tokenizer" / "1" / "tokenizer.json")
    ids, mask = tokenizer([caption.encode() for caption in captions])
    return {"image": {"pixels": pixels}, "text": {"input_ids": ids, "attention_mask": mask}}


def serving(repository: Path, effort: Effort) -> dict[str, object]:
    """Start, memory and rate of a Triton over the repository."""
    starts = []
    for _ in range(effort.starts):
        with serve(repository) as (triton, url, ready_s):
            starts.append({"ready_s": ready_s, **first_answers(url)})
            if len(starts) < effort.starts:
                continue
            at_rest = memory(triton)._asdict()
            loads = [row for tower, rows in requests().items() for row in by_concurrency(url, tower, rows, effort)]
            after_load = {**memory(triton)._asdict(), "peak": peak_memory(triton)}
    return {"starts": starts, "memory_at_rest": at_rest, "memory_after_load": after_load, "loads": loads}


@contextmanager
def serve(repository: Path) -> Iterator[tuple[int, str, float]]:
    """`medimage serve` as a user starts it: Triton's process id, its url, and the seconds until it was ready."""
    command = [Path(sys.executable).with_name("medimage"), "serve", "--repository", repository, "--text-cache-mb=0"]
    command += [f"--{port}-port=0" for port in ("http", "grpc", "metrics")]
    command += ["--models=medimageinsight", "--models=medimageinsight_image", "--models=medimageinsight_text"]
    with tempfile.TemporaryFile() as log:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            line = next((line for line in process.stdout if line.startswith("ready:")), None)
            if line is None:
                log.seek(0)
                raise click.ClickException(log.read().decode().strip().rpartition("\n")[2])
            ready_s = time.perf_counter() - begun
            (triton,) = children(process.pid)
            yield triton, line.split()[1], ready_s
        finally:
            process.terminate()
            process.wait()


def images() -> list[bytes]:
    return [png(phantom(caption, seed=0, size=512).image) for caption in CAPTIONS]


def first_answers(url: str) -> dict[str, float]:
    """Seconds of the first answer of each tower, and the median of later ones."""
    seconds = {}
    with MedImageInsight(url, timeout=600) as client:
        for tower, ask, values in (("image", client.embed_images, images()), ("text", client.embed_texts, CAPTIONS)):
            first, *later = [timed(lambda value=value, ask=ask: ask([value]))[1] for value in values[: 1 + LATER]]
            seconds |= {f"first_{tower}_s": first, f"later_{tower}_s": statistics.median(later)}
    return seconds


def requests() -> Mapping[str, list[TritonRequest]]:
    """Requests of one row to each tower."""
    values = {"image": images(), "text": [caption.encode() for caption in CAPTIONS]}
    return {
        tower: [
            {"model": f"medimageinsight_{tower}", "inputs": {tower: np.array([[row]], np.object_)}, "expected": {}}
            for row in rows
        ]
        for tower, rows in values.items()
    }


def by_concurrency(url: str, tower: str, rows: list[TritonRequest], effort: Effort) -> Iterator[dict[str, object]]:
    """Rate and latencies for each number of requests in flight."""
    for concurrency in effort.sizes:
        load = triton_load(url, rows, callers=concurrency, seconds=effort.seconds)
        yield {
            "tower": tower,
            "concurrency": concurrency,
            "requests": len(load.latencies_ms),
            "per_second": load.rate,
            **{f"p{percent}_ms": load.percentile_ms(percent) for percent in (50, 90, 99)},
        }
