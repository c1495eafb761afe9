"""What tests of several rooms need: the published model's reference data, and exports of the phantom checkpoint."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from medimage_export.repository import copy_unexported
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY, ROOT

TRITON = ("tests/triton/own_server/", "tests/triton/")  # two groups, the longest


class ByFile(LoadScopeScheduling):
    """A worker gets a file whole, so that its fixtures are made once; those of a real Triton share a server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in TRITON if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(TRITON))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Tensor list, config, tokenizer files and goldens, a recorded answer, real images: no part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the reference data of the published model is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def repository_of_run(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """name, export -> a model repository, to be read alone. It is made once a run, by the worker that asks first."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent

    def made(name: str, export: Callable[[Path], object]) -> Path:
        folder = run / name
        with FileLock(run / f"{name}.lock"):
            if not folder.exists():
                with TemporaryDirectory(dir=run) as scratch:
                    whole = copy_unexported(REPOSITORY, Path(scratch) / "models")
                    export(whole)
                    whole.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def exported(repository_of_run) -> Callable[[str], Path]:
    """precision -> a model repository with the phantom checkpoint of MedImageInsight in it."""
    # here, since PyTorch takes seconds, and the process that hands out the tests does not need it
    from medimage_export.medimageinsight.export import export_medimageinsight

    def repository(precision: str) -> Path:
        export = partial(export_medimageinsight, PHANTOM_CHECKPOINT, precision=precision)
        return repository_of_run(f"exported-{precision}", export)

    return repository


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored():
    """Also where the tests run under nohup or in the background of a shell: what starts them has them ignore these."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
