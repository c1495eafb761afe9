"""Both clients against a scoring URI: this project's endpoint, Azure's own, and servers that are neither."""

import base64
import json
import shutil
import ssl
import subprocess
import threading
import time
import traceback
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
from click.testing import CliRunner

from medimage_client import CXRReportGen, MedImageInsight, errors
from medimage_client.cli.group import medimage
from medimage_client.images.encoding import encode_image
from medimage_client.wire.scoring import ScoringEndpoint
from medimage_client.wire.scoring_messages import read_events
from tests.client.azure_samples import read_report_requests, read_request
from tests.client.fake_reports import MODEL, OUTPUT, PIECES, PROGRESS_TOLD, TIMING
from tests.client.http_server import serving
from tests.client.scoring_server import REPORT_EVENTS, SCALING_FACTOR, WAIT_S, Endpoint, Handler, event

KEY = "k3y-0f.the_endpoint+/="
NOT_SCORING = "HTTP {} and a body that is not a scoring endpoint's; is this a scoring URI?"


@pytest.fixture
def client(server):
    with MedImageInsight(f"{server}/score", api_key=KEY, retries=0) as client:
        yield client


@pytest.fixture
def reports(server):
    with CXRReportGen(f"{server}/score", api_key=KEY, retries=0) as client:
        yield client


@pytest.fixture
def film(grey):
    return grey(7)


# ---- embeddings


def test_images_travel_as_azures_rows_with_the_key(client, endpoint, grey, unit_vectors):
    images = [grey(value) for value in range(6)]
    features = client.embed_images(images, image_standardization_image_size=480)
    assert features.dtype == np.float32
    assert np.array_equal(features, unit_vectors(range(6)))
    assert sorted(len(body["input_data"]["data"]) for body in endpoint.bodies()) == [2, 4]
    for path, headers, body in endpoint.requests:
        assert path == "/score"
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert headers["Content-Type"] == "application/json"
        assert headers["medimage-layout"] == "rows"
        assert "azureml-model-deployment" not in {name.lower() for name in headers}
        assert [*body] == ["input_data", "params"]
        assert body["input_data"]["columns"] == ["image"]
        assert body["params"] == {"get_scaling_factor": True, "image_standardization_image_size": 480}
    sent = sorted(base64.b64decode(cell) for body in endpoint.bodies() for (cell,) in body["input_data"]["data"])
    assert sent == sorted(map(encode_image, images))


def test_texts_travel_as_they_are(client, endpoint, unit_vectors):
    texts = ["abc", 'quote " and \\ and\nline', "Füße 🩻", "\u2028\x00"]
    assert np.array_equal(client.embed_texts(texts), unit_vectors([*map(len, texts)]))
    (body,) = endpoint.bodies()
    assert body == {
        "input_data": {"columns": ["text"], "data": [[text] for text in texts]},
        "params": {"get_scaling_factor": True},
    }
    assert [row.text for row in read_request(body).rows] == texts


def test_file_of_many_megabytes_arrives_whole(client, endpoint, grey, unit_vectors):
    file = encode_image(grey(9)) + bytes(range(256)) * 2**14  # Pillow stops at the image's end
    assert np.array_equal(client.embed_images([file]), unit_vectors([9]))
    ((cell,),) = endpoint.bodies()[0]["input_data"]["data"]
    assert base64.b64decode(cell) == file


def test_scores_and_probabilities_are_those_of_the_vectors(client, grey):
    image, text = grey(3), "abc"
    (row,) = client.score({"input_data": {"columns": ["image", "text"], "data": [[b64(image), text]]}})
    assert np.shape(row["image_features"]) == (1, 1024)
    assert np.argmax(row["image_features"]) == np.argmax(row["text_features"]) == 3
    assert row["scaling_factor"] == SCALING_FACTOR
    (scores,) = client.classify([image], ["abc", "abcd"])
    likely = np.exp(np.exp(SCALING_FACTOR))  # of cosine 1, of the other exp(0)
    assert scores == pytest.approx([likely / (likely + 1), 1 / (likely + 1)])


def test_recorded_answer_of_azure_is_read_to_the_bit(client, endpoint, film, recorded_answer):
    (recorded,) = recorded_answer
    answer = json.dumps([{**recorded, "scaling_factor": SCALING_FACTOR}]).encode()
    endpoint.answers = [(200, {}, answer), (200, {}, answer)]
    answers = {"image_features": client.embed_images([film]), "text_features": client.embed_texts(["a"])}
    for name, features in answers.items():
        assert np.array_equal(features.ravel(), np.array(recorded[name], np.float32).ravel())


def b64(image):
    return base64.encodebytes(encode_image(image)).decode()


