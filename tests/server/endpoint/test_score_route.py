"""POST /score over Tritons in memory: the whole application but the sockets."""

import asyncio
import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from medimage_client import AsyncCXRReportGen, AsyncMedImageInsight
from medimage_client.errors import InvalidInput, ServerError, TransportError, Unavailable
from medimage_client.wire import triton_workarounds
from medimage_server.endpoint import app as app_module
from medimage_server.endpoint import body as body_module
from medimage_server.endpoint import metrics
from medimage_server.endpoint.keys import digest
from medimage_server.endpoint.scoring import CALLS_PER_REQUEST
from tests.client.fake_reports import OUTPUT, PIECES, FakeReports
from tests.client.fake_triton import SCALING_FACTOR, FakeTriton, grey, unit_vectors
from tests.server.endpoint.asgi import JSON, Tritons, running
from tests.waiting import soon, until

KEY = "key-of-the-endpoint"
SSE = JSON | {"accept": "text/event-stream"}


def png(value):
    written = io.BytesIO()
    Image.fromarray(grey(value)).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def table(columns, *rows, **params):
    return {"input_data": {"columns": columns, "data": [*rows]}} | ({"params": params} if params else {})


TEXTS = table(["text"], ["abc"])
STUDY = table(["frontal_image", "indication"], [png(7), "cough"])


@pytest.fixture(autouse=True)
def _numbers_from_zero():
    """Other tests may hold some."""
    metrics.IN_FLIGHT.set(0)
    metrics.IN_FLIGHT_BYTES.set(0)


@pytest.fixture
def tritons():
    return Tritons()


@pytest.fixture
async def caller(monkeypatch, tritons):
    async with running(monkeypatch, tritons) as caller:
        yield caller


def at_rest():
    """Whether nothing of a request is held any more."""
    names = ("medimage_endpoint_in_flight", "medimage_endpoint_in_flight_bytes")
    return [metrics.value(name) for name in names] == [0, 0]


def events_of(answer):
    blocks = answer.body.decode().removesuffix("\n\n").split("\n\n")
    matches = [re.fullmatch(r"event: (\w+)\ndata: (.*)", block) for block in blocks if not block.startswith(":")]
    return [(match[1], json.loads(match[2])) for match in matches]


# ---- answers


@pytest.mark.parametrize("layout", ["rows", "card", "object"])
@pytest.mark.parametrize(
    "body",
    [
        table(["text"], ["abc"], ["de"], ["abc"]),
        table(["image"], [png(7)], [png(9)]),
        table(["image", "text"], [png(7), "abc"], [png(9), ""], ["", "de"]),
        table(["text"], ["abc"], get_scaling_factor=False),
        table(["image", "text"]),
    ],
)
async def test_answer_is_the_clients_own_in_every_layout(caller, tritons, body, layout):
    answer = await caller.ask(body=body, headers=JSON | {"medimage-layout": layout})
    expected = await AsyncMedImageInsight("grpc://unused", transport=FakeTriton()).score(body, layout=layout)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == expected
    assert answer.headers["azureml-model-deployment"] == "medimageinsight"
    assert answer.headers["x-ms-run-function-failed"] == "False"
    assert float(answer.headers["x-ms-run-fn-exec-ms"]) >= 0
    assert at_rest()


async def test_rows_are_answered_in_order_to_the_bit(caller):
    (first, second) = (await caller.ask(body=table(["image", "text"], [png(7), ""], [png(9), "abc"]))).json
    assert np.array_equal(first["image_features"], unit_vectors([7]))
    assert np.array_equal(second["image_features"], unit_vectors([9]))
    assert np.array_equal(second["text_features"], unit_vectors([3])[0])
    assert "text_features" not in first
    assert np.float32(first["scaling_factor"]) == SCALING_FACTOR
    assert first["scaling_factor"] == second["scaling_factor"] == float(SCALING_FACTOR)


