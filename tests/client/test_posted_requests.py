"""`score()` at a scoring URI: what is posted, in how many parts, and what is made of the answers."""

import base64
import json
import traceback
from types import MappingProxyType

import numpy as np
import pytest

from medimage_client import CXRReportGen, MedImageInsight, errors
from medimage_client.images.encoding import encode_image
from tests.client.fake_reports import OUTPUT
from tests.client.http_server import serving
from tests.client.scoring_server import SCALING_FACTOR, Handler, event


@pytest.fixture
def client(server):
    with MedImageInsight(f"{server}/score", retries=0) as client:
        yield client


@pytest.fixture
def reports(server):
    with CXRReportGen(f"{server}/score", retries=0) as client:
        yield client


@pytest.fixture
def film(grey):
    return base64.encodebytes(encode_image(grey(7))).decode()  # with line breaks


def table(columns, data, **more):
    return {"input_data": {"columns": columns, "data": data}, **more}


def n_rows(body):
    return len(body["input_data"]["data"])


# ---- one call


def test_request_goes_as_it_was_given(client, endpoint, film, tmp_path):
    given = json.dumps(table(["text", "image"], [["ä", film], {"text": "b"}], params={"other": 1}), indent=3)
    file = tmp_path / "request.json"
    file.write_text(given)
    answers = [client.score(form) for form in (given, given.encode(), file)]
    assert endpoint.texts == [given.encode()] * 3
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("wrap", [dict, MappingProxyType], ids=["dict", "mapping"])
def test_decoded_request_goes_as_its_own_json(client, endpoint, film, wrap):
    request = table(["image", "text"], [[film, ""], [None, "abc"]], params={"image_standardization_image_size": 480})
    client.score(wrap({name: wrap(value) for name, value in request.items()}))
    assert endpoint.bodies() == [request]


def test_answer_is_that_of_a_triton_in_every_layout(client, endpoint, film, unit_vectors):
    request = table(["image", "text"], [[film, "abc"], ["", "de"]])
    e2, e3, e7 = unit_vectors([2, 3, 7]).tolist()
    assert client.score(request) == [
        {"image_features": [e7], "text_features": e3, "scaling_factor": SCALING_FACTOR},
        {"text_features": e2, "scaling_factor": SCALING_FACTOR},
    ]
    card = [{"image_features": [e7]}, {"text_features": [e3, e2]}, {"scaling_factor": SCALING_FACTOR}]
    assert client.score(request, layout="card") == card
    assert client.score(request, layout="object") == {key: value for part in card for key, value in part.items()}
    assert {headers["medimage-layout"] for _, headers, _ in endpoint.requests} == {"rows"}


def test_scaling_factor_is_not_there_unless_asked_for(client):
    (row,) = client.score(table(["text"], [["abc"]], params={"get_scaling_factor": False}))
    assert [*row] == ["text_features"]


def test_no_rows_are_an_empty_answer_without_a_call(client, reports, endpoint):
    assert client.score(table(["text"], [])) == []
    assert client.score(table(["text"], []), layout="object") == {}
    assert reports.score(table(["frontal_image"], [])) == []
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        (table(["image"], [["?"]]), {}, "row 0, column 'image': is not valid base64"),
        (table(["text"], [["a"], [""]]), {}, "row 1, columns 'image' and 'text': both are empty"),
        (table(["text"], [["a"]]), {"resize": "client"}, "resize='client' has no place in Azure's JSON"),
        (table(["text"], [["a"]], params={"x": float("nan")}), {}, "the request holds what JSON cannot; "),
        (table(["text"], [["a"]], params={"x": b"Jane"}), {}, "the request holds what JSON cannot; "),
    ],
    ids=["base64", "empty", "resize", "nan", "bytes"],
)
def test_what_is_wrong_is_said_before_anything_is_sent(client, endpoint, request_, options, message):
    with pytest.raises(errors.InvalidInput) as refused:
        client.score(request_, **options)
    assert str(refused.value).startswith(message)
    assert "Jane" not in "".join(traceback.format_exception(refused.value))
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([{"text_features": [1.0] * 1023}], "'text_features' of the endpoint's answer has 1023 numbers in a row; "),
        ([{"image_features": [[1.0] * 1024]}], "a row of the endpoint's answer has no 'text_features'"),
        ([{"text_features": [1.0] * 1024}], "a row of the endpoint's answer has no 'scaling_factor'"),
        ([], "the endpoint answered 0 rows; expected 1, as many as sent"),
        ({"text_features": ["Jane"]}, "HTTP 200 and a body that is not a scoring endpoint's"),
    ],
)
def test_answer_that_is_none_is_told_without_its_content(client, endpoint, answer, message):
    endpoint.answers = [(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())]
    with pytest.raises(errors.ResponseError) as failed:
        client.score(table(["text"], [["a"]]))
    assert str(failed.value).startswith(message)
    assert "Jane" not in "".join(traceback.format_exception(failed.value))


# ---- parts