# ---- what is refused before anything is sent


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client, film: client.embed_images([film], resize="client"), "resize='client' has no place"),
        (lambda client, film: client.embed_texts(["a", ""]), "texts[1]: is empty, which is no input in Azure's JSON"),
        (lambda client, film: client.classify([film], [""]), "labels[0]: is empty, which is no input in Azure's JSON"),
    ],
    ids=["resize", "text", "label"],
)
def test_what_azures_json_cannot_say_is_refused(client, endpoint, film, call, message):
    with pytest.raises(errors.InvalidInput) as refused:
        call(client, film)
    assert str(refused.value).startswith(message)
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"mode": "findings"}, "mode"),
        ({"mode": "phrase", "phrase": "Jane's opacity"}, "mode"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"constrained": True}, "constrained"),
    ],
    ids=["mode", "phrase", "max_new_tokens", "constrained"],
)
def test_options_of_reports_that_azure_has_not_are_refused(reports, endpoint, film, options, name):
    for call in (reports.report, lambda *args, **options: list(reports.stream(*args, **options))):
        with pytest.raises(errors.InvalidInput) as refused:
            call(film, **options)
        assert str(refused.value).startswith(f"{name} has no place in Azure's JSON, all that a scoring URI takes; ")
        assert "Jane" not in str(refused.value)
    assert endpoint.requests == []


@pytest.mark.parametrize(
    "key",
    ["", "a b", "Jane\n", "Jane\r\nHost: x", "Jän", "Jane\x7f", "\tJane"],
    ids=["empty", "space", "newline", "header", "umlaut", "delete", "tab"],
)
@pytest.mark.parametrize("client_type", [MedImageInsight, CXRReportGen])
def test_key_that_no_header_can_carry_is_refused(client_type, key):
    with pytest.raises(errors.InvalidInput) as refused:
        client_type("https://host/score", api_key=key)
    assert str(refused.value) == "api_key is empty, not ASCII or has white space in it; expected the key alone"


@pytest.mark.parametrize(
    "url", ["grpc://host:8001", "http://host:8000", "https://host/score/v2", "https://host/my-score"]
)
@pytest.mark.parametrize("client_type", [MedImageInsight, CXRReportGen])
def test_key_for_a_triton_is_refused(client_type, url):
    with pytest.raises(errors.InvalidInput) as refused:
        client_type(url, api_key=KEY)
    assert str(refused.value) == "api_key is for a scoring URI, https://host/score; a Triton server has no keys"


def test_shared_memory_with_a_scoring_uri_is_refused():
    with pytest.raises(errors.InvalidInput, match="shared_memory is for the url of a Triton server"):
        MedImageInsight("http://localhost:5001/score", shared_memory=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@host/score",
        "https://host/score?key=secret",
        "https://host/score#secret",
        "https:///score",
        "https://host:port/score",
        "https://host:0/score",
    ],
)
def test_scoring_uri_with_more_in_it_is_refused_without_its_secrets(url):
    with pytest.raises(errors.InvalidInput) as refused:
        MedImageInsight(url)
    assert str(refused.value).startswith("url is not https://host/score; ")
    assert "secret" not in str(refused.value)


# ---- errors


STATUSES = [  # status, message, type of the error; None where the endpoint's own text is not kept
    (400, "'data' is missing or null; expected a list of rows", errors.InvalidInput),
    (401, "the key is missing", errors.ResponseError),
    (403, "the key is wrong", errors.ResponseError),
    (404, "no deployment of this name", errors.NotFound),
    (405, "expected POST", errors.ResponseError),
    (408, "the body came too slowly", errors.RequestTimeout),
    (413, "the body is larger than 64 MB", errors.ResponseError),
    (415, "expected application/json", errors.ResponseError),
    (424, "the model failed", errors.ServerError),
    (429, "64 requests are under way already", errors.Unavailable),
    (500, "An unexpected error occurred in scoring script. Check the logs for more info.", errors.ServerError),
    (502, "no server", errors.ServerError),
    (503, "no Triton can be reached", errors.Unavailable),
    (503, "medimageinsight is not ready", errors.NotReady),
    (504, "no answer within 120 s", errors.RequestTimeout),
]


@pytest.mark.parametrize(("status", "message", "error_type"), STATUSES)
def test_message_of_the_endpoint_is_that_of_the_error(client, reports, endpoint, film, status, message, error_type):
    for call in (
        lambda: client.embed_texts(["Jane"]),
        lambda: reports.report(film),
        lambda: list(reports.stream(film)),
    ):
        endpoint.refuse(status, message.replace(" ", "\n", 1))
        with pytest.raises(errors.MedImageError) as failed:
            call()
        assert (type(failed.value), str(failed.value), failed.value.status) == (error_type, message, status)


