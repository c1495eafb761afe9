"""What does Triton cost on top of the bare ONNX Runtime session: for one request, and when it is busy?

Both encoders as they are served from ONNX, over gRPC, against `InferenceSession.run` on the same tensors in this
process, on CUDA where onnxruntime has it. The two take turns, so that a noisy machine disturbs them alike. One request
at a time: the difference in milliseconds, of which `max_queue_delay_microseconds` is a part. Busy: the share of the
session's rate that is lost; the callers share the machine. The session is given as many rows at once as there are
requests in flight, or one, whichever is faster. So is the whole path, from a PNG to its vector, against the session of
the image encoder.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import click
import numpy as np
import tritonclient.grpc as grpc

from medimage_server.launcher import run_triton
from perf import tables
from perf.cases.scaling import encoder_inputs
from perf.load import TritonRequest, triton_load
from perf.measure import Report, alternate, quick_option, side_by_side, timed
from perf.pictures import film, png
from perf.servers import exported_for_onnxruntime, exported_repository, infer, repository_option
from perf.sessions import first_rows, session_as_served

BUSY = (4, 8, 16)  # requests in flight
REST_S = 0.02  # between two turns: the threads of a session spin for a while before they sleep
WHOLE_PATH, IN_FLIGHT = "PNG to vector", 8

Tensors = Mapping[str, np.ndarray]
Call = Callable[[], object]


@click.command()
@quick_option
@repository_option
@click.option("--seconds", default=3, show_default=True, help="Time of each turn, when busy.")
@click.option("--rounds", default=20, show_default=True, help="Turns of each side of one request; busy, three.")
def main(quick: bool, repository: Path | None, seconds: int, rounds: int) -> None:
    """Measure both encoders of model_repository; with --quick, of the phantom checkpoint."""
    concurrencies, busy_rounds = BUSY, 3
    if quick:
        concurrencies, busy_rounds, seconds, rounds = BUSY[:1], 1, 2, 5
    report = Report("triton_overhead", quick=quick)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        repository = exported_repository(repository, quick, scratch)
        report.put(exported=exported_for_onnxruntime(repository))
        one, all_busy = [], []
        models = ("medimageinsight_image", "text_encoder")
        with (
            run_triton(repository, models=models, log=scratch / "triton.log") as server,
            grpc.InferenceServerClient(server.url.removeprefix("grpc://")) as client,
        ):
            for tower, inputs in encoder_inputs(repository, max(BUSY)).items():
                session = session_as_served(repository / f"{tower}_encoder" / "1" / "model.onnx")
                model, row = f"{tower}_encoder", first_rows(inputs, 1)
                alone, rows = partial(session.run, None, row), requests(model, inputs)
                one.append({"tower": tower, **one_at_a_time(alone, partial(infer, client, model, row), rounds)})
                cases = [(f"{tower} encoder", rows, n) for n in concurrencies]
                if tower == "image":
                    cases.append((WHOLE_PATH, requests(models[0], {"image": films(IN_FLIGHT)}), IN_FLIGHT))
                for what, sent, n in cases:
                    together = partial(session.run, None, first_rows(inputs, n))
                    triton = partial(triton_rate, server.url, sent, n, seconds)
                    found = busy(alone, together, triton, n, seconds, busy_rounds)
                    all_busy.append({"what": what, "concurrency": n, **found})
                report.put(provider=session.get_providers()[0], one=one, busy=all_busy)
    print(tables.of("triton_overhead", report.content))


def films(number: int) -> np.ndarray:
    """PNG files of 512 x 512, (number, 1) of bytes."""
    return np.array([[png(film(512, 512, seed))] for seed in range(number)], dtype=object)


def requests(model: str, inputs: Tensors) -> list[TritonRequest]:
    """A request of each row."""
    rows = len(next(iter(inputs.values())))
    return [
        {"model": model, "inputs": {name: values[row : row + 1] for name, values in inputs.items()}, "expected": {}}
        for row in range(rows)
    ]


def one_at_a_time(session: Call, triton: Call, rounds: int) -> dict[str, float]:
    """Milliseconds of one row, by the session and through Triton."""
    found = side_by_side({"session": session, "triton": triton}, rounds, pause_s=REST_S)
    pairs = zip(found["triton"].times_ms, found["session"].times_ms, strict=True)
    return {
        "rounds": rounds,
        **{f"{side}_ms": timed.spread()["median_ms"] for side, timed in found.items()},
        "overhead_ms": statistics.median(triton - bare for triton, bare in pairs),
    }


def busy(
    alone: Call, together: Call, triton: Callable[[], float], concurrency: int, seconds: float, rounds: int
) -> dict[str, object]:
    """Rows per second: of the session alone or in batches, and through Triton with so many requests in flight."""
    rates = alternate(
        {
            "session_alone": partial(rate, alone, 1, seconds),
            "session_batched": partial(rate, together, concurrency, seconds),
            "triton": triton,
        },
        rounds,
    )
    medians = {side: statistics.median(values) for side, values in rates.items()}
    bare = max(medians["session_alone"], medians["session_batched"])
    return {"rows_per_second": medians, "rounds": rates, "lost_share": 1 - medians["triton"] / bare}


def rate(call: Call, rows: int, seconds: float) -> float:
    """Rows per second of a call of so many rows, which is made for so long, and at least once."""
    times = [timed(call)[1]]
    while sum(times) < seconds:
        times.append(timed(call)[1])
    return rows * len(times) / sum(times)


def triton_rate(url: str, sent: list[TritonRequest], callers: int, seconds: int) -> float:
    return triton_load(url, sent, callers=callers, seconds=seconds).rate
