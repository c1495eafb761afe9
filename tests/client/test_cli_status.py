"""`medimage status`, against servers that tell their state, refuse it, have none, or are not there."""

import json
import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import pytest
from click.testing import CliRunner

from medimage_client.cli.group import medimage
from tests.client.http_server import serving

KEY = "k3y-0f.the_endpoint+/="
NOT_SCORING = "Error: HTTP {} and a body that is not a scoring endpoint's; is this a scoring URI?\n"


def state(*, embeddings=True, reports=True, draining=False):
    return {
        "version": "0.1.0",
        "draining": draining,
        "deployments": {
            "medimageinsight": {"ready": embeddings, "max_rows": 1024},
            "cxrreportgen": {"ready": reports, "max_rows": 10},
        },
        "tritons": [
            {
                "url": "grpc://one:8001",
                "version": "2.51.0",
                "ready": {"medimageinsight": embeddings, "cxrreportgen": False},
            },
            {"url": "grpc://another:8001", "version": "", "ready": {"medimageinsight": False, "cxrreportgen": reports}},
        ],
        "load": {"in_flight": 3, "in_flight_bytes": 2_621_440, "answered": 1200, "failed": 12, "refused": 5},
    }


@pytest.fixture
def server():
    """A server that answers every GET with `server.answer`, (status, headers, body), and notes it."""

    class Handler(BaseHTTPRequestHandler):
        requests = []  # noqa: RUF012  # of the one server that this class is for
        answer = (200, {}, b"{}")
        delay_s = 0.0

        def handle(self):
            with suppress(ConnectionError):  # of a client that has given up
                super().handle()

        def do_GET(self):
            self.requests.append((self.path, dict(self.headers)))
            time.sleep(self.delay_s)
            status, headers, body = self.answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(Handler) as url:
        Handler.url = url
        yield Handler


def run(url, *args, **environment):
    return CliRunner().invoke(medimage, ["status", url, *args], env={"MEDIMAGE_API_KEY": None, **environment})


def tell(server, state):
    server.answer = (200, {"Content-Type": "application/json"}, json.dumps(state).encode())


def test_ready_endpoint_is_a_table_and_exit_code_0(server):
    tell(server, state())
    result = run(server.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "medimage-triton 0.1.0: ready",
        "",
        "deployment       ready",
        "medimageinsight    yes",
        "cxrreportgen       yes",
        "",
        "Triton               version  medimageinsight  cxrreportgen",
        "grpc://one:8001       2.51.0              yes            no",
        "grpc://another:8001        -               no           yes",
        "",
        "in flight   MB  answered  failed  refused",
        "3          2.5      1200      12        5",
    ]


@pytest.mark.parametrize(
    "told, reason",
    [
        (state(reports=False), "no Triton is ready for cxrreportgen"),
        (state(embeddings=False, reports=False), "no Triton is ready for medimageinsight and cxrreportgen"),
        (state(draining=True), "it is about to end"),
        (state(embeddings=False, draining=True), "it is about to end; no Triton is ready for medimageinsight"),
    ],
)
def test_endpoint_that_is_not_ready_says_why_with_exit_code_1(server, told, reason):
    tell(server, told)
    result = run(server.url)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == f"medimage-triton 0.1.0: not ready, {reason}"
    assert result.stdout.splitlines()[-1].split() == ["3", "2.5", "1200", "12", "5"]


@pytest.mark.parametrize(
    "path, asked",
    [
        ("", "/status"),
        ("/", "/status"),
        ("/score", "/status"),
        ("/score/", "/status"),
        ("/cxrreportgen/score", "/status"),
        ("/ward/7/score", "/ward/7/status"),
        ("/ward/7/medimageinsight/score", "/ward/7/status"),
    ],
)
def test_url_is_the_address_or_the_scoring_uri(server, path, asked):
    tell(server, state())
    assert run(f"{server.url}{path}").exit_code == 0
    assert [path for path, _ in server.requests] == [asked]


def test_key_comes_from_the_option_or_the_environment(server):
    tell(server, state())
    run(server.url)
    run(server.url, "--api-key", KEY)
    run(server.url, MEDIMAGE_API_KEY=KEY)
    run(server.url, "--api-key", KEY, MEDIMAGE_API_KEY="another")
    sent = [headers.get("Authorization") for _, headers in server.requests]
    assert sent == [None, *[f"Bearer {KEY}"] * 3]


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_refusal_is_told_in_the_words_of_the_endpoint_without_the_key(server, status):
    body = {"message": f"the key\n{KEY} is not valid here", "status": status, "request_id": "r"}
    server.answer = (status, {"Content-Type": "application/json"}, json.dumps(body).encode())
    result = run(server.url, MEDIMAGE_API_KEY=KEY)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: the key [api_key] is not valid here\n"


def test_azures_own_endpoint_has_no_status(server):
    server.answer = (404, {}, b"<html>not found</html>")
    result = run(f"{server.url}/score", MEDIMAGE_API_KEY=KEY)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: HTTP 404, this server has no /status; Azure's own endpoints have none, nor has a Triton\n"
    )


def test_redirect_is_not_followed_with_the_key(server):
    server.answer = (302, {"Location": f"{server.url}/elsewhere"}, b"")
    result = run(server.url, MEDIMAGE_API_KEY=KEY)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: HTTP 302, a redirect, which is not followed")
    assert [path for path, _ in server.requests] == ["/status"]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("body", [b"", b"Healthy", b"[]", b"{}", b'{"deployments": []}', b"\xff", b"[" * 100_000])
def test_other_servers_are_told_in_one_line(server, status, body):
    server.answer = (status, {}, body)
    result = run(server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == NOT_SCORING.format(status)


@pytest.mark.parametrize("name", ["version", "draining", "deployments", "tritons", "load"])
def test_state_without_one_of_its_parts_is_told_in_one_line(server, name):
    tell(server, {other: part for other, part in state().items() if other != name})
    result = run(server.url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", NOT_SCORING.format(200))


@pytest.mark.parametrize("name", ["deployments", "tritons", "load"])
@pytest.mark.parametrize("part", [None, 1, "x", [1], {"x": 1}])
def test_state_with_parts_of_another_kind_is_told_in_one_line(server, name, part):
    tell(server, state() | {name: part})
    result = run(server.url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", NOT_SCORING.format(200))


def test_server_that_is_not_there_is_told_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run(f"http://127.0.0.1:{port}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: cannot reach the server: ")
    assert result.stderr.count("\n") == 1


def test_server_that_does_not_answer_is_given_up(server):
    server.delay_s = 0.5
    result = run(server.url, "--timeout", "0.1")
    assert (result.exit_code, result.stderr) == (1, "Error: no answer within 0.1 s\n")


@pytest.mark.parametrize("url", ["grpc://host:8001", "host:5001", "ftp://host/score", "", "http://", "http://h:port"])
def test_url_that_is_none_is_refused(url):
    result = run(url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: url is not ")


@pytest.mark.parametrize("url", ["http://user:password@host/score", "https://host/score?code=secret"])
def test_url_with_secrets_is_refused_without_them(url):
    result = run(url)
    assert result.exit_code == 1
    assert not {"password", "secret"} & set(result.stderr.replace("=", " ").replace(":", " ").split())
