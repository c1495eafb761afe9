"""How does the scoring endpoint bear load: against gRPC by the number of callers, and asked for four times too much?

Locust makes the load (`endpoint_users.py`) and checks every answer against the vectors that its rows were given when
they were asked alone. Unit: rows a second, and milliseconds of a request. The checkpoint is the phantom one.

- `--callers 1,4,16,64`: so many callers of one image each, over gRPC and over the endpoint in turn;
- `--saturate 300`: for so many seconds, four times as many callers as the endpoint takes requests, with mixed rows:
  statuses, memory, and whether all is as before at the end.

Run: make perf-endpoint        Result: perf/results/endpoint_load.json, and tables on stdout
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import click

from medimage_client import MedImageInsight
from medimage_export.phantoms import CAPTIONS, phantom
from perf.endpoint_server import Servers, phantom_repository, serve
from perf.machine import machine, memory
from perf.pictures import png

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "perf" / "results" / "endpoint_load.json"
OVERLOAD = 4  # callers for each request that the endpoint takes
MAX_REQUESTS = 16  # that it takes, to be saturated
MEMORY_EVERY_S = 1.0
SEED = 9000  # of drawings that no checkpoint was trained on
ROUNDS = 3

AT_REST = (  # what is 0 when nobody asks
    "medimage_endpoint_in_flight",
    "medimage_endpoint_in_flight_bytes",
    "nv_inference_pending_request_count",
)

Numbers = dict[str, float]


@click.command()
@click.option("--callers", default="1,4,16,64", show_default=True, help="Numbers of callers to compare.")
@click.option("--seconds", default=10, show_default=True, help="For each number and way, in each of three rounds.")
@click.option("--saturate", default=300, show_default=True, help="Seconds of saturation.")
@click.option("--repository", type=click.Path(path_type=Path, exists=True), help="An earlier export.")
def main(callers: str, seconds: int, saturate: int, repository: Path | None) -> None:
    """Load the endpoint, and check every answer."""
    numbers = [int(n) for n in callers.split(",")]
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        repository = repository or phantom_repository(scratch)
        report = {"machine": machine()}
        with serve(repository, scratch, max_requests=2 * max(numbers)) as servers:
            rows = write_rows(servers, scratch)
            report["callers"] = compare(servers, rows, scratch, numbers, seconds)
        save(report)
        with serve(repository, scratch, max_requests=MAX_REQUESTS) as servers:
            report["saturation"] = saturated(servers, rows, scratch, saturate)
        save(report)
    print_callers(report["callers"])
    print_saturation(report["saturation"])


def save(report: dict) -> None:
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")


def write_rows(servers: Servers, scratch: Path) -> Path:
    """Rows of images, of texts and of both, and their vectors, each asked alone and over gRPC."""
    images = [png(phantom(CAPTIONS[n], SEED, size=512).image) for n in range(8)]
    with MedImageInsight(f"grpc://{servers.grpc_address}") as client:
        image_features = [client.embed_images([image])[0].tolist() for image in images]
        text_features = [client.embed_texts([text])[0].tolist() for text in CAPTIONS[:8]]
    rows = []
    for n, image in enumerate(images):
        cell = base64.b64encode(image).decode()
        of_image = {"image": cell, "image_features": image_features[n]}
        of_text = {"text": CAPTIONS[n], "text_features": text_features[n]}
        nothing = {"image": "", "text": "", "image_features": None, "text_features": None}
        rows += [nothing | of_image, nothing | of_text, of_image | of_text]
    path = scratch / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def locust(host: str, user: str, callers: int, seconds: int, rows: Path, scratch: Path) -> dict[str, Numbers]:
    """What Locust says of its requests, by their name."""
    result = scratch / "locust"
    command = [sys.executable, "-m", "locust", "-f", str(ROOT / "perf" / "endpoint_users.py"), user, "--headless"]
    options = ["--host", host, "-u", str(callers), "-r", str(callers), "-t", f"{seconds}s", "--stop-timeout", "130"]
    output = ["--json-file", str(result), "--skip-log", "--only-summary", "--loglevel", "ERROR"]
    done = subprocess.run(
        [*command, *options, *output],
        env=os.environ | {"MEDIMAGE_ROWS": str(rows), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    path = result.with_suffix(".json")
    if done.returncode not in (0, 1) or not path.is_file():  # 1: some requests failed, which the numbers tell
        raise RuntimeError(f"Locust ended with {done.returncode}:\n{done.stderr[-2000:]}")
    numbers = {entry["name"]: summary(entry) for entry in json.loads(path.read_text())}
    path.unlink()
    return numbers


def summary(entry: dict) -> Numbers:
    """Of one kind of request."""
    times = sorted((float(ms), count) for ms, count in entry["response_times"].items())
    seconds = entry["last_request_timestamp"] - entry["start_time"]
    return {
        "requests": entry["num_requests"],
        "failures": entry["num_failures"],
        "per_second": entry["num_requests"] / seconds,
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
    }


def percentile(times: list[tuple[float, int]], percent: float) -> float:
    """Of a histogram, the time that so many of its requests did not exceed."""
    wanted = sum(count for _, count in times) * percent / 100
    for ms, count in times:
        wanted -= count
        if wanted <= 0:
            return ms
    return times[-1][0]


def compare(servers: Servers, rows: Path, scratch: Path, callers: list[int], seconds: int) -> list[dict]:
    """Both ways at each number of callers: medians of rounds in turn."""
    ways = {"gRPC": (servers.grpc_url, "GrpcUser"), "endpoint": (servers.endpoint_url, "EndpointUser")}
    lines = []
    for n in callers:
        rounds: dict[str, list[Numbers]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, (host, user) in ways.items():
                (numbers,) = locust(host, user, n, seconds, rows, scratch).values()
                rounds[way].append(numbers)
        for way, measured in rounds.items():
            lines.append({"callers": n, "way": way} | {key: median(m[key] for m in measured) for key in measured[0]})
    return lines


def saturated(servers: Servers, rows: Path, scratch: Path, seconds: int) -> dict:
    """Callers four times as many as there is room for: what they are told, and what the processes need."""
    locust(servers.endpoint_url, "MixedUser", MAX_REQUESTS, 10, rows, scratch)  # so that what grows once has grown
    with sampled(lambda: {"endpoint": rss_mb(servers.worker), "triton": rss_mb(servers.triton)}) as samples:
        answered = locust(servers.endpoint_url, "MixedUser", OVERLOAD * MAX_REQUESTS, seconds, rows, scratch)
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
        "answered": answered,
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


def print_callers(lines: list[dict]) -> None:
    print("| callers | way | rows a second | p50 ms | p99 ms | requests a round | failures |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for line in lines:
        print(
            f"| {line['callers']} | {line['way']} | {line['per_second']:.1f} | {line['p50_ms']:.0f} | "
            f"{line['p99_ms']:.0f} | {line['requests']:.0f} | {line['failures']:.0f} |"
        )


def print_saturation(report: dict) -> None:
    print(f"\n{report['callers']} callers, {report['max_requests']} requests taken at once, {report['seconds']} s:\n")
    print("| answer | requests | wrong or failed | p50 ms | p99 ms |\n|---|---:|---:|---:|---:|")
    for name, numbers in report["answered"].items():
        print(
            f"| {name} | {numbers['requests']} | {numbers['failures']} | {numbers['p50_ms']:.0f} | "
            f"{numbers['p99_ms']:.0f} |"
        )
    print("\n| process | MB at the start | peak | end |\n|---|---:|---:|---:|")
    for process, mb in report["memory_mb"].items():
        print(f"| {process} | {mb['start']:.0f} | {mb['peak']:.0f} | {mb['end']:.0f} |")
    print(f"\nafter it: {report['at_end']}")


if __name__ == "__main__":
    main()
