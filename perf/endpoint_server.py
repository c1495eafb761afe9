"""A Triton with the phantom checkpoint and the scoring endpoint in front of it, to be measured."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.repository import copy_unexported
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.launcher import run_triton
from medimage_server.supervisor import running

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Servers:
    grpc_address: str
    endpoint_address: tuple[str, int]
    triton: int  # process ids
    worker: int

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self.grpc_address}"

    @property
    def endpoint_url(self) -> str:
        return "http://{}:{}".format(*self.endpoint_address)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every number of the endpoint's /metrics, Triton's too, by name and labels."""
        connection = HTTPConnection(*self.endpoint_address)
        connection.request("GET", "/metrics")
        families = text_string_to_metric_families(connection.getresponse().read().decode())
        connection.close()
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that requests have spent in each stage of the endpoint so far."""
        name = "medimage_endpoint_stage_seconds_sum"
        return {dict(labels)["stage"]: value for (n, labels), value in self.metrics().items() if n == name}


def phantom_repository(scratch: Path) -> Path:
    repository = copy_unexported(ROOT / "model_repository", scratch / "model_repository")
    export_medimageinsight(ROOT / "checkpoints" / "medimageinsight-phantom", repository)
    return repository


@contextmanager
def serve(repository: Path, scratch: Path, *, max_requests: int = 64) -> Iterator[Servers]:
    """One worker of the endpoint, without keys, in front of one Triton."""
    with ExitStack() as held:
        triton = held.enter_context(
            run_triton(
                repository,
                models=["medimageinsight_image", "medimageinsight_text"],
                text_cache_mb=64,
                log=scratch / "triton.log",
            )
        )
        listener = held.enter_context(bound("127.0.0.1", 0))
        settings = EndpointSettings(
            tritons=(f"grpc://127.0.0.1:{triton.grpc_port}",),
            deployments=("medimageinsight",),
            max_requests=max_requests,
            access_log=str(scratch / "access.log"),
            triton_metrics=f"http://127.0.0.1:{triton.metrics_port}/metrics",
        )
        numbers = Path(held.enter_context(tempfile.TemporaryDirectory(dir=scratch)))
        workers = endpoint_services(settings, listener, numbers)
        (worker,) = held.enter_context(running(workers))
        address = f"127.0.0.1:{triton.grpc_port}"
        yield Servers(address, listener.getsockname(), triton.pid, worker.process.pid)
