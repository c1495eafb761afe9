"""`medimage_client.azureml` in place of azure-ai-ml: code of Microsoft's against a scoring endpoint.

The calls are those of the documentation's samples (deploy-medimageinsight.md, deploy-cxrreportgen.md), of the notebooks
and of the healthcareai toolkit (util/azureml_managers.py, clients/retry.py, util/parallel.py at 15414b8), and those of
the MCP server's client beside it.
"""

import base64
import inspect
import json
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import pytest
import requests

from medimage_client import InvalidInput, ResponseError
from medimage_client.azureml import MLClient, OnlineEndpointOperations
from medimage_client.images.encoding import encode_image
from tests.client.azure_samples import IMAGE_AND_TEXT, card_request
from tests.client.fake_reports import OUTPUT
from tests.client.http_server import serving
from tests.client.scoring_server import SCALING_FACTOR, Endpoint, Handler

KEY = "k3y-0f.the_endpoint"
RESOURCE_ID = (
    "/subscriptions/1234/resourceGroups/imaging/providers/Microsoft.MachineLearningServices/workspaces/research/"
    "onlineEndpoints/medimageinsight-x7k2p"
)
# By which the toolkit takes a resource id apart
PARTS = re.compile(
    r"/subscriptions/(.*)/resourceGroups/(.*)/providers/Microsoft.MachineLearningServices/workspaces/(.*)/"
    r"onlineEndpoints/(.*)",
    re.IGNORECASE,
)
# Of azure-ai-ml 1.35.2: parameters without self, a * before those that are by name alone, = where there is a default
SIGNATURES = {
    "MLClient": "credential, subscription_id=, resource_group_name=, workspace_name=, registry_name=, **kwargs",
    "MLClient.from_config": "credential, *, path=, file_name=, **kwargs",
    "OnlineEndpointOperations.get": "name, *, local=",
    "OnlineEndpointOperations.get_keys": "name",
    "OnlineEndpointOperations.invoke": "endpoint_name, *, request_file=, deployment_name=, input_data=, "
    "params_override=, local=, **kwargs",
}


@pytest.fixture
def film(grey):
    return lambda value: encode_image(grey(value))


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def uri(endpoint):
    with serving(type("AzureHandler", (Handler,), {"endpoint": endpoint})) as root:
        yield f"{root}/score"


@pytest.fixture
def environment(uri, monkeypatch):
    """One endpoint, whatever it is called."""
    monkeypatch.setenv("MEDIMAGE_SCORING_URI", uri)
    monkeypatch.setenv("MEDIMAGE_API_KEY", KEY)


@pytest.fixture
def named(monkeypatch, tmp_path):
    """Endpoints by name, in a file."""

    def name(content):
        file = tmp_path / "endpoints.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("MEDIMAGE_ENDPOINTS", str(file))

    return name


def parameters(function):
    found = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    named, star = [], False
    for one in found:
        if one.kind is one.KEYWORD_ONLY and not star:
            named.append("*")
            star = True
        prefix = "**" if one.kind is one.VAR_KEYWORD else ""
        named.append(f"{prefix}{one.name}" + ("" if one.default is one.empty else "="))
    return ", ".join(named)


def signatures(client, operations):
    functions = [client, client.from_config, operations.get, operations.get_keys, operations.invoke]
    return dict(zip(SIGNATURES, map(parameters, functions), strict=True))


def test_calls_take_the_arguments_of_azure_ai_ml():
    assert signatures(MLClient, OnlineEndpointOperations) == SIGNATURES


def test_recorded_arguments_are_those_of_azure_ai_ml():
    ml, operations = (
        pytest.importorskip(f"azure.ai.ml{name}", reason="azure-ai-ml is not installed") for name in ("", ".operations")
    )
    assert signatures(ml.MLClient, operations.OnlineEndpointOperations) == SIGNATURES


def ask(ml_client, tmp_path, request, **names):
    """As the documentation's samples do: a request in a file, the answer as a text."""
    request_file = tmp_path / "sample_request_data.json"
    request_file.write_text(json.dumps(request))
    return ml_client.online_endpoints.invoke(**names, request_file=str(request_file))


