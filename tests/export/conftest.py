"""Fixtures of the export tests: a small model, and the data that only some checkouts have."""

from pathlib import Path

import pytest
import torch

from medimage_export.checkpoint import random_model
from medimage_export.unicl import MedImageInsight
from tests.export.small import SMALL
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
    """Random weights, with the norms' and biases' initial ones and zeros replaced so that each of them matters."""
    model = random_model(SMALL)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model