@pytest.mark.parametrize("column, cell", [("text", "abc"), ("image", png(3))])
@pytest.mark.parametrize("asked", [True, False])
async def test_scaling_factor_is_there_also_with_one_half_alone(caller, column, cell, asked):
    (row,) = (await caller.ask(body=table([column], [cell], get_scaling_factor=asked))).json
    assert ("scaling_factor" in row) == asked


@pytest.mark.parametrize("layout, empty", [("rows", []), ("card", []), ("object", {})])
async def test_no_rows_are_an_empty_answer_without_a_call(caller, tritons, layout, empty):
    answer = await caller.ask(body=table(["text"]), headers=JSON | {"medimage-layout": layout})
    assert (answer.status, answer.json) == (200, empty)
    assert tritons.embeddings.calls == []
    assert (await caller.ask(body=table(["frontal_image"]))).json == []


async def test_layout_of_the_server_holds_where_no_header_asks(monkeypatch):
    async with running(monkeypatch, layout="object") as caller:
        assert isinstance((await caller.ask(body=TEXTS)).json, dict)
        assert isinstance((await caller.ask(body=TEXTS, headers=JSON | {"medimage-layout": "rows"})).json, list)


async def test_report_is_the_clients_own(caller):
    body = table(["frontal_image", "indication"], [png(7), "a"], [png(8), "b"])
    answer = await caller.ask(body=body)
    expected = await AsyncCXRReportGen("grpc://unused", transport=FakeReports()).score(body)
    assert answer.json == expected == [{"output": OUTPUT}] * 2
    assert answer.headers["azureml-model-deployment"] == "cxrreportgen"


async def test_large_request_leaves_the_others_their_turn(caller, tritons):
    tritons.embeddings.wait_for_in_flight = CALLS_PER_REQUEST
    body = table(["text"], *[["x" * n] for n in range(1, 1001)])
    answer = await caller.ask(body=body)
    assert len(answer.json) == 1000
    assert len(tritons.embeddings.calls) > 2 * CALLS_PER_REQUEST
    assert tritons.embeddings.most_in_flight == CALLS_PER_REQUEST


async def test_large_body_is_read_too(monkeypatch):
    cells = [[png(7) + "\n" * 100_000] for _ in range(9)]
    async with running(monkeypatch, max_body_mb=4) as caller:
        answer = await caller.ask(body=table(["image"], *cells))
    assert answer.status == 200
    assert np.array_equal([row["image_features"][0] for row in answer.json], unit_vectors([7] * 9))


# ---- whom it is for


@pytest.mark.parametrize(
    "path, header, body, expected",
    [
        ("/score", None, TEXTS, "medimageinsight"),
        ("/score", None, STUDY, "cxrreportgen"),
        ("/score", "cxrreportgen", STUDY, "cxrreportgen"),
        ("/score", "cxrreportgen-v1", STUDY, "cxrreportgen"),
        ("/medimageinsight-7/score", "medimageinsight-v1", TEXTS, "medimageinsight"),
        ("/medimageinsight/score", None, TEXTS, "medimageinsight"),
        ("/cxrreportgen/score", "cxrreportgen", STUDY, "cxrreportgen"),
    ],
)
async def test_deployment_is_named_by_path_header_or_columns(caller, path, header, body, expected):
    headers = JSON | ({"azureml-model-deployment": header} if header else {})
    answer = await caller.ask(path=path, body=body, headers=headers)
    assert (answer.status, answer.headers["azureml-model-deployment"]) == (200, expected)
    assert (caller.log.entries[-1].deployment, caller.log.entries[-1].rows) == (expected, 1)


