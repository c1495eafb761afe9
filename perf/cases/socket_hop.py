"""What does the socket to Triton, which only this user reaches, cost the endpoint against a loopback port?

Two Tritons over the phantom checkpoint, one on a loopback port, one on a socket; the same request to both in
turn, over gRPC. Unit: milliseconds.
"""

import statistics
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import sleep

import click
import numpy as np
import tritonclient.grpc as triton

from medimage_server.launcher import POLL_S, run_triton, spawn_triton
from medimage_server.listening import Sockets
from medimage_server.model_repository import ServedModels
from medimage_server.run_folder import run_folder
from perf import tables
from perf.measure import Report, quick_option, side_by_side
from perf.pictures import film, noisy, png
from perf.servers import infer, phantom_repository

MODELS = ["medimageinsight_image", "medimageinsight_text"]
CACHE_MB = 64  # so that a text asked before costs the way and little else


@click.command()
@quick_option
@click.option("--rounds", default=300, show_default=True, help="Measured rounds; --quick makes ten.")
def main(quick: bool, rounds: int) -> None:
    """Measure the socket against a loopback port."""
    rounds = 10 if quick else rounds
    report = Report("socket_hop", quick=quick)
    image = png(noisy(film(512, 512), np.random.default_rng(0)).astype(np.uint8))
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
            model, row = f"medimageinsight_{kind}", {kind: np.array([[value]], np.object_)}
            found = side_by_side({way: partial(infer, client, model, row) for way, client in clients.items()}, rounds)
            times_ms = zip(found["port"].times_ms, found["socket"].times_ms, strict=True)
            rows.append(
                {"request": name, "bytes": len(value)}
                | {way: timed.spread() for way, timed in found.items()}
                | {"added_ms": statistics.median(socket - port for port, socket in times_ms)}
            )
    report.put(rounds=rounds, requests=rows)
    print(tables.of("socket_hop", report.content))