def test_sample_of_the_documentation_gets_the_endpoints_answer(environment, endpoint, tmp_path, film):
    ml_client = MLClient.from_config(object())
    names = {"endpoint_name": "medimageinsight-x7k2p", "deployment_name": "medimageinsight-v1"}
    (row,) = json.loads(ask(ml_client, tmp_path, card_request(film(7)), **names))
    assert (row.keys(), row["scaling_factor"]) == (
        {"image_features", "text_features", "scaling_factor"},
        SCALING_FACTOR,
    )
    (path, headers, body) = endpoint.requests[0]
    assert (path, headers["Authorization"], body) == ("/score", f"Bearer {KEY}", card_request(film(7)))


@pytest.mark.parametrize("is_azures_own", [False, True])
def test_sample_of_the_report_notebook_gets_findings(environment, endpoint, tmp_path, film, is_azures_own):
    if is_azures_own:
        endpoint.events = None
    image = base64.encodebytes(film(7)).decode("utf-8")
    row = {"frontal_image": image, "lateral_image": image, "indication": "", "technique": "", "comparison": "None"}
    request = {"input_data": {"columns": [*row], "index": [0], "data": [[*row.values()]]}, "params": {}}
    ml_client = MLClient.from_config(credential=object())
    response = ask(ml_client, tmp_path, request, endpoint_name="CxrReportGen-a1b2c", deployment_name="cxr-v440")
    assert json.loads(json.loads(response)[0]["output"]) == json.loads(OUTPUT)
    assert endpoint.bodies() == [request]


class ToolkitClient:
    """Finds its endpoint and submits as the toolkit's clients do."""

    def __init__(self, resource_id):
        subscription_id, resource_group_name, workspace_name, endpoint_name = PARTS.match(resource_id).groups()
        ml_client = MLClient(
            credential=object(),
            subscription_id=subscription_id,
            resource_group_name=resource_group_name,
            workspace_name=workspace_name,
        )
        self.endpoint = ml_client.online_endpoints.get(name=endpoint_name)
        assert self.endpoint.auth_mode == "key"
        self.api_key = ml_client.online_endpoints.get_keys(name=endpoint_name).primary_key

    def submit(self, image_list=(), text_list=()):
        rows = [list(row) for row in zip_longest(image_list, text_list)]
        table = {"columns": ["image", "text"], "index": list(range(len(rows))), "data": rows}
        headers = {"Authorization": f"Bearer {self.api_key}"}
        payload = {"input_data": table, "params": {}}
        response = requests.post(self.endpoint.scoring_uri, json=payload, headers=headers, timeout=10)
        response.raise_for_status()
        return response.json()


def test_client_of_the_toolkit_finds_its_endpoint_by_a_resource_id(named, uri, endpoint, film, unit_vectors):
    named({"medimageinsight-x7k2p": {"scoring_uri": uri, "key": KEY}})
    client = ToolkitClient(RESOURCE_ID)
    image, text = base64.encodebytes(film(7)).decode(), "x-ray chest anteroposterior No Finding"
    both, no_text = client.submit(image_list=[image, image], text_list=[text])
    assert both["image_features"] == unit_vectors([7]).tolist()
    assert both.keys() - no_text.keys() == {"text_features"}
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_parallel_submitter_of_the_toolkit_gets_every_row(environment, film, unit_vectors):
    """Batches of one row in five threads."""
    client = ToolkitClient(RESOURCE_ID)
    images = [[base64.encodebytes(film(value)).decode()] for value in range(12)]
    with ThreadPoolExecutor(5) as threads:
        answers = [*threads.map(client.submit, images)]
    assert [row["image_features"] for (row,) in answers] == [[row] for row in unit_vectors(range(12)).tolist()]


def test_invoke_of_several_threads_gives_each_its_answer(environment, tmp_path, film, unit_vectors):
    operations = MLClient.from_config(None).online_endpoints

    def invoke(value):
        (tmp_path / f"{value}.json").write_text(json.dumps(card_request(film(value))))
        return json.loads(operations.invoke("any", request_file=tmp_path / f"{value}.json"))[0]["image_features"][0]

    with ThreadPoolExecutor(5) as threads:
        assert [*threads.map(invoke, range(8))] == unit_vectors(range(8)).tolist()


