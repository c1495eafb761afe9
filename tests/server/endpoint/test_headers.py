"""Heads that two readers may understand differently, byte by byte over a socket to the whole application."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
import uvicorn

from medimage_server.endpoint.http_protocol import HttpProtocol
from medimage_server.endpoint.keys import digest
from tests.server.endpoint.asgi import running
from tests.triton.endpoint.raw_http import KEY, chunked, request

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one endpoint for all
BODY = json.dumps({"input_data": {"columns": ["text"], "data": [["abc"]]}}).encode()
OTHER_KEY = "another-key-of-the-tests"
LENGTH = str(len(BODY))


def score(**changes):
    return request(body=BODY, **changes)


def in_chunks(**changes):
    return chunked(BODY, **changes)


def twice(name, first, second, **changes):
    return score(**{name: f"{first}\r\n{name.replace('_', '-')}: {second}"}, **changes)


TWICE = "is given 2 times; expected once"
VERSION = "this version of HTTP is not spoken here"
BOTH = "both Content-Length and Transfer-Encoding are given"
INVALID = "Invalid HTTP request received."
NOTHING = "there is nothing here"
WRONG_KEY = "the key is not valid here"
NOT_JSON = "Expects Content-Type to be application/json"
REFUSED = {
    # where a request ends
    "encoding-in-1.0": (in_chunks(version="1.0"), 400, "Transfer-Encoding is not part of HTTP/1.0"),
    "encoding-in-1.0-of-another-path": (in_chunks(version="1.0", path="/live"), 400, "Transfer-Encoding is not part"),
    "both-lengths": (in_chunks(content_length=LENGTH), 400, BOTH),
    "both-lengths-for-another-path": (in_chunks(content_length=LENGTH, path="/none"), 400, BOTH),
    "both-lengths-with-a-wrong-key": (in_chunks(content_length=LENGTH, key="wrong"), 400, BOTH),
    "version-0.9": (score(version="0.9"), 400, VERSION),
    "version-2.0": (score(version="2.0"), 400, VERSION),
    "encoding-unknown": (score(transfer_encoding="identity"), 400, INVALID),
    "encoding-of-nothing": (score(transfer_encoding=""), 400, INVALID),
    "length-with-plus": (score(content_length=f"+{LENGTH}"), 400, INVALID),
    "length-with-underscore": (score(content_length="5_6"), 400, INVALID),
    "length-with-form-feed": (score(content_length=f"{LENGTH}\x0c"), 400, INVALID),
    "length-with-power": (score(content_length="5\xb2"), 400, INVALID),
    "length-and-nothing": (score(content_length=f"{LENGTH},"), 400, INVALID),
    "lengths-of-two-spellings": (score(content_length=f"0{LENGTH}, {LENGTH}"), 400, INVALID),
    "chunk-of-0x": (in_chunks().replace(b"\r\n%x\r\n" % len(BODY), b"\r\n0x%x\r\n" % len(BODY)), 400, INVALID),
    "space-before-colon": (score(x_a="a\r\nx-b : c"), 400, INVALID),
    "line-break-before": (b"\r\n" + score(), 400, INVALID),
    "two-spaces-in-the-first-line": (score().replace(b"POST ", b"POST  "), 400, INVALID),
    # who asks
    "authorization-twice": (twice("authorization", f"Bearer {KEY}", f"Bearer {OTHER_KEY}"), 400, TWICE),
    "authorization-twice-the-same": (twice("authorization", f"Bearer {KEY}", f"Bearer {KEY}"), 400, TWICE),
    "authorization-twice-for-the-status": (
        request("GET", "/status", key=f"{KEY}\r\nauthorization: Basic x"),
        400,
        TWICE,
    ),
    **{
        f"key-with-{ord(space):x}-{where}": (score(key=key), 403, WRONG_KEY)
        for space in "\x1c\x1d\x1e\x1f\x85\xa0"
        for where, key in {"before": space + KEY, "behind": KEY + space}.items()
    },
    **{f"key-with-{ord(space):x}": (score(key=KEY + space), 400, INVALID) for space in "\x0b\x0c\r"},
    "tab-behind-bearer": (score(authorization=f"Bearer\t{KEY}"), 401, "no key"),
    "no-break-space-behind-bearer": (score(authorization=f"Bearer\xa0{KEY}"), 401, "no key"),
    # what it is
    "type-twice": (twice("content_type", "application/json", "text/plain"), 400, TWICE),
    "type-twice-the-same": (twice("content_type", "application/json", "application/json"), 400, TWICE),
    "type-with-no-break-space": (score(content_type="application/json\xa0"), 415, NOT_JSON),
    "type-with-unit-separator": (score(content_type="\x1fapplication/json"), 415, NOT_JSON),
    "charset-twice": (score(content_type="application/json; charset=utf-8; charset=utf-16"), 415, "charset"),
    "encoding-in-two-lines": (twice("content_encoding", "identity", "gzip"), 415, "Content-Encoding"),
    "encoding-with-no-break-space": (score(content_encoding="identity\xa0"), 415, "Content-Encoding"),
    "deployment-twice": (twice("azureml_model_deployment", "medimageinsight", "cxrreportgen"), 400, TWICE),
    "layout-twice": (twice("medimage_layout", "rows", "card"), 400, TWICE),
    # where it goes
    **{
        f"path-{path}": (score(path=path), 404, NOTHING)
        for path in (
            "/medimageinsight%2Fscore",
            "/medimageinsight%2fscore",
            "%2Fscore",
            "/%2Fscore",
            "/score%2F",
            "/%73core",
            "/medimage%69nsight/score",
            "/medimageinsight-%0a/score",
            "/score%0a",
            "/medimageinsight/score%0A",
            "/score%00",
            "/score/",
            "//score",
            "/score;a=b",
            "/score#a",
            "/medimageinsight\\score",
            "/a/../score",
            "/%2e%2e/score",
            "http://test/score",
            "score",
        )
    },
    "path-of-a-dot": (score(path="/./score"), 404, "this deployment is not served here"),
    "path-of-the-status": (request("GET", "/%73tatus"), 404, NOTHING),
    "path-of-the-metrics": (request("GET", "/metrics%0a"), 404, NOTHING),
    "head": (score(method="HEAD"), 405, ""),
    "options": (score(method="OPTIONS"), 405, "this method is not for this path"),
    "method-in-another-header": (request("GET", x_http_method_override="POST"), 405, "this method is not"),
}

# What is unusual, and yet means one thing
TAKEN = {
    "plain": score(),
    "chunks": in_chunks(),
    "version-1.0": score(version="1.0"),
    "version-1.2": in_chunks(version="1.2"),
    "encoding-in-capitals": in_chunks(transfer_encoding="CHUNKED"),
    "same-length-twice": score(content_length=f"{LENGTH}, {LENGTH}"),  # which h11 makes one of
    "length-with-zeros": score(content_length=f"00{LENGTH}"),
    "lines-without-carriage-return": score().replace(b"\r\n", b"\n"),
    "folded-header": score(authorization=f"Bearer\r\n {KEY}"),
    "spaces-behind-bearer": score(authorization=f"Bearer   {KEY} \t"),
    "other-parameter-of-the-type": score(content_type='application/json; charset="UTF-8" ; xcharset=utf-16'),
    "names-with-underscores": score().replace(
        b"x-canary", b"transfer_encoding: chunked\r\nauthorization_: x\r\nazureml_model_deployment: none\r\nx-canary"
    ),
    "accept-in-two-lines": twice("accept", "text/html", "application/json"),
    "query": score(path="/score?a=%2F%0a"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ask():
    """The answer to bytes: status, headers and body, with what may come behind it; and the entries of the log."""
    with pytest.MonkeyPatch.context() as patch:
        async with served(patch) as ask:
            yield ask


@asynccontextmanager
async def served(patch):
    async with running(patch, key_digests=(digest(KEY), digest(OTHER_KEY))) as caller:
        config = uvicorn.Config(
            caller.app, http=HttpProtocol, ws="none", lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.001)

        async def ask(raw):
            n_before = len(caller.log.entries)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(raw)
            async with asyncio.timeout(10.0):
                received = await reader.read()
            writer.close()
            while server.server_state.tasks:  # they write the log
                await asyncio.sleep(0.001)
            head, _, rest = received.partition(b"\r\n\r\n")
            return int(head.split()[1]), head.lower(), rest, caller.log.entries[n_before:]

        yield ask
        server.should_exit = True
        await serving


@pytest.mark.parametrize("raw, status, message", REFUSED.values(), ids=REFUSED)
async def test_head_that_may_mean_two_things_is_refused(ask, raw, status, message):
    got, head, body, entries = await ask(raw)
    assert got == status
    assert b"\r\nconnection: close" in head
    if body:  # HEAD has none
        error = json.loads(body)  # one answer, and no other behind it
        assert (error["status"], message in error["message"]) == (status, True), error
        assert error["request_id"].encode() in head
    if message not in ("", INVALID):  # else it did not reach us
        assert (entries[-1].status, entries[-1].reason) == (status, error["message"])


@pytest.mark.parametrize("raw", TAKEN.values(), ids=TAKEN)
async def test_head_that_means_one_thing_is_taken(ask, raw):
    status, _, body, _ = await ask(raw)
    assert (status, len(json.loads(body)[0]["text_features"])) == (200, 1024)


@pytest.mark.parametrize(
    "raw",
    [
        in_chunks(version="1.0", connection="keep-alive"),
        in_chunks(content_length="5", connection="keep-alive"),
        in_chunks(content_length="5", connection="keep-alive", path="/live").replace(b"POST", b"GET"),
    ],
)
async def test_nothing_behind_an_unsure_end_is_taken_for_a_request(ask, raw):
    status, head, rest, entries = await ask(raw + request("GET", "/status"))
    assert (status, len(entries)) == (400, 1)
    assert b"\r\nconnection: close" in head
    assert json.loads(rest)["status"] == 400


async def test_who_sends_a_large_body_learns_why_it_is_refused(ask):
    """A connection that is closed with bytes unread would be reset, and the answer lost with it."""
    status, _, body, _ = await ask(chunked(bytes(2**22), content_length="5"))
    assert (status, BOTH in json.loads(body)["message"]) == (400, True)


async def test_encoded_path_is_no_route_in_the_log(ask):
    for path, route in (("/medimageinsight%2Fscore", "other"), ("/medimageinsight/score", "/medimageinsight/score")):
        *_, (entry,) = await ask(score(path=path))
        assert entry.route == route


async def test_events_are_sent_where_any_line_accepts_them(ask):
    study = json.dumps({"input_data": {"columns": ["frontal_image"], "data": []}}).encode()
    for lines in ("text/event-stream", "application/json\r\naccept: text/event-stream"):
        _, head, _, _ = await ask(request(body=study, accept=lines))
        assert b"content-type: text/event-stream" in head