@pytest.mark.parametrize("status", [400, 404, 408, 413, 424, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    "body",
    [b"<html>Jane</html>", b"", b'["Jane"]', b'{"detail": "Jane"}', b'{"message": {"a": "Jane"}}', b'{"message": " "}'],
    ids=["page", "nothing", "list", "other", "object", "blank"],
)
def test_body_without_a_message_is_not_shown(client, endpoint, status, body):
    endpoint.answers = [(status, {}, body)]
    with pytest.raises(errors.MedImageError) as failed:
        client.embed_texts(["a"])
    assert (str(failed.value), failed.value.status) == (NOT_SCORING.format(status), status)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_is_told_whatever_the_body(client, endpoint, status):
    endpoint.answers = [(status, {}, b"key_auth_bad_header_forbidden")]
    with pytest.raises(errors.ResponseError) as failed:
        client.embed_texts(["a"])
    assert str(failed.value) == f"HTTP {status}, the server refuses the key or needs one"
    assert failed.value.status == status


def test_missing_key_is_told(server, endpoint):
    endpoint.refuse(401, "no key")
    with MedImageInsight(f"{server}/score") as client, pytest.raises(errors.ResponseError) as failed:
        client.embed_texts(["a"])
    assert str(failed.value) == "no key; expected api_key, which was not given"
    ((_, headers, _),) = endpoint.requests
    assert "Authorization" not in headers


def test_open_server_needs_no_key(server, unit_vectors):
    with MedImageInsight(f"{server}/score") as client:
        assert np.array_equal(client.embed_texts(["abc"]), unit_vectors([3]))


@pytest.mark.parametrize("status", [400, 401, 500])
def test_key_is_in_no_error_even_if_the_server_repeats_it(client, reports, endpoint, film, status):
    for call in (lambda: client.embed_texts(["a"]), lambda: reports.report(film)):
        endpoint.refuse(status, f"Bearer {KEY} is wrong", column=KEY, request_id=f"x{KEY}")
        with pytest.raises(errors.MedImageError) as failed:
            call()
        assert str(failed.value) == "Bearer [api_key] is wrong"
        assert KEY not in "".join(traceback.format_exception(failed.value)) + repr(vars(failed.value))


async def test_key_is_in_no_repr(client, reports):
    endpoint = ScoringEndpoint.parse("https://localhost/score", KEY)
    transport = endpoint.connect()
    assert KEY not in f"{client!r}{reports!r}{endpoint!r}{transport!r}{vars(transport)!r}"
    await transport.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(client, endpoint, server, status):
    elsewhere = Endpoint()
    with serving(type("Elsewhere", (Handler,), {"endpoint": elsewhere})) as url:
        endpoint.answers = [(status, {"Location": f"{url}/score"}, b"")]
        with pytest.raises(errors.ResponseError) as failed:
            client.embed_texts(["a"])
    assert str(failed.value).startswith(f"HTTP {status}, a redirect, which is not followed; ")
    assert elsewhere.requests == []


def test_row_at_fault_has_the_callers_own_name(client, endpoint, grey):
    def score():
        client.score({"input_data": {"columns": ["image"], "data": [[b64(grey(value))] for value in range(4)]}})

    calls = [
        (lambda: client.embed_images([grey(value) for value in range(3)]), "image", "images[2]: "),
        (lambda: client.embed_texts(["a", "b", "c"]), "text", "texts[2]: "),
        (lambda: client.classify([grey(1)], ["a", "b", "c"]), "text", "labels[2]: "),
        (score, "image", "row 2, column 'image': "),
    ]
    for call, column, name in calls:
        reason = "is row 1, column 'x': of something"
        endpoint.refuse(400, f"row 2, column '{column}': {reason}", row=2, column=column)
        with pytest.raises(errors.InvalidInput) as refused:
            call()
        error = refused.value
        assert str(error) == f"{name}{reason}"
        assert (error.reason, error.row, error.column, error.status, error.request_id) == (reason, 2, column, 400, "r1")


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("param 'x' is row 2, column 'text': wrong", {}),
        ("row 2, column 'text': wrong", {}),  # a text is not taken apart
        ("row 2, column 'text': wrong", {"row": "2", "column": 3}),
        ("row 2, column 'text': wrong", {"row": True, "column": "Jane's"}),
    ],
)
def test_message_on_no_row_is_kept(client, endpoint, message, place):
    endpoint.refuse(400, message, **place)
    with pytest.raises(errors.InvalidInput) as refused:
        client.embed_texts(["a", "b", "c"])
    assert str(refused.value) == message


