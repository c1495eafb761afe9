"""Fixtures of the export tests: a small model, and the data that only some checkouts have."""

from pathlib import Path

import pytest

from medimage_export.unicl import MedImageInsight
from tests.export.small import perturbed_model
from tests.paths import ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Facts recorded from the published model: tensor list, config, tokenizer files, real images."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared reference data is not in this checkout")
    return folder


@pytest.fixture
def small_model() -> MedImageInsight:
    """A model of its own for each test, which may change it."""
    return perturbed_model()
