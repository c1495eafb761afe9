"""The OpenAPI document against the meta-schema, the reader of requests and the page that is made of it."""

import json
import re
import shlex
from html.parser import HTMLParser

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given
from schemathesis.specs.openapi.definitions import OPENAPI_30_VALIDATOR

from medimage_client import InvalidInput
from medimage_client.reports.finding import read_findings
from medimage_client.schema.embeddings import EmbeddingRow, render_answer
from medimage_client.schema.reports import render_reports
from medimage_server.endpoint.docs_page import docs_page
from medimage_server.endpoint.openapi import openapi
from medimage_server.endpoint.openapi_examples import EMBEDDING_REQUESTS, IMAGE, REPORT_EVENTS, REPORT_REQUESTS
from tests.client.azure_samples import read_report_requests, read_request
from tests.client.test_azure_fuzz import cases, damaged_requests

BOTH = ("medimageinsight", "cxrreportgen")
DOCUMENT = openapi(BOTH, version="1.2.3", keys=True)
READERS = {"EmbeddingRequest": read_request, "ReportRequest": read_report_requests}
STUDY = {"columns": ["frontal_image"], "data": [[IMAGE]]}


def operations(document):
    return [(path, method, item[method]) for path, item in document["paths"].items() for method in item]


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


def validator(*names):
    choice = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}
    return jsonschema_rs.Draft4Validator(draft_4({**choice, "components": DOCUMENT["components"]}))


def accepts(name, request):
    try:
        READERS[name](request)
    except InvalidInput:
        return False
    return True


@pytest.mark.parametrize("deployments", [BOTH, BOTH[:1], BOTH[1:]], ids="+".join)
@pytest.mark.parametrize("keys", [True, False])
def test_document_is_openapi_and_has_all_that_it_refers_to_and_no_more(deployments, keys):
    document = openapi(deployments, version="1.2.3", keys=keys)
    assert [error.message for error in OPENAPI_30_VALIDATOR.iter_errors(document)] == []
    parts = {f"#/components/{kind}/{name}" for kind, named in document["components"].items() for name in named}
    unnamed = {"#/components/securitySchemes/key"} if keys else {"#/components/headers/WWW-Authenticate"}
    assert parts - set(references(document)) <= unnamed
    assert set(references(document)) <= parts
    assert {"/score"} | {f"/{name}/score" for name in deployments} == {
        path for path in document["paths"] if path.endswith("/score")
    }
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_routes_are_those_of_azures_server_and_our_own():
    assert {(method, path) for path, method, _ in operations(DOCUMENT)} == {
        ("post", "/score"), ("post", "/medimageinsight/score"), ("post", "/cxrreportgen/score"),
        ("get", "/"), ("get", "/live"), ("get", "/status"), ("get", "/metrics"),
        ("get", "/openapi.json"), ("get", "/swagger.json"), ("get", "/docs"),
    }  # fmt: skip


def test_key_is_asked_for_where_it_is_needed_alone():
    asking = {path for path, _, operation in operations(DOCUMENT) if operation.get("security") == [{"key": []}]}
    assert asking == {"/score", "/medimageinsight/score", "/cxrreportgen/score", "/status", "/metrics"}
    assert asking == {
        path for path, _, operation in operations(DOCUMENT) if {"401", "403"} <= set(operation["responses"])
    }
    free = openapi(BOTH, version="1.2.3", keys=False)
    assert "401" not in free["components"]["responses"]
    assert not [path for path, _, operation in operations(free) if "security" in operation]


def test_every_status_of_scoring_is_there_with_its_headers():
    statuses = {200, 400, 401, 403, 404, 405, 408, 413, 415, 424, 429, 500, 503, 504}
    for path in ("/score", "/medimageinsight/score", "/cxrreportgen/score"):
        assert {int(status) for status in DOCUMENT["paths"][path]["post"]["responses"]} == statuses
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


@pytest.mark.parametrize("name", EMBEDDING_REQUESTS)
def test_example_of_an_embedding_request_is_of_the_schema_and_is_read(name):
    request = EMBEDDING_REQUESTS[name]["value"]
    validator("EmbeddingRequest").validate(request)
    rows = read_request(json.dumps(request).encode()).rows
    halves = [("image" if row.image else "") + ("text" if row.text else "") for row in rows]
    expected = {"image-and-text": ["imagetext"], "text-only": ["text"], "image-only": ["image"]}
    assert halves == expected.get(name, ["imagetext", "text", "image", "text"])


