"""What do `resize="client"` and `shared_memory=True` save of an image's way to the server?

Films are drawings with the noise of a detector, as PNG files, sent by the client to a Triton on this machine. Its
checkpoint is the phantom one, whose encoder takes little time, so that the way there shows. Each round runs the
variants side by side. Unit: milliseconds, from file to vector; bytes as sent.
"""

import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import click
import numpy as np

from medimage_client import MedImageInsight
from medimage_client.constants import STANDARD_IMAGE_SIZE_PX
from medimage_client.images.encoding import encode_image
from medimage_server.launcher import TritonServer, run_triton
from perf import tables
from perf.measure import Report, quick_option, side_by_side, timed
from perf.pictures import film, noisy, png
from perf.servers import phantom_repository, repository_option

LINK_BIT_S = 100e6  # of a slow network
SIZES = ((2048, 2048), (2500, 3000))  # (width, height)
PADDED_MB = (0.3, 1, 2, 5, 10, 20)

Calls = Mapping[str, Callable[[], np.ndarray]]
Times = dict[str, dict[str, float]]


@click.command()
@quick_option
@repository_option
@click.option("--rounds", default=15, show_default=True, help="Measured rounds; --quick makes one.")
def main(quick: bool, repository: Path | None, rounds: int) -> None:
    """Measure both options of the client against what it does without them."""
    rounds = 1 if quick else rounds
    report = Report("client_transport", quick=quick)
    report.put(rounds=rounds, link_bit_s=LINK_BIT_S)
    with tempfile.TemporaryDirectory() as scratch:
        repository = repository or phantom_repository(Path(scratch))
        with run_triton(repository, models=["medimageinsight_image"], log=Path(scratch) / "triton.log") as server:
            films = draw_films()
            report.put(resize=measure_resize(server, films, rounds))
            report.put(shared_memory=measure_shared_memory(server, films, rounds))
    print(tables.of("client_transport", report.content))


def draw_films() -> dict[str, bytes]:
    """PNG files in two sizes and three kinds: 8-bit grey, 12 bits in 16-bit grey, and colour."""
    films = {}
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        drawn = film(width, height)
        grey, red, blue = (noisy(drawn, rng) for _ in range(3))
        for kind, pixels in (
            ("8-bit grey", grey.astype(np.uint8)),
            ("16-bit grey", (grey * 16).astype(np.uint16)),
            ("8-bit RGB", np.dstack([red, grey, blue]).astype(np.uint8)),
        ):
            films[f"{width} x {height}, {kind}"] = png(pixels)
    return films


def padded(megabytes: float) -> bytes:
    """A small PNG with noise behind its end, which nobody decodes: an image whose way to the server is all it costs."""
    image = png(film(64, 64))
    return image + np.random.default_rng(0).bytes(int(megabytes * 1e6) - len(image))


def measure_resize(server: TritonServer, films: Mapping[str, bytes], rounds: int) -> list[dict[str, object]]:
    results = []
    with ExitStack() as stack:
        port = stack.enter_context(slow_link(server.grpc_port))
        near, far = (
            stack.enter_context(MedImageInsight(f"grpc://127.0.0.1:{port}")) for port in (server.grpc_port, port)
        )
        for name, file in films.items():
            sent = {
                "server": len(file),
                "client": len(encode_image(file, square_px=STANDARD_IMAGE_SIZE_PX)),
            }
            client_ms = statistics.median(
                1e3 * timed(lambda file=file: encode_image(file, square_px=STANDARD_IMAGE_SIZE_PX))[1]
                for _ in range(rounds)
            )
            links = {
                link: same_vectors(
                    {
                        resize: lambda client=client, file=file, resize=resize: client.embed_images(
                            [file], resize=resize
                        )
                        for resize in ("server", "client")
                    },
                    rounds,
                )
                for link, client in (("loopback", near), ("slow", far))
            }
            results.append({"film": name, "sent_bytes": sent, "client_ms": client_ms, "links": links})
    return results


def measure_shared_memory(server: TritonServer, films: Mapping[str, bytes], rounds: int) -> list[dict[str, object]]:
    a_film = films["2500 x 3000, 16-bit grey"]
    inputs = {f"{megabytes:g} MB, no decoding": [padded(megabytes)] for megabytes in PADDED_MB}
    inputs |= {"film of 2500 x 3000, 16-bit": [a_film], "4 of them": [a_film] * 4}
    results: list[dict[str, object]] = [
        {"images": name, "bytes": sum(map(len, images)), "wires": {}} for name, images in inputs.items()
    ]
    for scheme, port in (("grpc", server.grpc_port), ("http", server.http_port)):
        with ExitStack() as stack:
            clients = {
                variant: stack.enter_context(
                    MedImageInsight(f"{scheme}://127.0.0.1:{port}", shared_memory=variant == "shared memory")
                )
                for variant in ("plain", "shared memory")
            }
            for result, images in zip(results, inputs.values(), strict=True):
                result["wires"][scheme] = same_vectors(
                    {
                        variant: lambda client=client, images=images: client.embed_images(images)
                        for variant, client in clients.items()
                    },
                    rounds,
                )
    return results


def same_vectors(calls: Calls, rounds: int) -> Times:
    """Median and spread of each call; raise unless all give the same vectors."""
    found = side_by_side(calls, rounds)
    reference, *others = (timing.result for timing in found.values())
    for vectors in others:
        np.testing.assert_array_equal(vectors, reference)
    return {name: timing.spread() for name, timing in found.items()}


@contextmanager
def slow_link(port: int) -> Iterator[int]:
    """A port of this machine that passes on to another at LINK_BIT_S a direction and connection."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free_at = time.perf_counter()
        while chunk := await reader.read(2**16):
            free_at = max(free_at, time.perf_counter()) + 8 * len(chunk) / LINK_BIT_S
            await asyncio.sleep(free_at - time.perf_counter())
            writer.write(chunk)
            await writer.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.create_task(way) for way in (pass_on(reader, server_writer), pass_on(server_reader, writer))]
        with suppress(asyncio.CancelledError):  # the link is taken down
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for end in (writer, server_writer):
            end.close()

    async def serve() -> None:
        closed = asyncio.Event()
        async with await asyncio.start_server(connect, "127.0.0.1", 0) as listening:
            opened.set_result((listening.sockets[0].getsockname()[1], asyncio.get_running_loop(), closed))
            await closed.wait()

    opened: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    slow_port, loop, closed = opened.result()
    try:
        yield slow_port
    finally:
        loop.call_soon_threadsafe(closed.set)
        thread.join()
