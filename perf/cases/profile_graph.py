"""Where does an ONNX graph spend its time?

Milliseconds per kind of node, medians of a few runs. Of the image encoder in model_repository, or any other model.
"""

import json
import statistics
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import click
import numpy as np
import onnxruntime

from perf.measure import quick_option
from perf.servers import exported_repository

NUMPY_TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}


@click.command()
@quick_option
@click.argument("model", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--threads", default=0, help="0 takes all cores. With one, no time is spent in waiting for the other.")
@click.option("--batch", default=1, show_default=True)
@click.option("--runs", default=5, show_default=True, help="After one that is not counted.")
def main(quick: bool, model: Path | None, threads: int, batch: int, runs: int) -> None:
    """Print how many nodes of each kind an ONNX MODEL has, and their time."""
    with tempfile.TemporaryDirectory() as scratch:
        if model is None:
            repository = exported_repository(None, quick, Path(scratch))
            model = repository / "image_encoder" / "1" / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = f"{scratch}/profile"
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {
            tensor.name: example((batch, *tensor.shape[1:]), NUMPY_TYPES[tensor.type])
            for tensor in session.get_inputs()
        }
        for _ in range(runs + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    print_table(kernel_times(events), runs)


def example(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Noise for pixels, since a blank image is slower than any other (see NOTES.md); ones for ids and masks."""
    return np.random.default_rng(0).integers(0, 256, shape, kind) if kind is np.uint8 else np.ones(shape, kind)


def kernel_times(events: list[dict]) -> dict[str, list[float]]:
    """Milliseconds of each kind of node, in the order in which the nodes ran."""
    times = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]].append(event["dur"] / 1e3)
    return times


def print_table(times: dict[str, list[float]], runs: int) -> None:
    """One row for each kind of node, the slowest first; the first run of each is left out."""
    counts = Counter({kind: len(found) // (runs + 1) for kind, found in times.items()})
    medians = {}
    for kind, found in times.items():
        per_run = np.array(found).reshape(runs + 1, -1).sum(axis=1)
        medians[kind] = statistics.median(per_run[1:])
    total = sum(medians.values())
    print(f"| {'node':<24} | count | {'ms':>8} | share |\n|---|---:|---:|---:|")
    for kind, ms in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"| {kind:<24} | {counts[kind]:>5} | {ms:>8.1f} | {ms / total:>5.1%} |")
    print(f"| {'all':<24} | {counts.total():>5} | {total:>8.1f} | {1:>5.0%} |")
