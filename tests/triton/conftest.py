"""A real Triton for the tests of this folder; the one place that skips them where there is none."""

import os
import shutil
from types import SimpleNamespace

import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http

from medimage_export.cxrreportgen.export import export_cxrreportgen
from medimage_export.heads.export import export_head
from medimage_export.repository import copy_unexported
from medimage_server.errors import LaunchError
from medimage_server.installation import find_triton
from medimage_server.launcher import run_triton
from tests.paths import REPORT_CHECKPOINT, REPOSITORY
from tests.triton.heads import HEADS


@pytest.fixture(scope="package", autouse=True)
def _triton_is_installed():
    try:
        find_triton()
    except LaunchError as error:
        if os.environ.get("MEDIMAGE_REQUIRE_TRITON"):  # set by `make test`, which must not pass with this folder unrun
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="package")
def unexported(tmp_path_factory):
    """A copy of the committed model repository without anything that an export wrote."""
    return copy_unexported(REPOSITORY, tmp_path_factory.mktemp("unexported") / "models")


@pytest.fixture(scope="package")
def repository(exported, repository_of_run):
    """The model repository with the phantom checkpoints exported into it, to be read alone."""

    def export(repository):
        shutil.copytree(exported("fp32"), repository, dirs_exist_ok=True)
        export_cxrreportgen(REPORT_CHECKPOINT, repository)

    return repository_of_run("exported", export)


@pytest.fixture(scope="package")
def repository_with_heads(repository, repository_of_run, tmp_path_factory):
    """The same with the heads of tests/triton/heads.py."""

    def export(whole):
        shutil.copytree(repository, whole, dirs_exist_ok=True)
        for name, head in HEADS.items():
            folder = tmp_path_factory.mktemp(name)
            head.save(folder)
            export_head(folder, whole, name, warn=pytest.fail)

    return repository_of_run("exported-heads", export)


@pytest.fixture(scope="package")
def triton(repository_with_heads, tmp_path_factory):
    """The whole repository served, with heads: `server`, and a raw `grpc` and `http` client of it."""
    with (
        run_triton(repository_with_heads, log=tmp_path_factory.mktemp("triton") / "server.log") as server,
        grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as grpc_client,
        http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as http_client,
    ):
        yield SimpleNamespace(server=server, grpc=grpc_client, http=http_client)
