"""What does the JSON of the scoring endpoint add to a row, over gRPC with the same image to the same Triton?

Unit: milliseconds from an encoded 512 x 512 image to its vector as an array, one caller, one request after the other,
ways in alternating rounds. The checkpoint is the phantom one, whose encoder takes little time, so that the way shows.

Run: make perf-endpoint        Result: perf/results/endpoint_overhead.json, and a table on stdout
"""

import base64
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import click
import numpy as np
import tritonclient.grpc as triton

from perf.endpoint_server import Servers, phantom_repository, serve
from perf.machine import machine
from perf.pictures import film, png
from perf.timing import alternate, spread

OUTPUT = Path(__file__).parent / "results" / "endpoint_overhead.json"
SIDE_PX = 512
GOAL_MS = 8.0
STAGES = ("receive", "parse", "model", "send")

Embed = Callable[[], np.ndarray]


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Measured rounds.")
@click.option("--repository", type=click.Path(path_type=Path, exists=True), help="An earlier export.")
def main(rounds: int, repository: Path | None) -> None:
    """Measure the endpoint against gRPC."""
    noise = np.random.default_rng(0).normal(0, 4, (SIDE_PX, SIDE_PX))  # of a detector, which PNG cannot compress
    image = png((film(SIDE_PX, SIDE_PX) + noise).clip(0, 255).astype(np.uint8))
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        servers = held.enter_context(serve(repository or phantom_repository(scratch), scratch))
        ways = {
            "gRPC, PNG": held.enter_context(over_grpc(servers, image)),
            "endpoint, JSON made before": held.enter_context(over_json(servers, image, make_once=True)),
            "endpoint, JSON made each time": held.enter_context(over_json(servers, image, make_once=False)),
        }
        before = servers.stage_seconds()
        timings = alternate(ways, rounds)
        stages = {name: servers.stage_seconds()[name] - before.get(name, 0.0) for name in STAGES}
    grpc, *others = (timed.result for timed in timings.values())
    assert all(np.allclose(vector, grpc, rtol=0, atol=1e-6) for vector in others), "the ways give different vectors"
    report = {
        "machine": machine(),
        "rounds": rounds,
        "png_bytes": len(image),
        "ways": {name: spread(timed.times_ms) for name, timed in timings.items()},
        "added_ms": added(timings["gRPC, PNG"].times_ms, {n: t.times_ms for n, t in timings.items() if n[0] == "e"}),
        "stage_mean_ms": {name: 1e3 * seconds / (2 * (rounds + 1)) for name, seconds in stages.items()},
    }
    OUTPUT.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)


@contextmanager
def over_grpc(servers: Servers, image: bytes) -> Iterator[Embed]:
    with triton.InferenceServerClient(servers.grpc_address) as client:

        def embed() -> np.ndarray:
            tensor = triton.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
            return client.infer("medimageinsight_image", [tensor]).as_numpy("image_features")[0]

        yield embed


@contextmanager
def over_json(servers: Servers, image: bytes, *, make_once: bool) -> Iterator[Embed]:
    made = make_request(image)
    with closing(HTTPConnection(*servers.endpoint_address)) as connection:

        def embed() -> np.ndarray:
            body = made if make_once else make_request(image)
            connection.request("POST", "/score", body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            return np.array(answer[0]["image_features"][0], dtype=np.float32)

        yield embed


def make_request(image: bytes) -> bytes:
    """As Microsoft's samples make it: base64 with a line break every 76 characters."""
    cell = base64.encodebytes(image).decode()
    return json.dumps({"input_data": {"columns": ["image"], "index": [0], "data": [[cell]]}, "params": {}}).encode()


def added(base_ms: list[float], ways: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """What each way takes longer than gRPC: between medians, and the median of the pairs of a round."""
    return {
        name: {
            "of_medians": statistics.median(times_ms) - statistics.median(base_ms),
            "median_of_pairs": statistics.median(way - base for way, base in zip(times_ms, base_ms, strict=True)),
        }
        for name, times_ms in ways.items()
    }


def print_table(report: dict) -> None:
    print(f"{report['png_bytes'] / 1e3:.0f} kB PNG of {SIDE_PX} x {SIDE_PX}, {report['rounds']} rounds\n")
    print("| way | median ms | min-max ms | added to gRPC, ms |\n|---|---:|---:|---:|")
    for name, times in report["ways"].items():
        more = report["added_ms"].get(name, {}).get("median_of_pairs")
        added_ms = "" if more is None else f"{more:.1f}"
        print(f"| {name} | {times['median_ms']:.1f} | {times['min_ms']:.1f}-{times['max_ms']:.1f} | {added_ms} |")
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in report["stage_mean_ms"].items())
    print(f"\nwithin the endpoint, mean ms: {stages}; goal: at most {GOAL_MS:g} ms added")


if __name__ == "__main__":
    main()