@pytest.mark.parametrize(
    "path, header, status",
    [
        ("/score", "cxrreportgen", 400),  # whose columns these are not
        ("/cxrreportgen/score", None, 400),
        ("/medimageinsight/score", "cxrreportgen", 400),
        ("/score", "another", 404),
        ("/score", "medimageinsight2", 404),
        ("/another/score", None, 404),
        ("/medimageinsight/score", "another", 404),
        ("/medimageinsight", None, 404),
        ("/score/", None, 404),
        ("/v2/models", None, 404),
        ("/medimageinsight%2Fscore", None, 404),
        ("/%73core", None, 404),
        ("/score%0a", None, 404),
        ("/medimageinsight-%0a/score", None, 404),
    ],
)
async def test_wrong_deployment_or_path_is_refused(caller, path, header, status):
    headers = JSON | ({"azureml-model-deployment": header} if header else {})
    answer = await caller.ask(path=path, body=TEXTS, headers=headers)
    assert answer.status == answer.json["status"] == status
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert "another" not in answer.json["message"]


async def test_deployment_that_is_not_served_is_named(monkeypatch):
    async with running(monkeypatch, deployments=("medimageinsight",)) as caller:
        answer = await caller.ask(path="/cxrreportgen/score", body=STUDY)
        assert answer.status == 404
        assert answer.json["message"] == "deployment 'cxrreportgen' is not served here; there is medimageinsight"
        answer = await caller.ask(body=STUDY)  # the only one there is
        assert answer.status == 400


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_other_methods_are_refused(caller, method):
    answer = await caller.ask(method, "/score", headers={})
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "authorization, status", [(f"Bearer {KEY}", 200), (None, 401), ("Bearer x", 403), (f"Basic {KEY}", 401)]
)
async def test_key_is_asked_for(monkeypatch, authorization, status):
    async with running(monkeypatch, key_digests=(digest(KEY),)) as caller:
        headers = JSON | ({"authorization": authorization} if authorization else {})
        for path in ("/score", "/another/score"):
            answer = await caller.ask(path=path, body=TEXTS, headers=headers)
            assert answer.status == (404 if status == 200 and "another" in path else status)
            assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert (await caller.ask("GET", "/status", headers=headers)).status == status
        assert (await caller.ask("GET", "/", headers={})).status == 200
        assert not any(KEY in entry.line() for entry in caller.log.entries)


@pytest.mark.parametrize("path", ["/score", "/medimageinsight/score", "/", "/status", "/openapi.json", "/docs"])
async def test_pages_of_other_origins_are_given_nothing(caller, path):
    """A browser that is told nothing of other origins keeps answers from their pages, and sends no JSON for them."""
    headers = {"origin": "https://elsewhere.example"}
    asked_first = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answers = [
        await caller.ask("OPTIONS", path, headers=headers | asked_first),
        await caller.ask("GET", path, headers=headers),
        await caller.ask(path=path, body=TEXTS, headers=JSON | headers),
    ]
    assert answers[0].status == 405
    assert not any(name.startswith("access-control-") for answer in answers for name in answer.headers)


# ---- what is wrong with it


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b'{"input_data": NaN}', b"[" * 100_000, b'{"a": 1, "a": 2}', b"{}"],
)
async def test_body_that_is_no_request_is_a_400(caller, tritons, body):
    answer = await caller.ask(body=body)
    assert answer.status == 400
    assert "\n" not in answer.json["message"]
    assert tritons.embeddings.calls == []
    assert at_rest()


async def test_cell_at_fault_is_named_by_row_and_column_and_not_quoted(caller):
    for cell in ("patient's words", 7, ["x"]):
        answer = await caller.ask(body=table(["image"], [png(7)], [cell]))
        assert answer.status == 400
        assert answer.json["message"].startswith("row 1, column 'image': ")
        assert (answer.json["row"], answer.json["column"]) == (1, "image")
        assert "patient" not in answer.json["message"]
        assert "patient" not in caller.log.entries[-1].line()