def test_row_at_fault_in_a_later_request_has_the_callers_own_name(endpoint, grey):
    class Fussy(Handler):
        def answer(self, status, headers, body):
            if len(self.endpoint.bodies()[-1]["input_data"]["data"]) == 2:  # the request with images 4 and 5
                told = {"message": "row 1, column 'image': is no image", "row": 1, "column": "image"}
                status, body = 400, json.dumps(told).encode()
            super().answer(status, headers, body)

    with (
        serving(type("FussyHandler", (Fussy,), {"endpoint": endpoint})) as url,
        MedImageInsight(f"{url}/score", concurrency=1) as client,
        pytest.raises(errors.InvalidInput) as refused,
    ):
        client.embed_images([grey(value) for value in range(6)])
    assert str(refused.value) == "images[5]: is no image"


@pytest.mark.parametrize(
    ("message", "column", "of_report", "of_score"),
    [
        (
            "row 0, column 'lateral_image': is no image",
            "lateral_image",
            "lateral_image: ",
            "row 0, column 'lateral_image': ",
        ),
        ("row 0: is no image", None, "", "row 0: "),
    ],
)
def test_column_at_fault_has_the_callers_own_name(reports, endpoint, film, message, column, of_report, of_score):
    request = {"input_data": {"columns": ["frontal_image"], "data": [[b64(film)]]}}
    calls = [
        (lambda: reports.report(film), None, of_report),
        (lambda: list(reports.stream(film)), None, of_report),
        (lambda: reports.score(request), 0, of_score),
    ]
    for call, row, name in calls:
        endpoint.refuse(400, message, row=0, column=column)
        with pytest.raises(errors.InvalidInput) as refused:
            call()
        assert str(refused.value) == f"{name}is no image"
        assert (refused.value.reason, refused.value.row, refused.value.column) == ("is no image", row, column)


def test_error_names_the_request_as_the_endpoints_log_does(client, endpoint):
    endpoint.refuse(424, "the model failed")
    endpoint.answers.append((502, {"x-request-id": "r2"}, b"<html>"))
    for request_id in ("r1", "r2"):
        with pytest.raises(errors.ServerError) as failed:
            client.embed_texts(["a"])
        assert failed.value.request_id == request_id


UNIT = [1.0] + [0.0] * 1023
ONE_NUMBER = "'{}' of the endpoint's answer is not one list of numbers a row"


def rows(*rows):
    return json.dumps(rows)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>Jane</html>", NOT_SCORING.format(200)),
        ("", NOT_SCORING.format(200)),
        ('{"text_features": ["Jane"]}', NOT_SCORING.format(200)),
        ('["Jane", "Jane"]', NOT_SCORING.format(200)),
        ("[" * 100_000, NOT_SCORING.format(200)),
        ("\udcff".encode(errors="surrogateescape"), NOT_SCORING.format(200)),
        (rows(), "the endpoint answered 0 rows; expected 2, as many as sent"),
        (rows({"text_features": UNIT}), "the endpoint answered 1 rows; expected 2, as many as sent"),
        (rows({}, {}), "a row of the endpoint's answer has no 'text_features'"),
        (rows(*[{"text_features": UNIT}] * 2), "a row of the endpoint's answer has no 'scaling_factor'"),
        (rows(*[{"text_features": "Jane"}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": ["Jane"] * 1024}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": ["1.5"] * 1024}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": [True] * 1024}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": None}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": {"Jane": 1}}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": []}] * 2), ONE_NUMBER.format("text_features")),
        (rows({"text_features": UNIT}, {"text_features": UNIT[1:]}), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": [UNIT, UNIT]}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": [[UNIT]]}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": [*UNIT[1:], float("nan")]}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": [*UNIT[1:], 1e300]}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": [*UNIT[1:], 10**400]}] * 2), ONE_NUMBER.format("text_features")),
        (rows(*[{"text_features": UNIT, "scaling_factor": "Jane"}] * 2), ONE_NUMBER.format("scaling_factor")),
        (
            rows(*[{"text_features": UNIT[1:], "scaling_factor": 4.5}] * 2),
            "medimageinsight_text answered text_features of shape (2, 1023); expected (2, 1024)",
        ),
    ],
)
def test_answer_that_is_none_is_told_without_its_content(client, endpoint, body, message):
    endpoint.answers = [(200, {"Content-Type": "application/json"}, body if isinstance(body, bytes) else body.encode())]
    with pytest.raises(errors.ResponseError) as failed:
        client.embed_texts(["Jane", "Joe"])
    assert str(failed.value) == message
    assert "Jane" not in "".join(traceback.format_exception(failed.value)).replace('["Jane", "Joe"]', "")


