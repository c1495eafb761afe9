"""How does cost grow: time and memory by batch size, rate and latency by requests in flight, start, and memory at rest?

Both towers. By batch size, the bare ONNX Runtime session, each in a process of its own, so that its memory peak is its
alone. By requests in flight, the public ensembles through `medimage serve` over gRPC, from an encoded file or a text to
the vector. The time of each point is bounded; how often it was measured stands beside it.

Run: make perf-scaling     Result: perf/results/scaling.json, docs/scaling.png, and the tables on stdout
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from perf.load import Load, requests_for, run_load
from perf.machine import children, exported_for_onnxruntime, machine, memory, peak_memory
from perf.pictures import png
from perf.scaling_plots import plot
from perf.timing import spread

ROOT = Path(__file__).parents[1]
SIZES = (1, 2, 4, 8, 16, 32)  # of batches, and requests in flight
REPEATS = 20  # at most, of a batch size
LATER = 10  # answers after the first, that it is compared with
START_LIMIT_S = 600


class Effort(NamedTuple):
    """How long each point is measured."""

    seconds: float  # at most, unless one repeat takes longer
    rounds: float  # requests for each in flight, at least
    starts: int


FULL = Effort(seconds=4, rounds=1.25, starts=3)  # about six minutes where an image takes 1.3 s
QUICK = Effort(seconds=1, rounds=1, starts=1)


@click.command()
@click.option(
    "--repository",
    type=click.Path(path_type=Path, exists=True),
    default=ROOT / "model_repository",
    help="After `medimage export medimageinsight`.  [default: model_repository]",
)
@click.option("--quick", is_flag=True, help="Fewer repeats.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "perf" / "results" / "scaling.json")
@click.option("--plot", "picture", type=click.Path(path_type=Path), default=ROOT / "docs" / "scaling.png")
def main(repository: Path, quick: bool, output: Path, picture: Path) -> None:
    """Measure both towers of an exported repository."""
    effort = QUICK if quick else FULL
    weights = exported_for_onnxruntime(repository)
    report: dict = {"machine": machine(), "exported": weights, "effort": effort._asdict()}
    for name, measure in (("batches", batches), ("serving", serving)):
        report[name] = measure(repository, effort)
        output.write_text(json.dumps(report, indent=2) + "\n")  # at once, should the rest fail
    print_tables(report)
    plot(report, picture)


def batches(repository: Path, effort: Effort) -> list[dict[str, object]]:
    """Time and memory of the bare session by batch size, for both towers."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for tower, inputs in encoder_inputs(repository, max(SIZES)).items():
            for size in SIZES:
                file = Path(scratch) / "inputs.npz"
                np.savez(file, **{name: values[:size] for name, values in inputs.items()})
                model = repository / f"{tower}_encoder" / "1" / "model.onnx"
                command = [sys.executable, Path(__file__).with_name("session_process.py"), model, file]
                answer = subprocess.run(
                    [*map(str, command), str(effort.seconds), str(REPEATS)], check=True, stdout=subprocess.PIPE
                )
                measured = json.loads(answer.stdout)
                times_ms = [1e3 * seconds for seconds in measured.pop("times_s")]
                results.append(
                    {"tower": tower, "batch": size, "repeats": len(times_ms), **spread(times_ms), **measured}
                )
    return results


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
    starts = [start for _ in range(effort.starts - 1) for start in [started(repository)]]
    with (
        serve(repository) as (triton, url, ready_s),
        MedImageInsight(url, timeout=600, concurrency=max(SIZES)) as client,
    ):
        at_rest = memory(triton)._asdict()
        starts.append({"ready_s": ready_s, **first_answers(client)})
        loads = [row for tower, call in calls(client).items() for row in by_concurrency(tower, call, effort)]
        after_load = {**memory(triton)._asdict(), "peak": peak_memory(triton)}
    return {"starts": starts, "memory_at_rest": at_rest, "memory_after_load": after_load, "loads": loads}


def started(repository: Path) -> dict[str, float]:
    """Seconds until a new server is ready, and of its first answers."""
    with serve(repository) as (_, url, ready_s), MedImageInsight(url, timeout=600) as client:
        return {"ready_s": ready_s, **first_answers(client)}


