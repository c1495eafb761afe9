"""What tests of several rooms need: the published model's reference data, and exports of the phantom checkpoint."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from medimage_export.medimageinsight.export import export_medimageinsight
from medimage_export.repository import copy_unexported
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY, ROOT

TRITON = "tests/triton"  # one group, and the longest


class ByFile(LoadScopeScheduling):
    """A worker gets a file whole, so that its fixtures are made once; those of a real Triton have one server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TRITON if file.startswith(f"{TRITON}/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(f"{TRITON}/"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Tensor list, config, tokenizer files and goldens, a recorded answer, real images: no part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the reference data of the published model is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[[str], Path]:
    """precision -> a model repository with the phantom checkpoint of MedImageInsight in it, to be read alone.

    Each is exported once a run, by the worker that asks first.
    """
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent

    def repository(precision: str) -> Path:
        folder = run / f"exported-{precision}"
        with FileLock(run / f"{folder.name}.lock"):
            if not folder.exists():
                with TemporaryDirectory(dir=run) as scratch:
                    whole = copy_unexported(REPOSITORY, Path(scratch) / "models")
                    export_medimageinsight(PHANTOM_CHECKPOINT, whole, precision=precision)
                    whole.rename(folder)
        return folder

    return repository


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored():
    """Also where the tests run under nohup or in the background of a shell: what starts them has them ignore these."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
