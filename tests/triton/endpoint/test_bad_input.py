"""Bad requests to a real endpoint and Triton: each is refused in one line, and the next good one is served.

What stands for private content in the requests is afterwards in no answer, no access log and no error log.
"""

import json
import re
import socket
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.paths import ROOT
from tests.triton.endpoint import bad_cells, bad_http, bad_json, bad_schema
from tests.triton.endpoint.case import GOOD, GOOD_TEXT, IMAGE, TEXT, base64_text, embeddings, reports
from tests.triton.endpoint.raw_http import CANARY, KEY, ask, read_answer, request
from tests.triton.requests import embed_images, embed_texts
from tests.waiting import WAIT_S, wait_until

CELLS = bad_cells.CASES  # they get as far as the models
UNREAD = [*bad_cells.UNREAD, *bad_json.CASES, *bad_schema.CASES, *bad_http.CASES]
HARMLESS = [*bad_cells.HARMLESS, *bad_http.HARMLESS]
SLOW = bad_http.SLOW
MAX_MESSAGE = 400  # characters
TOLERANCE = 1e-5  # on numbers of unit vectors
INTERNALS = ("Traceback", "site-packages", ".py", "medimage_server", "/tmp/", str(ROOT), sys.prefix)
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


@pytest.fixture(scope="module")
def vectors(triton):
    """What Triton itself answers to the good request."""
    return embed_images(triton.grpc, [IMAGE]), embed_texts(triton.grpc, [TEXT.encode()])


@pytest.fixture(scope="module", autouse=True)
def slow_answers(endpoint):
    """Futures of the answers that come by a time limit; they wait while the other cases run."""
    with ThreadPoolExecutor(len(SLOW)) as pool:
        yield {case.id: pool.submit(ask, endpoint.address, case.raw) for case in SLOW}


@pytest.fixture
def still_serves(endpoint, vectors):
    """After the test, a good request has the right answer."""
    yield
    (answer,) = ask(endpoint.address, GOOD)
    check_good(answer, vectors)


@pytest.fixture
def mostly_still_serves(still_serves_texts, request):
    """The same after one test of eight; after the others, of a text alone."""
    if zlib.crc32(request.node.name.encode()) % 8 == 0:
        request.getfixturevalue("still_serves")


@pytest.fixture
def still_serves_texts(endpoint, vectors):
    """The same of a good text alone, a sixth of the work."""
    yield
    (answer,) = ask(endpoint.address, GOOD_TEXT)
    assert answer.status == 200
    (row,) = json.loads(answer.body)
    np.testing.assert_allclose([row["text_features"]], vectors[1], rtol=0, atol=TOLERANCE)