@pytest.mark.parametrize(
    "answer",
    [
        b"Jane has a cough\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nJane has a cough\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nJane has a cough\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nJane has a cough\r\n",
        b"HTTP/1.1 500 Jane\r\nContent-Length: 99\r\n\r\nJane has a cough\r\n",
        b"",
    ],
    ids=["status", "header", "chunk-size", "cut", "cut-error", "nothing"],
)
def test_http_that_is_damaged_is_a_transport_error(film, answer):
    class Damaged(Handler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(answer)
            self.close_connection = True

    with (
        serving(Damaged) as url,
        MedImageInsight(f"{url}/score", retries=0) as client,
        CXRReportGen(f"{url}/score", retries=0) as reports,
    ):
        for call in (lambda: client.embed_images([film]), lambda: reports.report(film)):
            with pytest.raises(errors.TransportError, match="cannot reach the server: ") as failed:
                call()
            assert "Jane" not in "".join(traceback.format_exception(failed.value))


def test_nobody_listening_is_a_transport_error_and_not_ready(film):
    url = "http://127.0.0.1:1/score"  # a port nobody uses
    with MedImageInsight(url, retries=0) as client, CXRReportGen(url, retries=0) as reports:
        for call in (
            lambda: client.embed_texts(["a"]),
            lambda: reports.report(film),
            lambda: next(reports.stream(film)),
        ):
            with pytest.raises(errors.TransportError, match="cannot reach the server: "):
                call()
        assert (client.is_ready(), reports.is_ready()) == (False, False)


# ---- waiting and readiness


@pytest.mark.parametrize("status", [429, 503])
def test_overloaded_endpoint_is_asked_again_not_before_it_wants(server, endpoint, unit_vectors, no_delay, status):
    endpoint.refuse(status, "full", {"Retry-After": "1"})
    with MedImageInsight(f"{server}/score") as client:
        start = time.monotonic()
        assert np.array_equal(client.embed_texts(["abc"]), unit_vectors([3]))
        assert 1 <= time.monotonic() - start < WAIT_S
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({}, 0),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "1e3"}, 0),
        ({"Retry-After": "9" * 5000}, 0),
    ],
    ids=["seconds", "zero", "none", "date", "negative", "exponent", "long"],
)
def test_error_says_how_long_the_endpoint_asks_to_wait(client, endpoint, header, seconds):
    endpoint.refuse(429, "full", header)
    with pytest.raises(errors.Unavailable) as refused:
        client.embed_texts(["a"])
    assert refused.value.retry_after_s == seconds


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://host/score", "https://host/"),
        ("https://host:8443/score/", "https://host:8443/"),
        ("http://host/medimageinsight/score", "http://host/"),
        ("http://host/cxrreportgen/score", "http://host/"),
        ("https://host/a/b/score", "https://host/a/b/"),
        ("https://host/a/medimageinsight/score", "https://host/a/"),
        ("http://medimageinsight/score", "http://medimageinsight/"),
        ("http://[::1]:5001/score", "http://[::1]:5001/"),
    ],
)
def test_health_is_told_where_the_path_of_scoring_begins(url, root):
    assert ScoringEndpoint.parse(url, None).root == root


def test_endpoint_that_says_so_is_ready(server, endpoint):
    clients = MedImageInsight(f"{server}/a/medimageinsight/score", api_key=KEY), CXRReportGen(f"{server}/score")
    for client in clients:
        with client:
            endpoint.healthy = True
            assert client.is_ready() is True
            endpoint.healthy = False
            assert client.is_ready() is False
    assert [path for path, _, _ in endpoint.requests] == ["/a/", "/a/", "/", "/"]


@pytest.mark.parametrize("path", ["/score", "/medimageinsight/score", "/a/b/score", "/score/"])
def test_requests_go_to_the_uri_as_it_is(server, endpoint, path):
    with MedImageInsight(server + path) as client:
        client.embed_texts(["a"])
    assert [path for path, _, _ in endpoint.requests] == [path.rstrip("/")]


# ---- reports


def test_study_travels_as_azures_row(reports, endpoint, film, grey):
    reports.report(film, lateral=grey(8), prior=grey(9), indication='Füße "', comparison="None", prior_report="a\nb")
    ((path, headers, body),) = endpoint.requests
    assert path == "/score"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Accept"] == "text/event-stream, application/json"
    assert [*body] == ["input_data"]
    (study,) = read_report_requests(body)
    images = study.frontal_image, study.lateral_image, study.prior_image
    assert images == tuple(map(encode_image, (film, grey(8), grey(9))))
    texts = study.indication, study.technique, study.comparison, study.prior_report
    assert texts == ('Füße "', None, "None", "a\nb")


