"""Around a request: its id, headers, one line of log, numbers, and what a failure does not tell."""

import asyncio
import logging
import re
import uuid

import pytest
from starlette.responses import Response

from medimage_server.endpoint import metrics
from medimage_server.endpoint.middleware import BrokenAnswer, ObservabilityMiddleware, entry_of
from tests.server.endpoint.asgi import Caller, Log

SECRET = "patient's words"


def caller(app):
    log = Log()
    return Caller(
        ObservabilityMiddleware(app, log=log, server_version="medimage-triton/1.2", routes=frozenset({"/score", "/"})),
        log,
    )


async def healthy(scope, receive, send):
    await Response("Healthy")(scope, receive, send)


@pytest.fixture
def count():
    """How much a number has grown since the test began."""
    names = {}

    def value(name, **labels):
        return metrics.OWN.get_sample_value(name, labels) or 0.0

    def count(name, **labels):
        return value(name, **labels) - names.get((name, *sorted(labels.items())), 0.0)

    for family in metrics.OWN.collect():
        for sample in family.samples:
            names[(sample.name, *sorted(sample.labels.items()))] = sample.value
    return count


# ---- ids and headers


@pytest.mark.parametrize("request_id", ["a", "A.b_c-9", "x" * 100])
async def test_request_id_of_the_caller_is_kept(request_id):
    asked = caller(healthy)
    answer = await asked.ask("GET", "/", headers={"x-request-id": request_id})
    assert answer.headers["x-request-id"] == answer.headers["x-ms-request-id"] == request_id
    assert asked.log.entries[0].request_id == request_id


@pytest.mark.parametrize("request_id", ["", "x" * 101, "a b", "a\tb", "é", "<script>", "a/b", 'a"', "a\r\nx: y"])
async def test_request_id_that_is_not_safe_is_replaced(request_id):
    asked = caller(healthy)
    answer = await asked.ask("GET", "/", headers={"x-request-id": request_id})
    assert str(uuid.UUID(answer.headers["x-request-id"])) == answer.headers["x-request-id"] != request_id
    assert asked.log.entries[0].request_id == answer.headers["x-request-id"]


async def test_request_ids_of_ours_differ():
    asked = caller(healthy)
    ids = {(await asked.ask("GET", "/", headers={})).headers["x-request-id"] for _ in range(50)}
    assert len(ids) == 50


@pytest.mark.parametrize(
    "sent, expected",
    [  # as azureml-inference-server-http 1.x answers them
        ({"x-ms-client-request-id": "c"}, {"x-ms-client-request-id": "c", "x-ms-request-id": "c"}),
        ({"x-ms-request-id": "m"}, {"x-ms-request-id": "m", "x-ms-client-request-id": "m"}),
        (
            {"x-request-id": "r", "x-ms-request-id": "m", "x-ms-client-request-id": "c"},
            {"x-request-id": "r", "x-ms-request-id": "m", "x-ms-client-request-id": "c"},
        ),
        ({"x-request-id": "r"}, {"x-ms-request-id": "r"}),
    ],
)
async def test_ids_of_azures_clients_come_back(sent, expected):
    answer = await caller(healthy).ask("GET", "/", headers=sent)
    assert expected.items() <= answer.headers.items()
    assert ("x-ms-client-request-id" in answer.headers) == ("x-ms-client-request-id" in expected)


async def test_answers_say_who_answers_and_are_not_kept():
    answer = await caller(healthy).ask("GET", "/", headers={})
    assert answer.headers["x-ms-server-version"] == "medimage-triton/1.2"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_headers_of_the_application_stay():
    async def cached(scope, receive, send):
        await Response("x", headers={"cache-control": "max-age=9"})(scope, receive, send)

    assert (await caller(cached).ask("GET", "/", headers={})).headers["cache-control"] == "max-age=9"


