"""What the endpoint counts, for Prometheus, over all its workers.

Workers share their numbers in files of the folder PROMETHEUS_MULTIPROC_DIR, named after the number of the worker, which
both must be set before this is imported; without them a process counts for itself. The files are mapped: one that had
to grow on a full disk would kill its worker. So they are made before anything is served, as large as they ever get,
and a worker that is started again goes on with those of the one before it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from medimage_server.errors import LaunchError

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's
WORKER_VARIABLE = "MEDIMAGE_WORKER"
FILES = ("counter", "histogram", "gauge_sum", "gauge_min")  # for each worker; by type, and mode of gauges
FILE_BYTES = 2**18  # ten times what all labels that there can be take

if WORKER_VARIABLE in os.environ:  # else this is no worker, even where somebody has set the other variable
    # documented for process managers that number their workers
    values.ValueClass = values.MultiProcessValue(lambda: os.environ[WORKER_VARIABLE])  # type: ignore[no-untyped-call]

# Texts of a phantom take milliseconds, images of the full model seconds on a CPU, reports minutes.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

NO_DEPLOYMENT = "none"  # the label of requests that are not for one, as those for health

OWN = CollectorRegistry()
REQUESTS = Counter("medimage_endpoint_requests", "Requests answered.", ("deployment", "status"), registry=OWN)
ROWS = Counter("medimage_endpoint_rows", "Rows of requests answered with 200.", ("deployment",), registry=OWN)
REQUEST_SECONDS = Histogram(
    "medimage_endpoint_request_seconds",
    "From the head of a scoring request to the last byte of its answer.",
    ("deployment",),
    buckets=SECONDS,
    registry=OWN,
)
STAGE_SECONDS = Histogram(
    "medimage_endpoint_stage_seconds",
    "Parts of it: receive (the body), parse (JSON and base64), model (Triton, with its queues), send (JSON, and out).",
    ("deployment", "stage"),
    buckets=SECONDS,
    registry=OWN,
)
IN_FLIGHT = Gauge("medimage_endpoint_in_flight", "Scoring requests under way.", multiprocess_mode="sum", registry=OWN)
IN_FLIGHT_BYTES = Gauge(
    "medimage_endpoint_in_flight_bytes", "Bodies and answers in memory.", multiprocess_mode="sum", registry=OWN
)
RECEIVED_BYTES = Counter("medimage_endpoint_received_bytes", "Bodies received.", registry=OWN)
SENT_BYTES = Counter("medimage_endpoint_sent_bytes", "Bodies sent.", registry=OWN)
LOST_LOG_LINES = Counter(
    "medimage_endpoint_lost_log_lines", "Lines of the access log that could not be written.", registry=OWN
)
TRITONS_READY = Gauge(
    "medimage_endpoint_triton_ready",
    "Tritons that were ready when last asked: 0 or 1, and of a name (dns+…) how many.",
    ("triton", "deployment"),
    multiprocess_mode="min",
    registry=OWN,
)


IN_FLIGHT.set(0)  # a worker before us may have ended with other numbers
IN_FLIGHT_BYTES.set(0)


def reserve(folder: Path, n_workers: int) -> None:
    """Make the files of workers 1 to `n_workers`, with all the room that they need.

    Raises:
        LaunchError: there is not so much room.
    """
    for worker in range(1, n_workers + 1):
        for name in FILES:
            try:
                with (folder / f"{name}_{worker}.db").open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
            except OSError as error:
                raise LaunchError(f"cannot reserve memory for the numbers of workers: {error}") from error


class Stages:
    """Seconds of the stages of one request, by name, in their order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


def registry() -> CollectorRegistry:
    """The numbers of all workers, where there are several."""
    if FOLDER_VARIABLE not in os.environ:
        return OWN
    merged = CollectorRegistry()
    MultiProcessCollector(merged)  # type: ignore[no-untyped-call]  # prometheus_client types its core alone
    return merged


def page() -> bytes:
    """All of them, in Prometheus' text format."""
    return generate_latest(registry())


def value(name: str) -> float:
    """One number without labels."""
    return registry().get_sample_value(name) or 0.0


def counts_by_status() -> dict[int, int]:
    """Scoring requests answered, by HTTP status."""
    counts: dict[int, int] = {}
    for family in registry().collect():
        for sample in family.samples:
            if sample.name == "medimage_endpoint_requests_total" and sample.labels["deployment"] != NO_DEPLOYMENT:
                status = int(sample.labels["status"])
                counts[status] = counts.get(status, 0) + int(sample.value)
    return counts
