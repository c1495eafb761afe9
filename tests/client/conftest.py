"""Clients of a Triton in memory, and a scoring endpoint of this process."""

import json

import pytest

from medimage_client import AsyncMedImageInsight, MedImageInsight
from tests.client.fake_triton import FakeTriton, grey, unit_vectors
from tests.client.http_server import serving
from tests.client.scoring_server import Endpoint, Handler
from tests.garbage import new_garbage


@pytest.fixture
def collect():
    """Of the test's own, and of the fixtures after this one."""
    with new_garbage() as collect:
        yield collect


@pytest.fixture
def triton():
    return FakeTriton()


@pytest.fixture
def client(triton):
    with MedImageInsight("grpc://unused", transport=triton) as client:
        yield client


@pytest.fixture
def async_client(triton):
    return AsyncMedImageInsight("grpc://unused", transport=triton)


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def server(endpoint):
    with serving(type("EndpointHandler", (Handler,), {"endpoint": endpoint})) as url:
        yield url


@pytest.fixture
def no_delay(monkeypatch):
    monkeypatch.setattr("medimage_client.wire.retries.FIRST_DELAY_S", 0.0)


@pytest.fixture(name="grey")
def grey_image():
    return grey


@pytest.fixture(name="unit_vectors")
def expected_vectors():
    return unit_vectors


@pytest.fixture
def recorded_answer(shared_data):
    return json.loads((shared_data / "medimageinsight_recorded_response.json").read_text())