async def test_lifespan_passes_through():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    middleware = ObservabilityMiddleware(app, log=Log(), server_version="x", routes=frozenset())
    await middleware({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]


# ---- failures


async def fails(scope, receive, send):
    raise ValueError(SECRET)


async def fails_later(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise ValueError(SECRET)


async def test_failure_is_a_500_that_tells_nothing_but_where_to_look(caplog):
    asked = caller(fails)
    answer = await asked.ask(path="/score", headers={"x-request-id": "r1"})
    assert answer.status == 500
    assert answer.json == {
        "message": "internal error; the log has the place by the request id",
        "status": 500,
        "request_id": "r1",
    }
    assert answer.headers["x-request-id"] == "r1"
    assert (asked.log.entries[0].status, asked.log.entries[0].reason) == (500, answer.json["message"])
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("request r1: ValueError\n")
    assert re.search(r'test_middleware\.py", line \d+, in fails', record.getMessage())
    assert SECRET not in caplog.text
    assert not record.exc_info


async def test_failure_after_the_beginning_of_an_answer_ends_the_connection_without_its_text(caplog):
    asked = caller(fails_later)
    with pytest.raises(BrokenAnswer) as error:
        await asked.ask(path="/score", headers={"x-request-id": "r1"})
    assert SECRET not in repr(error.value)
    assert error.value.__suppress_context__  # so that who logs it does not log the reason
    assert caplog.messages[0].startswith("request r1: ValueError\n")
    assert SECRET not in caplog.text
    (entry,) = asked.log.entries
    assert (entry.status, entry.sent_bytes) == (200, 4)


async def test_cancelled_request_is_logged_too():
    has_begun = asyncio.Event()

    async def waits(scope, receive, send):
        has_begun.set()
        await asyncio.Event().wait()

    asked = caller(waits)
    asking = asyncio.create_task(asked.ask(path="/score"))
    await has_begun.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert [entry.status for entry in asked.log.entries] == [0]


# ---- log and numbers


async def test_entry_has_what_the_application_found_out_beside_sizes_and_time(count):
    async def app(scope, receive, send):
        entry = entry_of(scope)
        entry.deployment, entry.rows, entry.received_bytes = "medimageinsight", 3, 70
        entry.stages_ms = {"model": 20.0}
        await asyncio.sleep(0.02)
        await Response("x" * 11)(scope, receive, send)

    asked = caller(app)
    await asked.ask(path="/score")
    (entry,) = asked.log.entries
    assert (entry.method, entry.route, entry.status, entry.sent_bytes) == ("POST", "/score", 200, 11)
    assert 20 <= entry.ms < 1000
    assert count("medimage_endpoint_requests_total", deployment="medimageinsight", status="200") == 1
    assert count("medimage_endpoint_rows_total", deployment="medimageinsight") == 3
    assert count("medimage_endpoint_received_bytes_total") == 70
    assert count("medimage_endpoint_sent_bytes_total") == 11
    assert count("medimage_endpoint_request_seconds_count", deployment="medimageinsight") == 1
    labels = {"deployment": "medimageinsight", "stage": "model"}
    assert count("medimage_endpoint_stage_seconds_sum", **labels) == pytest.approx(0.02)


@pytest.mark.parametrize(
    "path, route", [("/score", "/score"), ("/sc%6Fre", "other"), ("%2F", "other"), ("/x", "other")]
)
async def test_route_is_the_path_as_it_was_sent_if_it_is_one_of_ours(path, route):
    asked = caller(healthy)
    await asked.ask(path=path)
    assert asked.log.entries[0].route == route


async def test_rows_of_refused_requests_are_not_counted(count):
    async def app(scope, receive, send):
        entry_of(scope).deployment, entry_of(scope).rows = "medimageinsight", 3
        await Response("x", status_code=429)(scope, receive, send)

    await caller(app).ask(path="/score")
    assert count("medimage_endpoint_requests_total", deployment="medimageinsight", status="429") == 1
    assert count("medimage_endpoint_rows_total", deployment="medimageinsight") == 0


async def test_request_for_no_deployment_is_counted_as_none_and_as_no_scoring(count):
    by_status = metrics.counts_by_status()
    await caller(healthy).ask("GET", "/")
    assert count("medimage_endpoint_requests_total", deployment="none", status="200") == 1
    assert metrics.counts_by_status() == by_status
