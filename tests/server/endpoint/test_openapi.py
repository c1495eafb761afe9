"""The OpenAPI document against its meta-schema, the routes and refusals of the code, and the reader of requests."""

import json
import re
import tomllib
from http import HTTPStatus

import jsonschema_rs
import numpy as np
import pytest
import yaml
from schemathesis.specs.openapi.definitions import OPENAPI_30_VALIDATOR

from medimage_client import InvalidInput
from medimage_client.constants import EMBEDDING_SIZE
from medimage_client.reports.finding import read_findings
from medimage_client.schema import embeddings, reports
from medimage_client.schema.embeddings import EmbeddingRow, render_answer
from medimage_client.schema.heads import HeadScores, read_head_request
from medimage_client.schema.reports import render_reports
from medimage_server.endpoint.openapi import TEXT, openapi
from medimage_server.endpoint.report_events import event
from medimage_server.endpoint.settings import MAX_ROWS
from tests.client.azure_samples import read_report_requests, read_request
from tests.client.test_azure_fuzz import cases, damaged_requests
from tests.paths import ROOT
from tests.server.endpoint.asgi import DOCUMENT, running

BOTH = ("medimageinsight", "cxrreportgen")
HEADS = ("cxr_findings", "views")
WITH_HEADS = openapi((*BOTH, *HEADS), keys=True)
SCHEMAS = DOCUMENT["components"]["schemas"]
EXAMPLES = {name: example["value"] for name, example in DOCUMENT["components"]["examples"].items()}
REQUESTS = {  # by path: the names of the examples
    path: list(DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"])
    for path in ("/score", "/medimageinsight/score", "/cxrreportgen/score")
}
IMAGE = EXAMPLES["image-only"]["input_data"]["data"][0][0]
READERS = {"EmbeddingRequest": read_request, "ReportRequest": read_report_requests}
STUDY = {"columns": ["frontal_image"], "data": [[IMAGE]]}


def operations(document):
    return [
        (path, method, item[method])
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    ]


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from references(part)


def draft_4(schema):
    """OpenAPI 3.0's dialect in that of JSON Schema which it extends: `nullable` becomes a type."""
    if isinstance(schema, list):
        return [draft_4(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: draft_4(part) for key, part in schema.items() if key != "nullable"}
    if schema.get("nullable") is True:
        converted["type"] = [schema["type"], "null"]
    return converted


def validator(*names, document=DOCUMENT):
    choice = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}
    return jsonschema_rs.Draft4Validator(draft_4({**choice, "components": document["components"]}))


def accepts(name, request):
    try:
        READERS[name](request)
    except InvalidInput:
        return False
    return True


@pytest.mark.parametrize("deployments", [BOTH, BOTH[:1], BOTH[1:], (*BOTH, *HEADS), HEADS], ids="+".join)
@pytest.mark.parametrize("keys", [True, False])
def test_document_is_openapi_and_has_all_that_it_refers_to_and_no_more(deployments, keys):
    document = openapi(deployments, keys=keys)
    assert [error.message for error in OPENAPI_30_VALIDATOR.iter_errors(document)] == []
    parts = {f"#/components/{kind}/{name}" for kind, named in document["components"].items() for name in named}
    assert parts - set(references(document)) == ({"#/components/securitySchemes/key"} if keys else set())
    assert set(references(document)) <= parts
    assert "x-if" not in json.dumps(document) and "x-names" not in json.dumps(document)
    paths = {f"/{'{head}' if name in HEADS else name}/score" for name in deployments}
    assert {"/score"} | paths == {path for path in document["paths"] if path.endswith("/score")}
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("deployments", [BOTH, BOTH[:1], BOTH[1:]], ids="+".join)
def test_what_is_left_out_is_what_is_not_served(deployments):
    text = json.dumps(openapi(deployments, keys=False)["paths"])
    assert {name for name in BOTH if f"/{name}/score" in text} == set(deployments)
    assert ("EmbeddingRequest" in text) == ("medimage-layout" in text) == ("medimageinsight" in deployments)
    assert ("ReportRequest" in text) == ("text/event-stream" in text) == ("cxrreportgen" in deployments)
    names = openapi(deployments, keys=True)["components"]["headers"]["azureml-model-deployment"]["schema"]["anyOf"]
    assert [name["enum"] for name in names] == [[name] for name in deployments]


def test_every_condition_is_one_that_is_looked_at():
    assert set(re.findall(rb"x-if: (\w+)", TEXT)) == {b"medimageinsight", b"cxrreportgen", b"heads", b"keys"}


def test_heads_are_named_in_the_path_and_their_answer_is_that_of_a_fine_tuned_deployment():
    _, head = WITH_HEADS["paths"]["/{head}/score"]["parameters"]
    assert head["schema"] == {"type": "string", "enum": [*HEADS]}
    example = WITH_HEADS["components"]["examples"]["head-scores"]["value"]
    scores = HeadScores(["Mass", "Normal"], np.array([[0.25, 0.75], [1, 0]], np.float32))
    assert scores.ranked()[0] == [{"label": "Normal", "score": 0.75}, {"label": "Mass", "score": 0.25}]
    assert validator("HeadScores", document=WITH_HEADS).is_valid(scores.ranked())
    assert validator("HeadScores", document=WITH_HEADS).is_valid(example)
    assert not validator("HeadScores", document=WITH_HEADS).is_valid(scores.ranked()[0])


@pytest.mark.parametrize(
    ("data", "columns"),
    [([[IMAGE]], ["image"]), ([{"image": IMAGE}], ["image"]), ([["a", "b"]], ["image", "text"]), ([[""]], ["image"])],
    ids=["list", "object", "text-column", "empty"],
)
def test_requests_for_a_head_are_read_as_the_document_says(data, columns):
    request = {"input_data": {"columns": columns, "data": data}}
    try:
        is_read = len(read_head_request(request).images) == 1
    except InvalidInput:
        is_read = False
    assert validator("HeadRequest", document=WITH_HEADS).is_valid(request) == is_read


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert DOCUMENT["info"]["version"] == project["version"]


async def test_document_is_served_as_it_is_and_as_json(monkeypatch):
    async with running(monkeypatch, key_digests=("0" * 64,)) as caller:
        text = await caller.ask("GET", "/openapi.yaml", headers={})
        assert text.body == (ROOT / "server/medimage_server/endpoint/openapi.yaml").read_bytes()
        for path in ("/openapi.json", "/swagger.json"):
            assert (await caller.ask("GET", path, headers={})).json == DOCUMENT
    async with running(monkeypatch, deployments=BOTH[1:]) as caller:
        assert (await caller.ask("GET", "/openapi.yaml", headers={})).body == text.body
        assert (await caller.ask("GET", "/openapi.json", headers={})).json == openapi(BOTH[1:], keys=False)


def test_text_is_openapi_and_json_has_its_values():
    """By PyYAML's other reader, without what is there only to be narrowed."""
    assert [error.message for error in OPENAPI_30_VALIDATOR.iter_errors(yaml.safe_load(TEXT))] == []
    text = re.sub(r'"x-if": "\w+", ', "", json.dumps(yaml.safe_load(TEXT)))
    assert json.loads(text.replace('"x-names": "heads"', f'"enum": {json.dumps(HEADS)}')) == WITH_HEADS


async def test_every_route_of_the_app_is_there_and_no_other(monkeypatch):
    async with running(monkeypatch) as caller:
        served = {
            (method, route.path.replace("{deployment}", name))
            for route in caller.app.routes
            for method in route.methods - {"HEAD"}
            for name in BOTH
        }
    files = [parameter for parameter in DOCUMENT["paths"]["/docs/{file}"]["parameters"] if "name" in parameter]
    assert served == {
        (method.upper(), path.replace("{file}", name))
        for path, method, _ in operations(DOCUMENT)
        for name in files[0]["schema"]["enum"]
    }


def test_every_status_in_the_code_is_one_of_scoring_and_no_other():
    """Of the requests that the tests send, `asgi.EndpointCaller` looks at each answer."""
    source = "".join(path.read_text() for path in (ROOT / "server/medimage_server/endpoint").glob("*.py"))
    statuses = {HTTPStatus[name] for name in re.findall(r"\bHTTPStatus\.([A-Z_]+)", source)}
    statuses |= set(map(int, re.findall(r"(?:Refusal\(|error_response\(|error_body\(|status_code=)\s*(\d+)", source)))
    for path in REQUESTS:
        assert {int(status) for status in DOCUMENT["paths"][path]["post"]["responses"]} == statuses


def test_every_route_tells_what_is_told_before_it_is_asked():
    """A head that can be read in two ways, a wrong method, a fault of ours, and no worker that runs."""
    for _, _, operation in operations(DOCUMENT):
        assert {"400", "405", "500", "503"} <= set(operation["responses"])


def test_numbers_and_names_are_those_of_the_code():
    for name, schema in (("EmbeddingRequest", embeddings), ("ReportRequest", reports)):
        table = SCHEMAS[name]["properties"]["input_data"]["properties"]
        cells, row = table["data"]["items"]["anyOf"]
        assert tuple(table["columns"]["items"]["enum"]) == tuple(row["properties"]) == schema.COLUMNS
        assert cells["maxItems"] == len(schema.COLUMNS)
        assert table["data"]["maxItems"] == schema.MAX_ROWS
    params = SCHEMAS["EmbeddingRequest"]["properties"]["params"]["properties"]
    assert {name: param["maximum"] for name, param in params.items() if "maximum" in param} == embeddings.IMAGE_PARAMS
    assert SCHEMAS["Embedding"]["minItems"] == SCHEMAS["Embedding"]["maxItems"] == EMBEDDING_SIZE
    assert {embeddings.MAX_ROWS, reports.MAX_ROWS} == set(MAX_ROWS.values())


def test_key_is_asked_for_where_it_is_needed_alone():
    asking = {path for path, _, operation in operations(DOCUMENT) if operation.get("security") == [{"key": []}]}
    assert asking == {"/score", "/medimageinsight/score", "/cxrreportgen/score", "/status", "/metrics"}
    assert asking == {
        path for path, _, operation in operations(DOCUMENT) if {"401", "403"} <= set(operation["responses"])
    }
    free = openapi(BOTH, keys=False)
    assert "401" not in free["components"]["responses"]
    assert not [path for path, _, operation in operations(free) if "security" in operation]


def test_every_status_has_its_headers():
    responses = DOCUMENT["components"]["responses"]
    special = {"Retry-After": {"429", "503"}, "WWW-Authenticate": {"401"}, "Allow": {"405"}}
    for name, where in special.items():
        assert {status for status, response in responses.items() if name in response["headers"]} == where
    assert all("x-request-id" in response["headers"] for response in responses.values())


def test_example_of_every_error_is_of_its_schema():
    errors = validator("Error")
    for status, response in DOCUMENT["components"]["responses"].items():
        example = response["content"]["application/json"]["example"]
        errors.validate(example)
        assert example["status"] == int(status)


@pytest.mark.parametrize("name", REQUESTS["/medimageinsight/score"])
def test_example_of_an_embedding_request_is_of_the_schema_and_is_read(name):
    validator("EmbeddingRequest").validate(EXAMPLES[name])
    rows = read_request(json.dumps(EXAMPLES[name]).encode()).rows
    halves = [("image" if row.image else "") + ("text" if row.text else "") for row in rows]
    expected = {"image-and-text": ["imagetext"], "text-only": ["text"], "image-only": ["image"]}
    assert halves == expected.get(name, ["imagetext", "text", "image", "text"])


@pytest.mark.parametrize("name", REQUESTS["/cxrreportgen/score"])
def test_example_of_a_report_request_is_of_the_schema_and_is_read(name):
    validator("ReportRequest").validate(EXAMPLES[name])
    (study,) = read_report_requests(json.dumps(EXAMPLES[name]).encode())
    assert study.frontal_image.startswith(b"\x89PNG")
    assert (study.comparison, study.lateral_image) == (
        ("None", study.frontal_image) if name == "study" else (None, None)
    )


async def test_example_of_every_request_is_answered_where_it_stands(monkeypatch):
    assert REQUESTS["/score"] == REQUESTS["/medimageinsight/score"] + REQUESTS["/cxrreportgen/score"]
    async with running(monkeypatch) as caller:
        for path, names in REQUESTS.items():
            for name in names:
                answer = await caller.ask("POST", path, EXAMPLES[name])
                assert answer.status == 200
                is_report = name in REQUESTS["/cxrreportgen/score"]
                validator("Reports" if is_report else "EmbeddingRows").validate(answer.json)


def test_examples_of_answers_are_what_is_rendered():
    vector = np.zeros(1024, dtype=np.float32)
    vector[:4] = 0.5, -0.5, -0.5, 0.5
    assert np.linalg.norm(vector) == 1
    row = EmbeddingRow(image_features=vector, text_features=vector)
    for layout in ("rows", "card", "object"):
        assert EXAMPLES[layout] == render_answer([row], scaling_factor=4.513362407684326, layout=layout)
    (report,) = EXAMPLES["reports"]
    assert EXAMPLES["reports"] == render_reports([report["output"]])
    assert [len(finding.boxes or ()) for finding in read_findings(report["output"])] == [0, 1]


IMAGE_VECTOR, TEXT_VECTOR = np.random.default_rng(0).standard_normal((2, 1024), dtype=np.float32)
HALVES = {"image": (IMAGE_VECTOR, None), "text": (None, TEXT_VECTOR), "both": (IMAGE_VECTOR, TEXT_VECTOR)}


@pytest.mark.parametrize("layout", ["rows", "card", "object"])
@pytest.mark.parametrize("kinds", [(), ("image",), ("text",), ("both",), ("both", "image", "text")], ids="+".join)
@pytest.mark.parametrize("factor", [4.5, None])
def test_every_answer_is_of_the_schema_of_its_layout(layout, kinds, factor):
    rows = [EmbeddingRow(image_features=HALVES[kind][0], text_features=HALVES[kind][1]) for kind in kinds]
    answer = render_answer(rows, scaling_factor=factor, layout=layout)
    validator(f"Embedding{layout.title()}").validate(answer)
    for path in ("/score", "/medimageinsight/score"):
        content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]
        assert {"$ref": f"#/components/schemas/Embedding{layout.title()}"} in content["schema"]["anyOf"]