async def events_of(stream):
    async def lines():
        for line in stream.splitlines(keepends=True):
            yield line

    return [each async for each in read_events(lines())]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (
            b"data: The first.\n\ndata: The second, it\ndata: has two lines.\n\n",
            [b"The first.", b"The second, it\nhas two lines."],
        ),
        (b": test\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n", [b"first", b"second", b" third"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
        (b"data:test\n\ndata: test\n\n", [b"test", b"test"]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [b"YHOO\n+2\n10"]),
    ],
    ids=["two-lines", "comment-and-id", "empty", "space", "three-lines"],
)
async def test_events_are_those_of_the_examples_in_the_html_standard(stream, data):
    assert await events_of(stream) == [(b"message", each) for each in data]


async def test_event_has_its_own_name():
    events = await events_of(b"event: add\ndata: 1\n\ndata: 2\r\n\r\nevent:remove\ndata: 3\n\n")
    assert events == [(b"add", b"1"), (b"message", b"2"), (b"remove", b"3")]


def test_report_comes_with_its_status_and_in_pieces(reports, endpoint, film):
    report = reports.report(film)
    assert (report.text, report.status) == ("Heart is normal. Opacity.", "complete")
    stream = reports.stream(film)
    assert list(stream) == list(PIECES)
    assert stream.report == report
    endpoint.events = (event("row", row=0, output="[]", status="truncated"), event("end"))
    assert reports.report(film).status == "truncated"
    assert reports.report(film).model is None


def test_report_of_an_endpoint_tells_its_model(reports, endpoint, film):
    endpoint.events = (event("row", row=0, output="[]", status="complete", model=MODEL.to_json()), event("end"))
    assert reports.report(film).model == MODEL
    endpoint.events = (event("row", row=0, output="[]", status="complete", model=5), event("end"))
    with pytest.raises(errors.ResponseError, match="not a scoring endpoint"):
        reports.report(film)


def test_report_of_an_endpoint_tells_its_progress_and_its_times(reports, endpoint, film):
    told = []
    progress = [event("progress", row=0, progress=progress.to_json()) for progress in PROGRESS_TOLD]
    row = event("row", row=0, output=OUTPUT, status="complete", timing=TIMING.to_json())
    endpoint.events = (*progress, *REPORT_EVENTS[:-2], row, event("end"))
    stream = reports.stream(film, on_progress=told.append)
    assert (list(stream), told, stream.report.timing) == (list(PIECES), [*PROGRESS_TOLD], TIMING)
    assert reports.report(film).timing == TIMING
    assert list(reports.stream(film)) == list(PIECES)


EVENTS = b"".join(REPORT_EVENTS)


WRITTEN = {
    "one-chunk": [EVENTS],
    "bytes": [bytes([byte]) for byte in EVENTS],
    "crlf": [EVENTS.replace(b"\n", b"\r\n")],
    "crlf-bytes": [bytes([byte]) for byte in EVENTS.replace(b"\n", b"\r\n")],
    "comments": [b": waiting\n\n", EVENTS.replace(b"\n\n", b"\n\n: waiting\n\n"), b": waiting\n\n"],
    "comments-inside": [b": waiting\n" + EVENTS.replace(b"data:", b": waiting\ndata:")],
    "no-space": [EVENTS.replace(b": ", b":")],
    "unknown": [b'retry: 5\nid: 3\n\ndata: {"text": "no"}\n\nevent: news\ndata: [1]\n\n', EVENTS],
    "two-lines": [EVENTS.replace(b'data: {"row": 0,', b'data: {"row": 0,\ndata: ')],
    "half-event": [EVENTS, b"event: text\ndata: half an event at the end"],
    "no-data": [EVENTS, b"event: end\n\n"],
}


@pytest.mark.parametrize("chunks", WRITTEN.values(), ids=WRITTEN)
def test_events_are_read_however_they_come(reports, endpoint, film, chunks):
    endpoint.events = chunks
    stream = reports.stream(film)
    assert list(stream) == list(PIECES)
    assert stream.report.text == "Heart is normal. Opacity."
    assert reports.report(film) == stream.report


@pytest.mark.parametrize(("status", "message", "error_type"), [row for row in STATUSES if row[0] != 405])
def test_report_that_fails_after_its_start_gives_its_pieces_and_the_error(
    reports, endpoint, film, status, message, error_type
):
    failure = event("error", row=0, message=message, status=status, request_id="r1")
    endpoint.events = (*REPORT_EVENTS[:2], failure)
    stream = reports.stream(film)
    assert [next(stream), next(stream)] == list(PIECES[:2])
    for call in (lambda: next(stream), lambda: reports.report(film)):
        with pytest.raises(errors.MedImageError) as failed:
            call()
        assert (type(failed.value), str(failed.value), failed.value.status) == (error_type, message, status)