async def test_image_that_triton_refuses_is_named_by_row_and_column(caller, tritons):
    def refuse(call):
        if "image" in call.inputs:
            raise InvalidInput("is no image", row=1)

    tritons.embeddings.refuse = refuse
    answer = await caller.ask(body=table(["image", "text"], ["", "x"], [png(7), ""], [png(8), ""]))
    assert answer.status == 400
    assert answer.json["message"] == "row 2, column 'image': is no image"
    assert (answer.json["row"], answer.json["column"]) == (2, "image")


async def test_error_of_no_row_has_none(caller):
    answer = await caller.ask(body=b"{}")
    assert sorted(answer.json) == ["message", "request_id", "status"]


@pytest.mark.parametrize("columns, limit, cell", [(["text"], 1024, "x"), (["frontal_image"], 10, png(7))])
async def test_rows_beyond_those_of_azures_documentation_are_refused(caller, columns, limit, cell):
    assert (await caller.ask(body=table(columns, *[[cell]] * limit))).status == 200
    answer = await caller.ask(body=table(columns, *[[cell]] * (limit + 1)))
    assert answer.status == 400
    assert answer.json["message"] == f"'data' has {limit + 1} rows; at most {limit} are taken in a request"


@pytest.mark.parametrize(
    "headers, status",
    [
        (JSON | {"medimage-layout": "table"}, 400),
        ({"content-type": "text/plain"}, 415),
        ({}, 415),
        (JSON | {"content-encoding": "gzip"}, 415),
    ],
)
async def test_head_that_is_wrong_is_refused(caller, headers, status):
    assert (await caller.ask(body=TEXTS, headers=headers)).status == status


async def test_chunks_in_http_1_0_are_refused_whatever_the_path(caller):
    for path in ("/score", "/live", "/none"):
        answer = await caller.ask(
            path=path, parts=[b"{}"], headers=JSON | {"transfer-encoding": "chunked"}, http_version="1.0"
        )
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert caller.log.entries[-1].reason == answer.json["message"]
    assert at_rest()


async def test_body_that_is_too_large_is_a_413(caller):
    assert (await caller.ask(body=b"x" * (2**20 + 1))).status == 413
    assert (await caller.ask(parts=[b"x" * 2**19] * 3)).status == 413
    assert at_rest()


async def test_body_that_stalls_is_a_408(caller, monkeypatch):
    monkeypatch.setattr(body_module, "STALL_LIMIT_S", 0.02)
    monkeypatch.setattr(body_module, "DISCARD_LIMIT_S", 0.02)
    answer = await caller.ask(headers=JSON | {"content-length": "1000"}, parts=())
    assert answer.status == 408
    assert at_rest()


# ---- what fails behind it


@pytest.mark.parametrize(
    "failure, status, retry_after",
    [
        (ServerError("CUDA out of memory at 10.1.2.3"), 424, None),
        (Unavailable("queue full at 10.1.2.3"), 429, "1"),
        (TransportError("cannot reach 10.1.2.3"), 503, "5"),
    ],
)
async def test_failure_of_triton_is_told_without_its_words(caller, tritons, failure, status, retry_after):
    tritons.embeddings.failures = [failure]
    answer = await caller.ask(body=TEXTS)
    assert (answer.status, answer.headers.get("retry-after")) == (status, retry_after)
    assert answer.headers.get("x-ms-run-function-failed") == ("True" if status == 424 else None)
    assert "10.1.2.3" not in answer.body.decode() + caller.log.entries[-1].line()
    assert caller.log.entries[-1].reason == answer.json["message"]
    assert at_rest()


async def test_no_ready_triton_is_a_503_at_once(monkeypatch):
    async with running(monkeypatch, Tritons(FakeTriton(ready=False))) as caller:
        answer = await caller.ask(body=TEXTS)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert (await caller.ask("GET", "/", headers={})).status == 503
        assert (await caller.ask("GET", "/live", headers={})).status == 200
        assert (await caller.ask(body=STUDY)).status == 200