@contextmanager
def serve(repository: Path) -> Iterator[tuple[int, str, float]]:
    """`medimage serve` as a user starts it: Triton's process id, its url, and the seconds until it was ready."""
    command = [Path(sys.executable).with_name("medimage"), "serve", "--repository", repository]
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


def first_answers(client: MedImageInsight) -> dict[str, float]:
    """Seconds of the first answer of each tower, and the median of later ones."""
    seconds = {}
    for tower, call in calls(client).items():
        first, *later = run_load(call, concurrency=1, requests=1 + LATER).latencies_s
        seconds |= {f"first_{tower}_s": first, f"later_{tower}_s": statistics.median(later)}
    return seconds


def calls(client: MedImageInsight) -> dict[str, Callable[[int], object]]:
    """One request of each tower by its number; no text comes twice, so no cache can answer."""
    images = [png(phantom(caption, seed=0, size=512).image) for caption in CAPTIONS]
    series = time.time_ns()
    return {
        "image": lambda number: client.embed_images([images[number % len(images)]]),
        "text": lambda number: client.embed_texts([f"{CAPTIONS[number % len(CAPTIONS)]} {series}-{number}"]),
    }


def by_concurrency(tower: str, call: Callable[[int], object], effort: Effort) -> Iterator[dict[str, object]]:
    """Rate and latencies for each number of requests in flight."""
    load: Load = run_load(call, concurrency=1, requests=3)  # not reported: says how many requests fill the time
    sent = 0
    for concurrency in SIZES:
        requests = requests_for(effort.seconds, rate=load.rate, concurrency=concurrency, rounds=effort.rounds)
        offset, sent = sent, sent + requests
        load = run_load(lambda number, offset=offset: call(offset + number), concurrency=concurrency, requests=requests)
        yield {
            "tower": tower,
            "concurrency": concurrency,
            "requests": requests,
            "per_second": load.rate,
            **{f"p{percent}_ms": load.percentile_ms(percent) for percent in (50, 90, 99)},
        }


def print_tables(report: dict) -> None:
    about, weights, served = report["machine"], report["exported"], report["serving"]
    print(f"\n{about['cpu']}, {about['cores']} cores; onnxruntime {about['onnxruntime']}; {weights['precision']}")
    print("\n| encoder | batch | repeats | median ms | min-max ms | ms a row | peak MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for r in report["batches"]:
        print(
            f"| {r['tower']} | {r['batch']} | {r['repeats']} | {r['median_ms']:.1f} "
            f"| {r['min_ms']:.1f}-{r['max_ms']:.1f} | {r['median_ms'] / r['batch']:.1f} | {r['peak_bytes'] / 1e6:.0f} |"
        )
    print("\n| through Triton | in flight | requests | per second | p50 ms | p90 ms | p99 ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for r in served["loads"]:
        print(
            f"| {r['tower']} | {r['concurrency']} | {r['requests']} | {r['per_second']:.2f} "
            f"| {r['p50_ms']:.0f} | {r['p90_ms']:.0f} | {r['p99_ms']:.0f} |"
        )
    print(f"\n| start, median of {len(served['starts'])} | seconds |")
    print("|---|---:|")
    for name, label in (
        ("ready_s", "`medimage serve` to ready, weights in the page cache"),
        ("first_image_s", "first image"),
        ("later_image_s", "later image"),
        ("first_text_s", "first text"),
        ("later_text_s", "later text"),
    ):
        print(f"| {label} | {statistics.median(start[name] for start in served['starts']):.3f} |")
    rest, after = served["memory_at_rest"], served["memory_after_load"]
    print("\n| memory of all Triton processes | MB resident | MB, shared pages once |")
    print("|---|---:|---:|")
    print(f"| at rest, ready | {rest['rss'] / 1e6:.0f} | {rest['pss'] / 1e6:.0f} |")
    print(f"| after this load | {after['rss'] / 1e6:.0f} | {after['pss'] / 1e6:.0f} |")
    print(f"| at the highest | {after['peak'] / 1e6:.0f} | |")


if __name__ == "__main__":
    main()