def test_failure_after_the_start_names_the_callers_image_and_no_key(reports, endpoint, film):
    message = f"row 0, column 'prior_image': is no image, {KEY}"
    endpoint.events = (event("error", row=0, column="prior_image", message=message, status=400, request_id="r1"),)
    with pytest.raises(errors.InvalidInput) as failed:
        reports.report(film)
    assert str(failed.value) == "prior_image: is no image, [api_key]"
    assert (failed.value.row, failed.value.column, failed.value.request_id) == (None, "prior_image", "r1")


BROKEN = {
    "no-json": (b"event: text\ndata: Jane\n\n", NOT_SCORING.format(200)),
    "list": (b'event: text\ndata: ["Jane"]\n\n', NOT_SCORING.format(200)),
    "null": (b'event: text\ndata: {"row": 0, "text": null}\n\n', NOT_SCORING.format(200)),
    "surrogate": (b'event: text\ndata: {"row": 0, "text": "Jane \\ud800"}\n\n', NOT_SCORING.format(200)),
    "not-utf-8": (b'event: text\ndata: {"text": "Jane \xff"}\n\n', NOT_SCORING.format(200)),
    "no-status": (b'event: row\ndata: {"row": 0, "output": "Jane"}\n\n', NOT_SCORING.format(200)),
    "decoded": (b'event: row\ndata: {"output": [["Jane", null]], "status": "complete"}\n\n', NOT_SCORING.format(200)),
    "endless-line": (b"event: text\ndata: " + b"Jane" * 2**18 + b"\n\n", NOT_SCORING.format(200)),
    "error": (b"event: error\ndata: Jane\n\n", NOT_SCORING.format(500)),
    "odd-error": (b'event: error\ndata: {"status": "Jane", "message": 3}\n\n', NOT_SCORING.format(500)),
    "comment": (b": waiting\n\n", "the stream ended before its report"),
    "early": (event("text", row=0, text="Jane"), "the stream ended before its report"),
    "end": (event("end"), "the stream ended before its report"),
    "page": (b"Jane\n\n<html>", "the stream ended before its report"),
}


@pytest.mark.parametrize(("chunk", "message"), BROKEN.values(), ids=BROKEN)
def test_stream_that_is_none_is_told_without_its_content(reports, endpoint, film, chunk, message):
    endpoint.events = [chunk]
    for call in (lambda: reports.report(film), lambda: list(reports.stream(film))):
        with pytest.raises(errors.ResponseError) as failed:
            call()
        assert str(failed.value) == message
        assert "Jane" not in "".join(traceback.format_exception(failed.value))


def test_server_that_dies_in_a_stream_is_a_transport_error(film):
    class Dying(Handler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.chunk(REPORT_EVENTS[0])
            self.close_connection = True  # without the last chunk

    with serving(Dying) as url, CXRReportGen(f"{url}/score") as client:
        stream = client.stream(film)
        assert next(stream) == PIECES[0]
        with pytest.raises(errors.TransportError, match="cannot reach the server: "):
            next(stream)


def test_stream_left_early_ends_on_the_server(reports, endpoint, film):
    endpoint.endless = True
    with reports.stream(film) as stream:
        assert [next(stream), next(stream)] == [PIECES[0], PIECES[0]]
    assert endpoint.left.wait(WAIT_S)
    endpoint.endless = False
    assert reports.report(film).status == "complete"  # the client is as good as before


def test_report_out_of_time_ends_on_the_server(reports, endpoint, film):
    for call in (lambda: reports.report(film, timeout=0.3), lambda: list(reports.stream(film, timeout=0.3))):
        endpoint.endless = True
        endpoint.left.clear()
        with pytest.raises(errors.RequestTimeout, match=r"within 0\.3 s"):
            call()
        assert endpoint.left.wait(WAIT_S)


def test_comments_before_the_first_piece_do_not_count_as_one(server, endpoint, film, no_delay):
    busy = event("error", row=0, message="busy", status=503)
    before = b": waiting\n\nevent: news\ndata: 1\n\n" + event("progress", row=0, progress=PROGRESS_TOLD[1].to_json())
    endpoint.answers = [(200, {"Content-Type": "text/event-stream"}, before + busy)]
    with CXRReportGen(f"{server}/score") as client:
        assert list(client.stream(film)) == list(PIECES)
    assert len(endpoint.requests) == 2


def test_azures_own_endpoint_scores_and_has_no_status(reports, endpoint, film):
    endpoint.events = None
    request = {"input_data": {"columns": ["frontal_image"], "data": [[b64(film)]] * 3}}
    assert reports.score(request) == [{"output": OUTPUT}] * 3
    for call in (lambda: reports.report(film), lambda: list(reports.stream(film))):
        with pytest.raises(errors.ResponseError) as failed:
            call()
        expected = "this server answers in Azure's JSON, which has no status of a report; score() does without"
        assert (str(failed.value), failed.value.status) == (expected, 200)


@pytest.mark.parametrize(
    "body",
    ["[]", '[{"output": [["Jane", null]]}]', '[{"Jane": "1"}]', '{"output": "Jane"}', "Jane", '[{"output": null}]'],
)
def test_azure_json_that_is_no_report_is_told_without_its_content(reports, endpoint, film, body):
    endpoint.answers = [(200, {"Content-Type": "application/json"}, body.encode())]
    with pytest.raises(errors.ResponseError) as failed:
        reports.score({"input_data": {"columns": ["frontal_image"], "data": [[b64(film)]]}})
    assert failed.value.status == 200
    assert "Jane" not in "".join(traceback.format_exception(failed.value))


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that nobody trusts, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(file) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (file.parent / (file.name + ".crt")).read_bytes())
    return file