async def test_answer_that_takes_too_long_is_a_504(monkeypatch):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 0.02)
    hanging = FakeTriton(wait_for_in_flight=2)
    async with running(monkeypatch, Tritons(hanging), timeout_s=0.05) as caller:
        answer = await caller.ask(body=TEXTS)
        assert answer.status == 504
        assert answer.json["message"] == "no answer within 0.05 s"
        assert at_rest()
        await until(lambda: hanging.in_flight == 0)


async def test_requests_beyond_the_limit_are_refused_until_one_is_answered(monkeypatch):
    class Held(FakeTriton):
        may_answer = asyncio.Event()

        async def infer(self, call, *, timeout):
            self.in_flight += 1
            await self.may_answer.wait()
            self.in_flight -= 1
            return await super().infer(call, timeout=timeout)

    held = Held()
    async with running(monkeypatch, Tritons(held), max_requests=2) as caller:
        asking = [asyncio.create_task(caller.ask(body=TEXTS)) for _ in range(2)]
        await until(lambda: held.in_flight == 2)
        answer = await caller.ask(body=TEXTS)
        assert (answer.status, int(answer.headers["retry-after"]) >= 1) == (429, True)
        assert "2 requests for medimageinsight are at work or waiting" in answer.json["message"]
        assert (await caller.ask(body=STUDY)).status == 200  # the other deployment has places of its own
        held.may_answer.set()
        assert [(await answered).status for answered in asking] == [200, 200]
        assert (await caller.ask(body=TEXTS)).status == 200


async def test_caller_who_hangs_up_ends_the_work(monkeypatch, caplog):
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 0.02)
    hanging = FakeTriton(wait_for_in_flight=2)
    async with running(monkeypatch, Tritons(hanging)) as caller:
        hang_up = asyncio.Event()
        asking = asyncio.create_task(caller.ask(body=TEXTS, hang_up=hang_up))
        await until(lambda: hanging.in_flight)
        hang_up.set()
        await asking
        await until(lambda: hanging.in_flight == 0)
        (entry,) = caller.log.entries
        assert (entry.status, entry.reason) == (499, "the client has gone")
        assert at_rest()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def ask_and_hang_up(caller, in_flight, **request):
    hang_up = asyncio.Event()
    asking = asyncio.create_task(caller.ask(**request, hang_up=hang_up))
    await until(in_flight)
    hang_up.set()
    await asking


async def test_no_call_to_triton_is_left_held_however_a_request_ends(monkeypatch):
    monkeypatch.setattr(app_module, "CALLS", 1)
    monkeypatch.setattr(triton_workarounds, "CANCEL_AFTER_S", 0.02)
    tritons = Tritons(FakeTriton(), FakeReports())
    async with running(monkeypatch, tritons, timeout_s=0.2, report_timeout_s=0.2) as caller:

        async def serves():
            for request in ({"body": TEXTS}, {"body": STUDY}, {"body": STUDY, "headers": SSE}):
                answer = await caller.ask(**request)
                assert (answer.status, b"event: error" in answer.body) == (200, False)

        for failure, status in ((ServerError("x"), 424), (Unavailable("x"), 429), (InvalidInput("x"), 400)):
            for triton, request in (
                (tritons.embeddings, {"body": TEXTS}),
                (tritons.reports, {"body": STUDY}),
                (tritons.reports, {"body": STUDY, "headers": SSE}),
            ):
                triton.failures = [failure]
                assert (await caller.ask(**request)).status == status
        await serves()
        tritons.embeddings.wait_for_in_flight = 2  # which never comes
        assert (await caller.ask(body=TEXTS)).status == 504
        await ask_and_hang_up(caller, lambda: tritons.embeddings.in_flight, body=TEXTS)
        await until(lambda: not tritons.embeddings.in_flight)
        tritons.embeddings.wait_for_in_flight = 1
        await serves()
        tritons.reports.hang = True
        assert events_of(await caller.ask(body=STUDY, headers=SSE))[-1][1]["status"] == 504
        n_calls = len(tritons.reports.calls)
        await ask_and_hang_up(caller, lambda: len(tritons.reports.calls) > n_calls, body=STUDY, headers=SSE)
        tritons.reports.hang = False
        tritons.reports.broken = ServerError("x")
        await caller.ask(body=STUDY, headers=SSE)
        tritons.reports.broken = None
        await serves()


