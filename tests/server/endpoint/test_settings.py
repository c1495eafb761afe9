"""What a worker is told travels as JSON."""

import json
from dataclasses import replace

import pytest

from medimage_server.endpoint.settings import MAX_ROWS, MODELS, EndpointSettings
from medimage_server.launcher import LaunchError
from tests.server.endpoint.asgi import SETTINGS

FULL = replace(
    SETTINGS,
    layout="card",
    tritons=("grpc://a:1", "http://b:2"),
    key_digests=("00ff", "ff00"),
    keys_file="/run/schlüssel",
    tls_certificate="/c",
    tls_key="/k",
    access_log="-",
    triton_metrics="http://a:8002/metrics",
)


@pytest.mark.parametrize("settings", [SETTINGS, FULL, replace(SETTINGS, deployments=("cxrreportgen",))])
def test_settings_come_back_as_they_were_from_one_line(settings):
    text = settings.to_json()
    assert "\n" not in text
    assert EndpointSettings.from_json(text + "\n") == settings
    assert hash(EndpointSettings.from_json(text)) == hash(settings)  # no list among them
    assert json.loads(text)["tritons"] == [*settings.tritons]


def test_settings_of_another_version_are_refused():
    with pytest.raises(TypeError):
        EndpointSettings.from_json(json.dumps(json.loads(SETTINGS.to_json()) | {"colour": "red"}))


def test_deployments_are_those_whose_models_triton_serves():
    images, texts = MODELS["medimageinsight"]
    assert SETTINGS.serving(["x", texts, images]) == replace(SETTINGS, deployments=("medimageinsight",))
    assert SETTINGS.serving([*MODELS["medimageinsight"], *MODELS["cxrreportgen"]]).deployments == tuple(MODELS)
    with pytest.raises(LaunchError, match=r"there is nothing to score: .*; Triton serves medimageinsight_image$"):
        SETTINGS.serving([images])


def test_reports_have_a_time_of_their_own():
    assert SETTINGS.time_limit_s("medimageinsight") == 20.0
    assert SETTINGS.time_limit_s("cxrreportgen") == 30.0


def test_rows_and_models_are_those_of_azures_documentation_and_the_repository():
    assert MAX_ROWS == {"medimageinsight": 1024, "cxrreportgen": 10}
    assert MODELS == {
        "medimageinsight": ("medimageinsight_image", "medimageinsight_text"),
        "cxrreportgen": ("cxrreportgen", "cxrreportgen_stream"),
    }