def test_file_names_endpoints_and_the_environment_their_key(named, monkeypatch):
    monkeypatch.setenv("MEDIMAGE_API_KEY", "of-the-environment")
    monkeypatch.setenv("MEDIMAGE_SCORING_URI", "https://elsewhere/score")
    named({"a": {"scoring_uri": "https://host/score"}, "b": {"scoring_uri": "https://host/b/score", "key": "own"}})
    operations = MLClient.from_config(None, path="config.json").online_endpoints
    assert [operations.get(name).scoring_uri for name in "ab"] == ["https://host/score", "https://host/b/score"]
    assert [operations.get_keys(name).primary_key for name in "ab"] == ["of-the-environment", "own"]
    assert operations.get_keys("b").secondary_key == "own"
    assert "own" not in repr(operations.get_keys("b")) + repr(operations.get("b"))
    with pytest.raises(InvalidInput, match=r"there is no endpoint 'c' in the file of MEDIMAGE_ENDPOINTS.*\['a', 'b'\]"):
        operations.get_keys("c")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON of the form"),
        ([], "is not JSON of the form"),
        ({}, "is not JSON of the form"),
        ({"a": "https://host/score"}, "endpoint 'a' of .*: is not of the form"),
        ({"a": {"key": "secret"}}, "endpoint 'a' of .*: is not of the form"),
        ({"a": {"scoring_uri": "https://host/score", "key": 7}}, "endpoint 'a' of .*: is not of the form"),
        ({"a": {"scoring_uri": "https://host/score", "token": "secret"}}, "endpoint 'a' of .*: is not of the form"),
        ({"a": {"scoring_uri": "https://host", "key": "secret"}}, "endpoint 'a' of .*: is no scoring URI; expected"),
        (
            {"a": {"scoring_uri": "https://host/score", "key": "secret key"}},
            "endpoint 'a' of .*: api_key is empty, not",
        ),
    ],
)
def test_file_of_another_form_is_told_without_a_key(named, content, message):
    named(content)
    with pytest.raises(InvalidInput, match=message) as refused:
        MLClient.from_config(None)
    assert "secret" not in str(refused.value)


def test_environment_that_names_no_endpoint_says_what_would(monkeypatch, tmp_path):
    with pytest.raises(InvalidInput, match="no endpoint is named; set MEDIMAGE_SCORING_URI and MEDIMAGE_API_KEY, or"):
        MLClient(None)
    monkeypatch.setenv("MEDIMAGE_SCORING_URI", "grpc://host:8001")
    with pytest.raises(InvalidInput, match="MEDIMAGE_SCORING_URI: is no scoring URI; expected https://host/score"):
        MLClient(None)
    monkeypatch.setenv("MEDIMAGE_ENDPOINTS", str(tmp_path / "none.json"))
    with pytest.raises(InvalidInput, match=r"cannot read .*none\.json, which MEDIMAGE_ENDPOINTS names: No such file"):
        MLClient(None)


@pytest.mark.parametrize(
    "option", [{"local": True}, {"input_data": "a"}, {"params_override": {"a": 1}}, {"cloud": "a"}]
)
def test_option_without_effect_is_refused(environment, option):
    operations = MLClient.from_config(None).online_endpoints
    with pytest.raises(InvalidInput, match=f"{next(iter(option))} is given, which only Azure's own MLClient knows"):
        operations.invoke("any", request_file="request.json", **option)


def test_failures_are_those_of_the_client(environment, endpoint, tmp_path):
    operations = MLClient.from_config(None).online_endpoints
    with pytest.raises(InvalidInput, match="request_file is None"):
        operations.invoke("any")
    with pytest.raises(InvalidInput, match=r"cannot read .*none\.json"):
        operations.invoke("any", request_file=tmp_path / "none.json")
    endpoint.refuse(401, "unknown key")
    with pytest.raises(ResponseError, match="unknown key") as refused:
        ask(MLClient(None), tmp_path, IMAGE_AND_TEXT, endpoint_name="any")
    assert refused.value.status == 401