# ---- answers that are sent


async def test_answer_holds_its_memory_until_it_is_read(monkeypatch):
    held, may_read = [], asyncio.Event()

    async def on_part(part):
        held.append(metrics.value("medimage_endpoint_in_flight_bytes"))
        await may_read.wait()

    async with running(monkeypatch, max_in_flight_mb=1) as caller:
        slow = asyncio.create_task(caller.ask(body=table(["text"], *[["x"]] * 300), on_part=on_part))
        await until(lambda: held)
        refused = await caller.ask(body=TEXTS)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        may_read.set()
        answer = await slow
        assert held[0] > len(answer.body) > 2**20  # the answer, and the request's body
        assert len(held) == -(-len(answer.body) // body_module.PART_BYTES)
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert answer.json == [answer.json[0]] * 300
        assert (await caller.ask(body=TEXTS)).status == 200
    assert at_rest()


async def test_answer_that_is_read_too_slowly_is_given_up(monkeypatch):
    monkeypatch.setattr(body_module, "GRACE_S", 0.05)
    monkeypatch.setattr(body_module, "MIN_BYTES_S", 2**20)  # a part in 1/16 s
    seconds = 0.02

    async def on_part(part):
        await asyncio.sleep(seconds)

    async with running(monkeypatch) as caller:
        body = table(["text"], *[["x"]] * 200)
        answer = await caller.ask(body=body, on_part=on_part)
        assert len(answer.json) == 200
        assert len(answer.body) > 4 * body_module.PART_BYTES
        seconds = 0.2
        given_up = await caller.ask(body=body, on_part=on_part)
        assert 0 < len(given_up.body) < len(answer.body)
        assert caller.log.entries[-1].reason == "the client reads the answer too slowly"
        assert at_rest()


async def test_error_of_ours_is_a_500_without_its_text(caller, tritons, caplog):
    def refuse(call):
        raise ZeroDivisionError(repr(call.inputs["text"].tolist()))

    tritons.embeddings.refuse = refuse
    answer = await caller.ask(body=table(["text"], ["words of Jane"]))
    assert answer.status == 500
    assert "ZeroDivisionError" in caplog.text
    assert "Jane" not in answer.body.decode() + caplog.text
    assert at_rest()


# ---- reports as they are written


async def test_report_comes_as_events_where_they_are_accepted(caller):
    answer = await caller.ask(body=STUDY, headers=SSE)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.headers["azureml-model-deployment"] == "cxrreportgen"
    assert answer.headers["x-accel-buffering"] == "no"
    assert events_of(answer) == [
        *(("text", {"row": 0, "text": piece}) for piece in PIECES),
        ("row", {"row": 0, "output": OUTPUT, "status": "complete"}),
        ("end", {}),
    ]
    assert at_rest()


async def test_embeddings_are_json_whatever_is_accepted(caller):
    assert (await caller.ask(body=TEXTS, headers=SSE)).headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "failure, status", [(ServerError("x"), 424), (Unavailable("x"), 429), (InvalidInput("x"), 400)]
)
async def test_failure_before_the_first_event_is_a_status(caller, tritons, failure, status):
    tritons.reports.failures = [failure]
    answer = await caller.ask(body=STUDY, headers=SSE)
    assert answer.status == answer.json["status"] == status


