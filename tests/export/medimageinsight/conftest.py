"""The small model of the export tests."""

import pytest

from medimage_export.medimageinsight.checkpoint import random_model
from medimage_export.medimageinsight.reference import UniCL
from tests.export.medimageinsight.small import SMALL


@pytest.fixture
def small_model() -> UniCL:
    """A model of its own for each test, which may change it."""
    return random_model(SMALL)
