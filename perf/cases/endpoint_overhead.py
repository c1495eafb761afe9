"""What does the JSON of the scoring endpoint add to a row, against gRPC with the same image to the same Triton?

Unit: milliseconds from an encoded 512 x 512 image to its vector as an array, one caller, one request after the other,
ways in alternating rounds; the goal is at most 8 ms. The checkpoint is the phantom one, whose encoder takes little
time, so that the way shows.
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

from perf import tables
from perf.measure import Report, quick_option, side_by_side
from perf.pictures import film, noisy, png
from perf.servers import Servers, infer, phantom_repository, repository_option, serve

SIDE_PX = 512
STAGES = ("receive", "parse", "model", "send")

Embed = Callable[[], np.ndarray]


@click.command()
@quick_option
@repository_option
@click.option("--rounds", default=200, show_default=True, help="Measured rounds; --quick makes ten.")
def main(quick: bool, repository: Path | None, rounds: int) -> None:
    """Measure the endpoint against gRPC."""
    rounds = 10 if quick else rounds
    report = Report("endpoint_overhead", quick=quick)
    image = png(noisy(film(SIDE_PX, SIDE_PX), np.random.default_rng(0)).astype(np.uint8))
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        servers = held.enter_context(serve(repository or phantom_repository(scratch), scratch))
        ways = {
            "gRPC, PNG": held.enter_context(over_grpc(servers, image)),
            "endpoint, JSON made before": held.enter_context(over_json(servers, image, make_once=True)),
            "endpoint, JSON made each time": held.enter_context(over_json(servers, image, make_once=False)),
        }
        before = servers.stage_seconds()
        timings = side_by_side(ways, rounds)
        stages = {name: servers.stage_seconds()[name] - before.get(name, 0.0) for name in STAGES}
    grpc, *others = (timed.result for timed in timings.values())
    assert all(np.allclose(vector, grpc, rtol=0, atol=1e-6) for vector in others), "the ways give different vectors"
    times_ms = {name: timed.times_ms for name, timed in timings.items()}
    report.put(
        rounds=rounds,
        png_bytes=len(image),
        ways={name: timed.spread() for name, timed in timings.items()},
        added_ms=added(times_ms.pop("gRPC, PNG"), times_ms),
        stage_mean_ms={name: 1e3 * seconds / (2 * (rounds + 1)) for name, seconds in stages.items()},
    )
    print(tables.of("endpoint_overhead", report.content))


@contextmanager
def over_grpc(servers: Servers, image: bytes) -> Iterator[Embed]:
    row = {"image": np.array([[image]], np.object_)}
    with triton.InferenceServerClient(servers.grpc_address) as client:
        yield lambda: infer(client, "medimageinsight_image", row).as_numpy("image_features")[0]


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