def test_rows_beyond_the_endpoints_limit_go_in_another_call(client, endpoint, unit_vectors):
    texts = ["x" * (1 + n % 500) for n in range(1025)]
    answer = client.score(table(["text"], [[text] for text in texts], index=None, params={"get_scaling_factor": False}))
    assert np.array_equal([row["text_features"] for row in answer], unit_vectors([*map(len, texts)]))
    assert sorted(map(n_rows, endpoint.bodies())) == [1, 1024]
    assert {body["params"]["get_scaling_factor"] for body in endpoint.bodies()} == {False}


def test_bytes_beyond_the_endpoints_limit_go_in_another_call_on_borders_of_rows(client, endpoint, grey, monkeypatch):
    cells = [base64.b64encode(encode_image(grey(value))).decode() for value in range(5)]
    monkeypatch.setattr("medimage_client.schema.parts.MAX_BODY_BYTES", 2 * len(cells[0]) + 50)
    rows = [[cell] if n % 2 else {"image": cell} for n, cell in enumerate(cells)]
    answer = client.score(json.dumps(table(["image"], rows)))
    assert [int(np.argmax(row["image_features"])) for row in answer] == [0, 1, 2, 3, 4]
    parts = sorted((body["input_data"]["data"] for body in endpoint.bodies()), key=lambda part: rows.index(part[0]))
    assert parts == [rows[:2], rows[2:4], rows[4:]]


def test_row_at_fault_in_a_later_part_has_the_callers_own_number(endpoint, film):
    class Fussy(Handler):
        def answer(self, status, headers, body):
            if n_rows(self.endpoint.bodies()[-1]) == 2:  # the second part
                told = {"message": f"row 1, column '{self.column}': is no image", "row": 1, "column": self.column}
                status, body = self.status, json.dumps(told).encode()
            super().answer(status, headers, body)

    def failed(column, status, call):
        endpoint.events = None
        handler = type("FussyHandler", (Fussy,), {"endpoint": endpoint, "column": column, "status": status})
        with serving(handler) as url, pytest.raises(errors.MedImageError) as failed:
            call(f"{url}/score")
        return failed.value

    def embeddings(url):
        with MedImageInsight(url, retries=0, concurrency=1) as client:
            client.score(table(["text"], [["a"]] * 1026))

    def studies(url):
        with CXRReportGen(url, retries=0, concurrency=1) as reports:
            reports.score(table(["frontal_image"], [[film]] * 12))

    refused = failed("text", 400, embeddings)
    assert (str(refused), refused.row) == ("row 1025, column 'text': is no image", 1025)
    refused = failed("frontal_image", 400, studies)
    assert (str(refused), refused.row) == ("row 11, column 'frontal_image': is no image", 11)
    assert failed("frontal_image", 424, studies).row == 11


# ---- reports


def done(row, output):
    return event("row", row=row, output=output, status="complete")


def test_reports_of_one_call_come_as_events_in_any_order(reports, endpoint, film):
    endpoint.events = [event("text", row=1, text="x"), done(1, "[1]"), b": waiting\n\n", done(0, "[0]"), event("end")]
    request = json.dumps(table(["frontal_image", "indication"], [[film, "a"], [film, ""]]))
    assert reports.score(request) == [{"output": "[0]"}, {"output": "[1]"}]
    assert endpoint.texts == [request.encode()]
    ((_, headers, _),) = endpoint.requests
    assert headers["Accept"] == "text/event-stream, application/json"


def test_more_than_ten_reports_go_in_another_call(reports, endpoint, film):
    endpoint.events = None
    assert reports.score(table(["frontal_image"], [[film]] * 12)) == [{"output": OUTPUT}] * 12
    assert sorted(map(n_rows, endpoint.bodies())) == [2, 10]


def test_report_that_fails_is_named_by_its_row(reports, endpoint, film):
    message = "row 1, column 'lateral_image': is no image"
    failure = event("error", row=1, column="lateral_image", message=message, status=400, request_id="r1")
    endpoint.events = [done(0, "[]"), failure]
    with pytest.raises(errors.InvalidInput) as refused:
        reports.score(table(["frontal_image"], [[film]] * 2))
    error = refused.value
    assert (str(error), error.reason) == (message, "is no image")
    assert (error.row, error.column, error.request_id) == (1, "lateral_image", "r1")


NO_EVENT = "HTTP 200 and a body that is not a scoring endpoint's; is this a scoring URI?"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([done(0, "Jane"), event("end")], "the stream ended before its report"),
        ([done(2, "Jane")], NO_EVENT),
        ([done(True, "Jane")], NO_EVENT),
        ([done(0, None)], NO_EVENT),
        ([b"event: row\ndata: Jane\n\n"], NO_EVENT),
    ],
    ids=["missing", "too-many", "boolean", "null", "no-json"],
)
def test_events_that_are_no_reports_are_told_without_their_content(reports, endpoint, film, events, message):
    endpoint.events = events
    with pytest.raises(errors.ResponseError) as failed:
        reports.score(table(["frontal_image"], [[film]] * 2))
    assert str(failed.value) == message
    assert "Jane" not in "".join(traceback.format_exception(failed.value))