@pytest.mark.parametrize(
    "answer",
    [
        [{}],
        [{"image_features": [[0.5] * 1023]}],
        [{"image_features": [0.5] * 1024}],
        [{"text_features": [["0.5"] * 1024]}],
        [{"features": []}],
        [{"scaling_factor": "4.5"}],
        {"scaling_factor": None},
        {"error": "x"},
        None,
    ],
)
def test_other_answers_are_not_of_the_schemas(answer):
    assert not validator("EmbeddingRows", "EmbeddingCard", "EmbeddingObject", "Reports").is_valid(answer)


def test_example_of_a_stream_is_one_report_as_it_is_sent():
    text = EXAMPLES["stream"]
    events = [(name, json.loads(data)) for name, data in re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)]
    assert b"".join(event(name, **data) for name, data in events) == text.encode()
    assert [name for name, _ in events] == ["text", "text", "row", "end"]
    assert events[2][1]["status"] == "complete"
    (finding,) = read_findings(events[2][1]["output"])
    assert events[0][1]["text"] + events[1][1]["text"] == f"<obj>{finding.text}</obj>"


def embedding(**input_data):
    return {"input_data": {"columns": ["image", "text"], "data": [["", "a"]], **input_data}}


FORBIDDEN = {
    "EmbeddingRequest": [
        None, [], {}, {"input_data": None}, {"input_data": {"data": []}}, {"input_data": {"columns": ["text"]}},
        embedding(columns=[]), embedding(columns="text"), embedding(columns=["text", "text"]),
        embedding(columns=["txt"]), embedding(columns=[1]), embedding(columns=["frontal_image"]),
        embedding(data=None), embedding(data={}), embedding(data=["a"]), embedding(data=[[]]),
        embedding(data=[[1, "a"]]),
        embedding(data=[["", "a", "b"]]), embedding(data=[{}]), embedding(data=[{"txt": "a"}]),
        embedding(data=[{"text": 1}]), embedding(index=3), embedding(index="0"),
        *(embedding() | {"params": params} for params in (
            [], "a", {"get_scaling_factor": 1}, {"get_scaling_factor": "yes"}, {"get_scaling_factor": "true "},
            {"image_standardization_image_size": -1}, {"image_standardization_image_size": 2049},
            {"image_standardization_image_size": "480"}, {"image_standardization_image_size": 480.5},
            {"image_standardization_image_size": True}, {"image_standardization_jpeg_compression_ratio": 101},
        )),
    ],
    "ReportRequest": [
        {"input_data": STUDY, "params": {"max_new_tokens": 5}}, {"input_data": STUDY, "params": []},
        {"input_data": STUDY | {"columns": ["image"]}}, {"input_data": STUDY | {"data": [["a"] * 8]}},
        {"input_data": STUDY | {"data": [{"indication": "a"}]}},
        {"input_data": STUDY | {"data": [{"frontal_image": ""}]}},
        {"input_data": STUDY | {"data": [{"frontal_image": None}]}}, {"input_data": STUDY | {"data": [[5]]}},
    ],
}  # fmt: skip
ALLOWED = {
    "EmbeddingRequest": [
        embedding(), embedding(index=None), embedding(index=["x"]), embedding(data=[]), embedding(more=1),
        embedding(columns=["text", "image"], data=[["a", None]]), embedding(data=[{"text": "a"}]),
        embedding(columns=["text"], data=[["a"]]), embedding() | {"params": None, "more": 1},
        embedding() | {"params": {"unknown": [1], "get_scaling_factor": "False"}},
        embedding() | {"params": {"get_scaling_factor": None, "image_standardization_image_size": None}},
        embedding() | {"params": {"get_scaling_factor": True, "image_standardization_image_size": 2048}},
    ],
    "ReportRequest": [
        {"input_data": STUDY}, {"input_data": STUDY, "params": None}, {"input_data": STUDY, "params": {}},
        {"input_data": STUDY | {"data": []}}, {"input_data": STUDY | {"data": [{"frontal_image": IMAGE}]}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "request_"), [(name, request) for name in FORBIDDEN for request in FORBIDDEN[name]])
def test_what_the_schema_forbids_is_refused(name, request_):
    assert not validator(name).is_valid(request_)
    assert not accepts(name, request_)


@pytest.mark.parametrize(("name", "request_"), [(name, request) for name in ALLOWED for request in ALLOWED[name]])
def test_what_clients_send_is_of_the_schema(name, request_):
    validator(name).validate(request_)
    assert accepts(name, request_)


@cases(200, damaged_requests())
def test_whatever_is_read_is_of_the_schema(request):
    for name in READERS:
        if accepts(name, request):
            validator(name).validate(json.loads(json.dumps(request)))