@pytest.fixture
def https_server(endpoint, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("EndpointHandler", (Handler,), {"endpoint": endpoint}))
    server.handle_error = lambda *_: None  # a client that turns away at the handshake
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_certificate_is_checked_against_the_trust_store(https_server, endpoint, certificate, monkeypatch, unit_vectors):
    with MedImageInsight(f"{https_server}/score", api_key=KEY, retries=0) as client:
        with pytest.raises(errors.TransportError, match="certificate verify failed"):
            client.embed_texts(["abc"])
        assert client.is_ready() is False
    assert endpoint.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with MedImageInsight(f"{https_server}/score", api_key=KEY) as client:
        assert np.array_equal(client.embed_texts(["abc"]), unit_vectors([3]))


# ---- the command


@pytest.fixture
def run(server):
    def run(*args, **options):
        return CliRunner().invoke(medimage, [*map(str, args), "--url", f"{server}/score"], **options)

    return run


def test_commands_take_a_scoring_uri_and_the_key_of_the_environment(run, endpoint, tmp_path, film):
    path = tmp_path / "film.png"
    path.write_bytes(encode_image(film))
    body = json.dumps({"input_data": {"columns": ["text"], "data": [["abc"]]}})
    study = json.dumps({"input_data": {"columns": ["frontal_image"], "data": [[b64(film)]]}})
    commands = [
        (["score", "-"], body),
        (["score", "-"], study),
        (["embed", path, "--output", tmp_path / "out.npy"], None),
        (["classify", path, "--label", "abc"], None),
        (["report", path], None),
    ]
    for command, given in commands:
        result = run(*command, input=given, env={"MEDIMAGE_API_KEY": KEY})
        assert (result.exit_code, result.stderr) == (0, "")
    assert {headers["Authorization"] for _, headers, _ in endpoint.requests} == {f"Bearer {KEY}"}
    assert run("score", "-", "--api-key", "other", input=body).exit_code == 0
    assert endpoint.requests[-1][1]["Authorization"] == "Bearer other"


def test_key_of_the_environment_is_not_for_a_triton_and_one_of_the_command_line_is_refused(tmp_path):
    command = ["embed", "--text", "a", "--output", str(tmp_path / "out.npy"), "--url", "grpc://127.0.0.1:1"]
    command += ["--timeout", "0.1"]
    refused = CliRunner().invoke(medimage, [*command, "--api-key", KEY])
    ignored = CliRunner().invoke(medimage, command, env={"MEDIMAGE_API_KEY": KEY})
    message = "Error: api_key is for a scoring URI, https://host/score; a Triton server has no keys\n"
    assert (refused.exit_code, refused.stderr) == (1, message)
    assert ignored.exit_code == 1
    assert "api_key" not in ignored.stderr


def test_key_that_is_refused_is_not_shown(run, endpoint):
    endpoint.refuse(401, f"{KEY} is no key")
    body = json.dumps({"input_data": {"columns": ["text"], "data": [["abc"]]}})
    result = run("score", "-", input=body, env={"MEDIMAGE_API_KEY": KEY})
    assert (result.exit_code, result.output) == (1, "Error: [api_key] is no key\n")
    assert KEY not in run("score", "--help", env={"MEDIMAGE_API_KEY": KEY}).output
