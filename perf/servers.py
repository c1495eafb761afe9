"""What is measured: repositories, and a Triton with the scoring endpoint in front of it."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import click
import numpy as np
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import np_to_triton_dtype

from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.repository import copy_unexported
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.launcher import run_triton
from medimage_server.supervisor import running
from perf.measure import ROOT

MODEL_REPOSITORY = ROOT / "model_repository"

repository_option = click.option(
    "--repository", type=click.Path(path_type=Path, exists=True), help="An earlier export, to be measured."
)


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


def infer(client: triton.InferenceServerClient, model: str, inputs: Mapping[str, np.ndarray]) -> triton.InferResult:
    """What a Triton answers over gRPC."""
    tensors = []
    for name, values in inputs.items():
        tensors.append(triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
        tensors[-1].set_data_from_numpy(values)
    return client.infer(model, tensors)


def phantom_repository(scratch: Path) -> Path:
    """An export of the phantom checkpoint, whose encoders take little time, so that all else shows."""
    repository = copy_unexported(MODEL_REPOSITORY, scratch / "model_repository")
    export_medimageinsight(ROOT / "checkpoints" / "medimageinsight-phantom", repository)
    return repository


def exported_repository(repository: Path | None, quick: bool, scratch: Path) -> Path:
    """The one that was asked for; else model_repository, or if it should be quick, the phantom checkpoint."""
    return repository or (phantom_repository(scratch) if quick else MODEL_REPOSITORY)


def exported(repository: Path) -> dict[str, str]:
    """Which weights a repository holds, in which format and precision, by the manifest of `medimage export`.

    Raises:
        ClickException: nothing was exported into it.
    """
    path = repository / "medimageinsight" / "1" / "manifest.json"
    if not path.is_file():
        raise click.ClickException(f"{repository} holds no export; run `medimage export medimageinsight`")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return {
        "weights": manifest["checkpoint"]["weights"],
        "format": manifest["format"],
        "precision": manifest["precision"],
    }


def exported_for_onnxruntime(repository: Path) -> dict[str, str]:
    """What `exported` tells of a repository that onnxruntime serves.

    Raises:
        ClickException: another runtime does.
    """
    found = exported(repository)
    if found["format"] != "onnx":
        raise click.ClickException(f"{repository} holds {found['format']} plans; export it with --format onnx")
    if found["precision"] == "bf16":
        raise click.ClickException(f"{repository} holds bf16, which OpenVINO computes: only onnxruntime is measured")
    return found


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
