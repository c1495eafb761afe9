"""What does Triton cost on top of the bare ONNX Runtime session: for one request, and when it is busy?

Both encoders as they are served from ONNX, over gRPC, against `InferenceSession.run` on the same tensors in this
process, on CUDA where onnxruntime has it. The two take turns, so that a noisy machine disturbs them alike. One request
at a time: the difference in milliseconds, of which `max_queue_delay_microseconds` is a part. Busy: the share of the
session's rate that is lost. The session is given as many rows at once as there are requests in flight, or one,
whichever is faster. So is the whole path, from a PNG to its vector, against the session of the image encoder.

Run: make perf-overhead     Result: perf/results/overhead.json, and the tables on stdout
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnxruntime
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

from medimage_server.launcher import run_triton
from perf.load import requests_for, run_load
from perf.machine import exported_for_onnxruntime, machine
from perf.pictures import film, png
from perf.scaling import encoder_inputs
from perf.session_process import session_as_served

ROOT = Path(__file__).parents[1]
BUSY = (4, 8, 16)  # requests in flight
REST_S = 0.02  # between two turns: the threads of a session spin for a while before they sleep
TURNS = 40  # at most, of one request
WHOLE_PATH, IN_FLIGHT = "PNG to vector", 8
LIMIT_MS, LIMIT_SHARE, WHOLE_PATH_LIMIT_SHARE = 15, 0.03, 0.07  # the goals


@click.command()
@click.option(
    "--repository",
    type=click.Path(path_type=Path, exists=True),
    default=ROOT / "model_repository",
    help="After `medimage export medimageinsight`.  [default: model_repository]",
)
@click.option("--seconds", default=10.0, show_default=True, help="Time of each side of each case.")
@click.option("--rounds", default=3, show_default=True, help="Turns of each side, when busy.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "perf" / "results" / "overhead.json")
def main(repository: Path, seconds: float, rounds: int, output: Path) -> None:
    """Measure both encoders of an exported repository."""
    weights = exported_for_onnxruntime(repository)
    report: dict = {"machine": machine(), "exported": weights, "one": [], "busy": []}
    with tempfile.TemporaryDirectory() as scratch:
        models = ("medimageinsight_image", "text_encoder")
        with (
            run_triton(repository, models=models, log=Path(scratch) / "triton.log") as server,
            grpc.InferenceServerClient(server.url.removeprefix("grpc://")) as client,
        ):
            for tower, inputs in encoder_inputs(repository, max(BUSY)).items():
                session = session_as_served(repository / f"{tower}_encoder" / "1" / "model.onnx")
                report["provider"] = session.get_providers()[0]
                ask = served(client, f"{tower}_encoder", inputs)
                report["one"].append({"tower": tower, **one_at_a_time(session, ask, inputs, seconds)})
                report["busy"] += [
                    {"tower": tower, **busy(session, ask, inputs, concurrency, seconds / rounds, rounds)}
                    for concurrency in BUSY
                ]
                if tower == "image":
                    ask = served(client, "medimageinsight_image", {"image": films(IN_FLIGHT)})
                    found = busy(session, ask, inputs, IN_FLIGHT, seconds / rounds, rounds)
                    report["busy"].append({"tower": WHOLE_PATH, **found})
                output.write_text(json.dumps(report, indent=2) + "\n")
    print_tables(report)


def films(number: int) -> np.ndarray:
    """PNG files of 512 x 512, (number, 1) of bytes."""
    return np.array([[png(film(512, 512, seed))] for seed in range(number)], dtype=object)


def served(
    client: grpc.InferenceServerClient, model: str, inputs: dict[str, np.ndarray]
) -> Callable[[int], grpc.InferResult]:
    """A call that has the server answer one row of the inputs."""

    def ask(number: int) -> grpc.InferResult:
        tensors = []
        for name, values in inputs.items():
            row = number % len(values)
            tensors.append(grpc.InferInput(name, [1, *values.shape[1:]], np_to_triton_dtype(values.dtype)))
            tensors[-1].set_data_from_numpy(values[row : row + 1])
        return client.infer(model, tensors)

    return ask


def one_at_a_time(
    session: onnxruntime.InferenceSession, ask: Callable[[int], object], inputs: dict[str, np.ndarray], seconds: float
) -> dict[str, float]:
    """Milliseconds of one row, by the session and through Triton, in turns."""
    row = first_rows(inputs, 1)
    sides = {"session": lambda: session.run(None, row), "triton": lambda: ask(0)}
    for call in sides.values():  # not measured
        call()
    times: dict[str, list[float]] = {side: [] for side in sides}
    until = time.perf_counter() + 2 * seconds
    while time.perf_counter() < until and len(times["triton"]) < TURNS:
        for side, call in sides.items():
            time.sleep(REST_S)
            times[side].append(1e3 * timed(call))
    differences = [triton - bare for triton, bare in zip(times["triton"], times["session"], strict=True)]
    return {
        "turns": len(differences),
        **{f"{side}_ms": statistics.median(values) for side, values in times.items()},
        "overhead_ms": statistics.median(differences),
    }


def busy(
    session: onnxruntime.InferenceSession,
    ask: Callable[[int], object],
    inputs: dict[str, np.ndarray],
    concurrency: int,
    seconds: float,
    rounds: int,
) -> dict[str, object]:
    """Rows per second: of the session alone or in batches, and through Triton with so many requests in flight."""
    alone, together = first_rows(inputs, 1), first_rows(inputs, concurrency)
    rate = concurrency / timed(lambda: session.run(None, together))  # a first guess
    rates: dict[str, list[float]] = {"session_alone": [], "session_batched": [], "triton": []}
    for _ in range(rounds):
        rows = requests_for(seconds, rate=rate, concurrency=concurrency)
        rates["session_alone"].append(repeated(lambda: session.run(None, alone), rows, rows))
        batches = -(-rows // concurrency)
        rates["session_batched"].append(repeated(lambda: session.run(None, together), batches, batches * concurrency))
        rates["triton"].append(run_load(ask, concurrency=concurrency, requests=rows).rate)
        rate = rates["triton"][-1]
    medians = {side: statistics.median(values) for side, values in rates.items()}
    bare = max(medians["session_alone"], medians["session_batched"])
    return {
        "concurrency": concurrency,
        "rows_per_second": medians,
        "rounds": rates,
        "lost_share": 1 - medians["triton"] / bare,
    }


def repeated(call: Callable[[], object], times: int, rows: int) -> float:
    """Rows per second of a call that is made so many times, for so many rows altogether."""
    return rows / timed(lambda: [call() for _ in range(times)])


def first_rows(inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    return {name: values[:rows] for name, values in inputs.items()}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def print_tables(report: dict) -> None:
    about, weights = report["machine"], report["exported"]
    print(f"\n{about['cpu']}, {about['cores']} cores; onnxruntime {about['onnxruntime']}; {weights['precision']}")
    print(f"\n| encoder, one at a time | turns | session ms | Triton ms | overhead ms | goal: {LIMIT_MS} |")
    print("|---|---:|---:|---:|---:|---|")
    for r in report["one"]:
        met = "met" if r["overhead_ms"] <= LIMIT_MS else "missed"
        print(
            f"| {r['tower']} | {r['turns']} | {r['session_ms']:.1f} | {r['triton_ms']:.1f} "
            f"| {r['overhead_ms']:.1f} | {met} |"
        )
    print("\n| encoder, busy | in flight | session, one row | session, so many | Triton | lost | goal |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for r in report["busy"]:
        rates = " | ".join(f"{rate:.2f}" for rate in r["rows_per_second"].values())
        limit = WHOLE_PATH_LIMIT_SHARE if r["tower"] == WHOLE_PATH else LIMIT_SHARE
        met = f"{limit:.0%}, {'met' if r['lost_share'] <= limit else 'missed'}"
        print(f"| {r['tower']} | {r['concurrency']} | {rates} | {r['lost_share']:.1%} | {met} |")
    print("\nRows per second; medians.")


if __name__ == "__main__":
    main()
