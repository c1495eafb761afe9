"""How much of something a test does: a part with the usual tests, all of it with `make test-soak`."""

import pytest


def amounts(usual: int, whole: int) -> list:
    """The values of a parameter."""
    return [usual, pytest.param(whole, marks=pytest.mark.soak)]