def check_good(answer, vectors):
    assert answer.status == 200
    (row,) = json.loads(answer.body)
    np.testing.assert_allclose(row["image_features"], vectors[0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose([row["text_features"]], vectors[1], rtol=0, atol=TOLERANCE)


def check_refusal(answer, case):
    assert (answer.status, answer.headers["content-type"]) == (case.status, "application/json")
    error = json.loads(answer.body)
    assert {"message", "status", "request_id"} <= error.keys() <= {"message", "status", "request_id", "row", "column"}
    named = re.match(r"row (\d+)", error["message"])
    assert (named and int(named[1])) == error.get("row")
    assert case.message in error["message"]
    assert error["status"] == case.status
    assert error["request_id"] == answer.headers["x-request-id"]
    assert REQUEST_ID.fullmatch(error["request_id"])
    assert error["message"].isprintable()  # one line
    assert 0 < len(error["message"]) <= MAX_MESSAGE
    whole = f"{answer.headers}\n{answer.body.decode()}"
    assert CANARY.lower() not in whole.lower()
    assert not [word for word in INTERNALS if word in whole]


def test_there_are_enough_bad_requests():
    bad = [*CELLS, *UNREAD, *SLOW]
    assert len({case.id for case in (*bad, *HARMLESS)}) == len(bad) + len(HARMLESS)
    assert len(bad) >= 150
    assert all(400 <= case.status < 500 for case in bad)  # clients repeat 5xx


@pytest.mark.parametrize("case", UNREAD, ids=lambda case: case.id)
def test_request_that_cannot_be_read_is_refused_and_the_next_good_one_served(endpoint, still_serves_texts, case):
    (answer,) = ask(endpoint.address, case.raw)
    check_refusal(answer, case)


@pytest.mark.parametrize("case", CELLS, ids=lambda case: case.id)
def test_request_with_a_bad_cell_is_refused_and_the_next_good_one_served(endpoint, mostly_still_serves, case):
    (answer,) = ask(endpoint.address, case.raw)
    check_refusal(answer, case)


@pytest.mark.parametrize("case", HARMLESS, ids=lambda case: case.id)
def test_odd_request_is_answered_and_so_is_the_next(endpoint, mostly_still_serves, case):
    (answer,) = ask(endpoint.address, case.raw)
    assert answer.status == 200
    for row in json.loads(answer.body):
        for vector in (*row.get("image_features", []), row.get("text_features")):
            assert vector is None or np.linalg.norm(vector) == pytest.approx(1, abs=TOLERANCE)


def test_pipelined_requests_are_answered_in_their_order(endpoint, vectors):
    """Until one is not HTTP, which ends the connection."""
    good = request(body=embeddings([[base64_text(IMAGE), TEXT]]), connection=None)
    bad = request(body=b"{", connection=None)
    answers = ask(endpoint.address, good + bad + good + bad + b"no http\r\n\r\n" + good, n_answers=6)
    assert [answer.status for answer in answers] == [200, 400, 200, 400, 400]
    check_good(answers[0], vectors)
    check_good(answers[2], vectors)


def test_nothing_is_read_behind_a_request_of_two_lengths(endpoint):
    """The request in its body is read as one by a server that goes by the other length."""
    (case,) = [case for case in bad_http.CASES if case.id == "http-smuggled-behind-chunks"]
    assert [answer.status for answer in ask(endpoint.address, case.raw, n_answers=2)] == [400]


@pytest.mark.parametrize("path", ["/", "/live", "/docs", "/openapi.json", "/status"])
def test_broken_chunk_behind_an_answered_request_ends_its_connection(endpoint, still_serves, path):
    """The answer has gone when the body turns out to be none."""
    head = request("GET", path, content_length=None, transfer_encoding="chunked", connection=None)
    with socket.create_connection(endpoint.address, timeout=WAIT_S) as connection, connection.makefile("rb") as reader:
        connection.sendall(head)
        assert read_answer(reader, b"GET").status == 200
        connection.sendall(b"zz\r\n")
        assert reader.read() == b""


def test_control_tokens_of_the_model_in_report_texts_are_words(endpoint, still_serves, repository):
    """The same reports as for the words alone; a token that is taken for one opens findings, boxes and images."""
    tokenizer = Tokenizer.from_file(str(repository / "cxrreportgen_stream/1/tokenizer.json"))
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    words = {f"<{word}>": word for word in ("s", "obj", "box", "x10", "image", "lat_image", "prev_im")}
    words |= {f"</{word}>": word for word in ("s", "obj", "box")}
    assert words.keys() <= known
    with_tokens, without = (
        reported(endpoint, [f"{CANARY}: {text} effusion" for text in texts]) for texts in (words, words.values())
    )
    assert with_tokens == without


@pytest.mark.parametrize("column", ["indication", "technique", "comparison"])
def test_all_control_tokens_at_once_leave_the_answer_its_form(endpoint, still_serves, repository, column):
    tokenizer = Tokenizer.from_file(str(repository / "cxrreportgen_stream/1/tokenizer.json"))
    tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    (output,) = reported(endpoint, ["".join(tokens)], column)
    assert not [token for token in tokens if token in output]
    for text, boxes in json.loads(output):
        assert isinstance(text, str)
        assert np.shape(boxes or [[0] * 4])[1:] == (4,)


def reported(endpoint, texts, column="indication"):
    body = reports([[base64_text(IMAGE), text] for text in texts], ["frontal_image", column])
    (answer,) = ask(endpoint.address, request(body=body))
    assert answer.status == 200
    return [row["output"] for row in json.loads(answer.body)]


@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.id)
def test_request_that_does_not_end_is_refused_in_time(slow_answers, still_serves_texts, case):
    (answer,) = slow_answers[case.id].result()
    check_refusal(answer, case)


def line_of(log, request_id):
    """The line of a request; None while it is not there."""
    return next((line for line in log.read_text().splitlines() if request_id in line), None)


def test_neither_log_holds_anything_of_the_requests(endpoint):
    """Those of the tests before, and of two more."""
    good = request(body=embeddings([[None, CANARY]]), x_request_id="a-good-one")
    bad = request(
        body=embeddings([[None, [CANARY]]]), path=f"/medimageinsight/score?{CANARY}", x_request_id="a-bad-one"
    )
    ask(endpoint.address, good)
    ask(endpoint.address, bad)
    # a line is written after its answer, so that the two may stand in either order
    wait_until(lambda: all(line_of(endpoint.access_log, id_) for id_ in ("a-good-one", "a-bad-one")))
    entry = json.loads(line_of(endpoint.access_log, "a-bad-one"))
    assert (entry["route"], entry["status"], entry["deployment"]) == ("/medimageinsight/score", 400, "medimageinsight")
    for log in (endpoint.access_log.read_text(), endpoint.errors.read_text()):
        assert CANARY.lower() not in log.lower()
        assert base64_text(CANARY.encode())[:8] not in log
        assert base64_text(IMAGE)[:16] not in log
        assert KEY not in log
        assert "Traceback" not in log
        assert 'File "' not in log
