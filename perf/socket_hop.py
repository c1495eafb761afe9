"""What does the way from the endpoint to its Triton cost, now that it is a socket that only this user reaches?

Two Tritons over the phantom checkpoint, one on a loopback port as before, one on a socket; the same request to both in
turn, over gRPC. Unit: milliseconds.

Run: python -m perf.socket_hop        Result: perf/results/socket_hop.json, and a table on stdout
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import sleep

import click
import numpy as np
import tritonclient.grpc as triton

from medimage_server.launcher import POLL_S, run_triton, spawn_triton
from medimage_server.listening import Sockets
from medimage_server.model_repository import ServedModels
from medimage_server.run_folder import run_folder
from perf.endpoint_server import phantom_repository
from perf.machine import machine
from perf.pictures import film, png
from perf.timing import alternate, spread

OUTPUT = Path(__file__).parent / "results" / "socket_hop.json"
MODELS = ["medimageinsight_image", "medimageinsight_text"]
CACHE_MB = 64  # so that a text asked before costs the way and little else


@click.command()
@click.option("--rounds", default=300, show_default=True, help="Measured rounds.")
def main(rounds: int) -> None:
    """Measure the socket against a loopback port."""
    noise = np.random.default_rng(0).normal(0, 4, (512, 512))
    image = png((film(512, 512) + noise).clip(0, 255).astype(np.uint8))
    requests = {"text, cached": ("text", b"heart"), "512 x 512 PNG": ("image", image)}
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        repository = phantom_repository(scratch)
        port = held.enter_context(
            run_triton(repository, models=MODELS, text_cache_mb=CACHE_MB, log=scratch / "port.log")
        )
        run = held.enter_context(run_folder())
        socket = held.enter_context(
            spawn_triton(
                ServedModels(repository, MODELS), Sockets(run.path), run, text_cache_mb=CACHE_MB, log=scratch / "log"
            )
        )
        while not socket.is_ready():
            sleep(POLL_S)
        clients = {
            "port": held.enter_context(triton.InferenceServerClient(port.url.removeprefix("grpc://"))),
            "socket": held.enter_context(triton.InferenceServerClient(socket.url)),
        }
        rows = []
        for name, (kind, value) in requests.items():
            timings = alternate({way: ask(client, kind, value) for way, client in clients.items()}, rounds)
            times = {way: timed.times_ms for way, timed in timings.items()}
            pairs = [after - before for before, after in zip(times["port"], times["socket"], strict=True)]
            rows.append(
                {"request": name, "bytes": len(value)}
                | {way: spread(ms) for way, ms in times.items()}
                | {"added_ms": statistics.median(pairs)}
            )
    OUTPUT.write_text(json.dumps({"machine": machine(), "rounds": rounds, "requests": rows}, indent=2) + "\n")
    print("| request | port, median ms | socket, median ms | added, ms |\n|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['request']} | {row['port']['median_ms']:.2f} | {row['socket']['median_ms']:.2f} | "
            f"{row['added_ms']:+.2f} |"
        )


def ask(client: triton.InferenceServerClient, kind: str, value: bytes) -> Callable[[], np.ndarray]:
    def embed() -> np.ndarray:
        tensor = triton.InferInput(kind, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
        return client.infer(f"medimageinsight_{kind}", [tensor]).as_numpy(f"{kind}_features")[0]

    return embed


if __name__ == "__main__":
    main()
