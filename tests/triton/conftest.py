"""A real Triton for the tests of this folder; the one place that skips them where there is none."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http

from medimage_export.export import export_medimageinsight
from medimage_server.launcher import LaunchError, find_triton, run_triton

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "medimageinsight-phantom"


@pytest.fixture(scope="package", autouse=True)
def _triton_is_installed():
    try:
        find_triton()
    except LaunchError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="package")
def unexported(tmp_path_factory):
    """A copy of the committed model repository without anything that an export wrote."""
    exported = shutil.ignore_patterns("*.onnx", "*.onnx.data", "*.json", "*.plan", "__pycache__")
    return shutil.copytree(ROOT / "model_repository", tmp_path_factory.mktemp("unexported") / "models", ignore=exported)


@pytest.fixture(scope="package")
def repository(unexported, tmp_path_factory):
    """The model repository with the phantom checkpoint exported into it."""
    repository = shutil.copytree(unexported, tmp_path_factory.mktemp("exported") / "models")
    export_medimageinsight(CHECKPOINT, repository)
    return repository


@pytest.fixture(scope="package")
def triton(repository, tmp_path_factory):
    """The whole repository served: `server`, and a raw `grpc` and `http` client of it."""
    with (
        run_triton(repository, log=tmp_path_factory.mktemp("triton") / "server.log") as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as grpc_client,
        http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as http_client,
    ):
        yield SimpleNamespace(server=server, grpc=grpc_client, http=http_client)