@pytest.mark.parametrize("name", REPORT_REQUESTS)
def test_example_of_a_report_request_is_of_the_schema_and_is_read(name):
    request = REPORT_REQUESTS[name]["value"]
    validator("ReportRequest").validate(request)
    (study,) = read_report_requests(json.dumps(request).encode())
    assert study.frontal_image.startswith(b"\x89PNG")
    assert (study.comparison, study.lateral_image) == (
        ("None", study.frontal_image) if name == "study" else (None, None)
    )


def test_examples_of_answers_are_what_is_rendered():
    examples = {name: example["value"] for name, example in DOCUMENT["components"]["examples"].items()}
    vector = np.full(1024, 1 / 32, dtype=np.float32)
    assert np.linalg.norm(vector) == 1
    row = EmbeddingRow(image_features=vector, text_features=vector)
    for layout in ("rows", "card", "object"):
        assert examples[layout] == render_answer([row], scaling_factor=4.513362407684326, layout=layout)
    (report,) = examples["reports"]
    assert examples["reports"] == render_reports([report["output"]])
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


def test_example_of_a_stream_is_read_as_events_of_one_report():
    text = REPORT_EVENTS["stream"]["value"]
    lines = re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
    assert "".join(f"event: {name}\ndata: {data}\n\n" for name, data in lines) == text
    events = [(name, json.loads(data)) for name, data in lines]
    assert [name for name, _ in events] == ["text", "text", "row", "end"]
    assert events[2][1]["status"] == "complete"
    assert len(read_findings(events[2][1]["output"])) == 2


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


@cases(200)
@given(damaged_requests())
def test_whatever_is_read_is_of_the_schema(request):
    for name in READERS:
        if accepts(name, request):
            validator(name).validate(json.loads(json.dumps(request)))


# The page


class Page(HTMLParser):
    """Tags, texts and attributes of a page; tags have to be closed in order."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text, self.blocks = [], [], [], "", []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "pre":
            self.blocks.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if "pre" in self.open:
            self.blocks[-1] += data


HTML = docs_page(DOCUMENT)
PAGE = Page(HTML)


def test_every_route_parameter_and_status_is_on_the_page():
    sections = HTML.split("<section ")[1:]
    for path, method, operation in operations(DOCUMENT):
        (section,) = [part for part in sections if part.startswith(f'id="{operation["operationId"]}"')]
        text = Page("<section " + section.split("</section>")[0] + "</section>").text
        assert f"{method.upper()} {path}" in text
        assert operation["summary"] in text
        assert all(status in text for status in operation["responses"])
        assert all(parameter["name"] in text for parameter in operation["parameters"])
    assert all(f">{name}</summary>" in HTML for name in DOCUMENT["components"]["schemas"])
    assert "Authorization: Bearer KEY" in PAGE.text


def test_page_holds_no_script_and_loads_nothing():
    assert HTML.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(PAGE.tags)
    ids = {value for _, name, value in PAGE.attributes if name == "id"}
    for _, name, value in PAGE.attributes:
        assert name in ("id", "class", "lang", "charset", "name", "content", "href")
        assert name != "href" or value.removeprefix("#") in ids
    assert not re.search(r"url\(|@import|https?:", HTML)


def test_commands_on_the_page_send_the_examples():
    commands = [shlex.split(block) for block in PAGE.blocks if block.startswith("curl")]
    sent = [json.loads(command[command.index("--data") + 1]) for command in commands if "--data" in command]
    embeddings = [example["value"] for example in EMBEDDING_REQUESTS.values()]
    reports = [example["value"] for example in REPORT_REQUESTS.values()]
    assert sent == embeddings + reports + embeddings + reports
    with_key = [command for command in commands if "Authorization: Bearer $KEY" in command]
    assert len(with_key) == len(sent) + 2  # and /status, /metrics
    assert len(commands) == len(sent) + 7


def test_answers_on_the_page_are_shortened():
    blocks = [json.loads(block) for block in PAGE.blocks if block.startswith("[")]
    assert blocks[0][0]["text_features"] == [0.03125, 0.03125, 0.03125, "… 1021 more numbers"]
    assert len(HTML) < 100_000


def test_nothing_of_the_document_becomes_a_tag():
    attack = "<script>alert(1)</script>\"'&`<b>`"
    text = json.dumps(DOCUMENT)
    for value in ("medimage-triton scoring endpoint", "1.2.3", "Whether the process runs.", "It does.", "Alive"):
        assert json.dumps(value) in text
        text = text.replace(json.dumps(value), json.dumps(attack))
    page = Page(docs_page(json.loads(text)))
    assert not {"script", "b"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script>") == 2 + 1 + 2 + 1 + 1  # title and route are there twice
    assert set(page.tags) == set(PAGE.tags)
