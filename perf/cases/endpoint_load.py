"""How does the scoring endpoint bear load: against gRPC by the number of callers, and asked for four times too much?

Every answer is checked against the vectors that its rows were given when they were asked alone. Unit: rows a second,
and milliseconds of a request. The checkpoint is the phantom one.

- `--callers 1,4,16,64`: so many callers of one image each, over gRPC and over the endpoint in turn;
- `--saturate 300`: for so many seconds, four times as many callers as the endpoint takes requests, with mixed rows:
  statuses, memory, and whether all is as before at the end.
"""

import base64
import json
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import click
import numpy as np

from medimage_client import MedImageInsight
from medimage_export.phantoms import CAPTIONS, phantom
from perf import tables
from perf.load import Load, ScoreRequest, TritonRequest, load
from perf.measure import Report, alternate, quick_option
from perf.memory import memory
from perf.pictures import png
from perf.servers import Servers, phantom_repository, repository_option, serve

OVERLOAD = 4  # callers for each request that the endpoint takes
MAX_REQUESTS = 16  # that it takes, to be saturated
MOST_ROWS, MIXED_REQUESTS = 4, 64  # of a mixed request, and how many there are
MEMORY_EVERY_S = 1.0
SEED = 9000  # of drawings that no checkpoint was trained on
ROUNDS = 3

AT_REST = (  # what is 0 when nobody asks
    "medimage_endpoint_in_flight",
    "medimage_endpoint_in_flight_bytes",
    "nv_inference_pending_request_count",
)

Numbers = dict[str, float]
Row = dict[str, object]  # "image" in base64 and "text" as in a request, and the vectors that are right for them


@click.command()
@quick_option
@repository_option
@click.option("--callers", default="1,4,16,64", show_default=True, help="Numbers of callers to compare.")
@click.option("--seconds", default=10, show_default=True, help="For each number and way, in each of three rounds.")
@click.option("--saturate", default=300, show_default=True, help="Seconds of saturation.")
def main(quick: bool, repository: Path | None, callers: str, seconds: int, saturate: int) -> None:
    """Load the endpoint, and check every answer. With --quick: 4 callers, a round of 2 s, 5 s of saturation."""
    numbers, rounds = [int(n) for n in callers.split(",")], ROUNDS
    if quick:
        numbers, rounds, seconds, saturate = [4], 1, 2, 5
    report = Report("endpoint_load", quick=quick)
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        repository = repository or phantom_repository(scratch)
        with serve(repository, scratch, max_requests=2 * max(numbers)) as servers:
            rows = make_rows(servers.grpc_url)
            report.put(callers=[line for n in numbers for line in compare(servers, rows, n, seconds, rounds)])
        with serve(repository, scratch, max_requests=MAX_REQUESTS) as servers:
            report.put(saturation=saturated(servers, mixed(rows), seconds, saturate))
    print(tables.of("endpoint_load", report.content))
    print(f"\nafter it: {report.content['saturation']['at_end']}")


def make_rows(triton: str) -> list[Row]:
    """Rows of images, of texts and of both, and their vectors, each asked alone and over gRPC."""
    images = [png(phantom(CAPTIONS[n], SEED, size=512).image) for n in range(8)]
    with MedImageInsight(triton) as client:
        image_features = [client.embed_images([image])[0].tolist() for image in images]
        text_features = [client.embed_texts([text])[0].tolist() for text in CAPTIONS[:8]]
    rows: list[Row] = []
    for n, image in enumerate(images):
        of_image = {"image": base64.b64encode(image).decode(), "image_features": image_features[n]}
        of_text = {"text": CAPTIONS[n], "text_features": text_features[n]}
        nothing = {"image": "", "text": "", "image_features": None, "text_features": None}
        rows += [nothing | of_image, nothing | of_text, nothing | of_image | of_text]
    return rows


def over_grpc(row: Row) -> TritonRequest:
    """A row's image, to its model."""
    image = np.array([[base64.b64decode(row["image"])]], dtype=np.object_)
    features = np.array([row["image_features"]], np.float32)
    return {"model": "medimageinsight_image", "inputs": {"image": image}, "expected": {"image_features": features}}


def over_json(rows: Sequence[Row]) -> ScoreRequest:
    """Rows, to the endpoint."""
    data = [[row["image"], row["text"]] for row in rows]
    body = json.dumps({"input_data": {"columns": ["image", "text"], "data": data}, "params": {}}).encode()
    return {
        "body": body,
        "expected": [{name: row[name] for name in ("image_features", "text_features")} for row in rows],
    }


def mixed(rows: Sequence[Row]) -> list[ScoreRequest]:
    """Requests of several rows, of images, texts and both, in any order."""
    choice = random.Random(0)
    return [over_json(choice.choices(rows, k=choice.randint(1, MOST_ROWS))) for _ in range(MIXED_REQUESTS)]


def compare(servers: Servers, rows: Sequence[Row], callers: int, seconds: int, rounds: int) -> list[dict]:
    """Both ways with so many callers of one image each: medians of rounds in turn."""
    images = [row for row in rows if row["image"] and not row["text"]]
    ways = {
        "gRPC": partial(load, servers.grpc_url, list(map(over_grpc, images)), callers=callers, seconds=seconds),
        "endpoint": partial(
            load, servers.endpoint_url, [over_json([row]) for row in images], callers=callers, seconds=seconds
        ),
    }
    lines = []
    for way, answered in alternate(ways, rounds).items():
        measured = [summary(load) for (load,) in map(dict.values, answered)]
        numbers = {key: median(each[key] for each in measured) for key in measured[0]}
        lines.append({"callers": callers, "way": way, **numbers})
    return lines


def summary(load: Load) -> Numbers:
    return {
        "requests": len(load.latencies_ms),
        "failures": load.failed,
        "per_second": load.rate,
        "p50_ms": load.percentile_ms(50),
        "p99_ms": load.percentile_ms(99),
    }


def saturated(servers: Servers, requests: Sequence[ScoreRequest], warm_up: int, seconds: int) -> Mapping[str, object]:
    """Callers four times as many as there is room for: what they are told, and what the processes need."""
    load(servers.endpoint_url, requests, callers=MAX_REQUESTS, seconds=warm_up)  # so that what grows once has grown
    with sampled(lambda: {"endpoint": rss_mb(servers.worker), "triton": rss_mb(servers.triton)}) as samples:
        answered = load(servers.endpoint_url, requests, callers=OVERLOAD * MAX_REQUESTS, seconds=seconds)
    after = servers.metrics()
    at_end = {name: sum(value for (other, _), value in after.items() if other == name) for name in AT_REST}
    memory_mb = {
        process: {"start": values[0], "peak": max(values), "end": values[-1], "each_minute": values[::60]}
        for process in ("endpoint", "triton")
        if (values := [sample[process] for sample in samples])
    }
    return {
        "seconds": seconds,
        "callers": OVERLOAD * MAX_REQUESTS,
        "max_requests": MAX_REQUESTS,
        "answered": {kind: summary(found) for kind, found in answered.items()},
        "memory_mb": memory_mb,
        "at_end": at_end,
    }


def rss_mb(pid: int) -> float:
    return memory(pid).rss / 2**20


@contextmanager
def sampled(measure: Callable[[], Numbers]) -> Iterator[list[Numbers]]:
    """Measurements, one each second of the block."""
    samples = [measure()]
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(MEMORY_EVERY_S):
            samples.append(measure())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
