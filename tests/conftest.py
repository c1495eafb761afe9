"""What tests of several rooms need: the reference data of the published model, which is not part of the project."""

import signal
from pathlib import Path

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Tensor list, config, tokenizer files and goldens, a recorded answer, real images."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the reference data of the published model is not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored():
    """Also where the tests run under nohup or in the background of a shell: what starts them has them ignore these."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