async def test_failure_after_the_first_event_is_an_event(caller, tritons):
    tritons.reports.broken = ServerError("patient's words")
    answer = await caller.ask(body=STUDY, headers=SSE | {"x-request-id": "r1"})
    assert answer.status == 200
    *texts, (name, data) = events_of(answer)
    assert [name for name, _ in texts] == ["text"] * 3
    assert (name, data["row"], data["status"], data["request_id"]) == ("error", 0, 424, "r1")
    assert "patient" not in data["message"]
    assert at_rest()


async def test_stream_that_takes_too_long_ends_with_an_error(monkeypatch):
    reports = FakeReports(hang=True)
    async with running(monkeypatch, Tritons(reports=reports), report_timeout_s=0.1) as caller:
        answer = await caller.ask(body=STUDY, headers=SSE)
        assert answer.status == 200
        name, data = events_of(answer)[-1]
        assert (name, data["status"], "row" in data) == ("error", 504, False)  # it is of no row
        assert reports.closed_early == 1
        assert at_rest()


async def test_caller_who_hangs_up_within_a_stream_ends_it_and_is_no_error_of_ours(monkeypatch, caplog):
    reports = FakeReports(hang=True)
    async with running(monkeypatch, Tritons(reports=reports)) as caller:
        hang_up, begun = asyncio.Event(), asyncio.Event()

        async def on_part(part):
            begun.set()

        asking = asyncio.create_task(caller.ask(body=STUDY, headers=SSE, hang_up=hang_up, on_part=on_part))
        await begun.wait()
        hang_up.set()
        await asking
        assert reports.closed_early == 1
        (entry,) = caller.log.entries
        assert entry.reason == "the client has gone"
        assert at_rest()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_caller_who_hangs_up_without_reading_ends_the_stream(monkeypatch):
    reports = FakeReports(pieces=["x"] * 1000)
    async with running(monkeypatch, Tritons(reports=reports)) as caller:
        hang_up, begun = asyncio.Event(), asyncio.Event()

        async def on_part(part):
            begun.set()
            await hang_up.wait()  # the connection takes no more

        asking = asyncio.create_task(caller.ask(body=STUDY, headers=SSE, hang_up=hang_up, on_part=on_part))
        await begun.wait()
        await soon()  # it writes what it may
        hang_up.set()
        await asyncio.wait([asking], timeout=2.0)
        assert asking.done()
        assert reports.closed_early == 1


# ---- the log


async def test_log_has_the_fields_of_a_request_and_nothing_of_its_content(caller):
    await caller.ask(body=table(["image", "text"], [png(7), "patient's words"]), headers=JSON | {"x-request-id": "r1"})
    (entry,) = caller.log.entries
    line = json.loads(entry.line())
    assert line["request_id"] == "r1"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/score", 200)
    assert (line["deployment"], line["rows"]) == ("medimageinsight", 1)
    assert line["received_bytes"] > 100
    assert line["sent_bytes"] > 2000
    assert [*line["stages_ms"]] == ["receive", "parse", "model", "send"]
    assert sum(line["stages_ms"].values()) <= line["ms"] + 1
    assert "patient" not in entry.line()
    assert png(7)[:30] not in entry.line()


async def test_metrics_and_status_count_what_was_answered(caller):
    before = (await caller.ask("GET", "/status", headers={})).json["load"]
    await caller.ask(body=TEXTS)
    await caller.ask(body=b"{")
    state = (await caller.ask("GET", "/status", headers={})).json
    after = state["load"]
    assert after["answered"] - before["answered"] == 1  # those for the state itself do not count
    assert after["failed"] == before["failed"]  # nor does what was wrong
    assert (after["in_flight"], after["in_flight_bytes"]) == (0, 0)
    assert state["deployments"]["medimageinsight"] == {"ready": True, "max_rows": 1024}
    assert [triton["ready"] for triton in state["tritons"]] == [{"medimageinsight": True, "cxrreportgen": True}]
    page = (await caller.ask("GET", "/metrics", headers={})).body.decode()
    assert re.search(r'^medimage_endpoint_requests_total\{deployment="medimageinsight",status="200"\} \d', page, re.M)
