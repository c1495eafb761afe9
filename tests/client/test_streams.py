"""Reports over both wires against small servers of this process, which answer as Triton 2.51 was seen to."""

import base64
import json
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from time import sleep

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from medimage_client import CXRReportGen, errors
from medimage_client.images.encoding import encode_image
from tests.client.fake_reports import OUTPUT, PIECES
from tests.client.full_shared_memory import MESSAGES as FULL_SHARED_MEMORY
from tests.client.grpc_server import grpc_serving
from tests.client.http_server import serving
from tests.waiting import wait_until

FULL_QUEUE = "64 reports are waiting already; try again later"
LAST = {"text_output": PIECES[-1], "output": OUTPUT, "status": "complete"}
WAIT_S = 10  # for what is bound to come
LATER_S = 0.05  # the end of a stream over gRPC, after its error


class Script:
    """What a stub server does: refuse as told, one refusal a request, then stream, and perhaps break off."""

    def __init__(self):
        self.refusals = []  # (gRPC code, message)
        self.broken = None  # gRPC code and message after all pieces but the last
        self.requests = []
        self.go_on = threading.Event()  # after the first piece
        self.go_on.set()
        self.endless = False
        self.left = threading.Event()  # by the client, before the end
        self.end_after_error = lambda context: sleep(LATER_S)  # over gRPC
        self.ended_by_itself = None  # the latest stream that failed over gRPC, not cut by the client

    def responses(self):
        yield {"text_output": PIECES[0]}
        assert self.go_on.wait(WAIT_S)
        while self.endless and not self.left.wait(0.01):
            yield {"text_output": "more"}
        for piece in PIECES[1:-1]:
            yield {"text_output": piece}
        if self.broken is None:
            yield LAST


class GrpcStub(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, script):
        self.script = script

    def read(self, request):
        inputs = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            assert list(tensor.shape) == [1]
            is_number = tensor.datatype == "INT32"
            inputs[tensor.name] = (np.frombuffer(raw, np.int32) if is_number else deserialize_bytes_tensor(raw))[0]
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()
        }
        self.script.requests.append((request.model_name, inputs, parameters))

    def response(self, values):
        response = service_pb2.ModelInferResponse()
        for name, value in values.items():
            response.outputs.add(name=name, datatype="BYTES", shape=[1])
            response.raw_output_contents.append(len(value.encode()).to_bytes(4, "little") + value.encode())
        return response

    def ModelStreamInfer(self, requests, context):
        context.add_callback(self.script.left.set)
        for request in requests:
            if request.model_name.endswith("unknown"):
                yield from self.failure(f"Request for unknown model: '{request.model_name}' is not found", context)
                continue
            self.read(request)
            if self.script.refusals:
                yield from self.failure(self.script.refusals.pop(0)[1], context)
                continue
            for values in self.script.responses():
                yield service_pb2.ModelStreamInferResponse(infer_response=self.response(values))
            if self.script.broken is not None:
                yield from self.failure(self.script.broken[1], context)

    def failure(self, message, context):
        """A response without a code; Triton ends the stream after it, some time later."""
        yield service_pb2.ModelStreamInferResponse(error_message=message)
        self.script.end_after_error(context)
        self.script.ended_by_itself = context.is_active()


class HttpStub(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, _, _, model, method = self.path.split("/")
        assert method == "generate_stream"
        self.script.requests.append((model, json.loads(body), None))
        if self.script.refusals:
            message = self.script.refusals.pop(0)[1]
            self.answer(400, "text/event-stream", b"data: " + json.dumps({"error": message}).encode() + b"\n\n")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for values in self.script.responses():
                self.event({"model_name": model, "model_version": "1"} | values)
            if self.script.broken is not None:
                self.event({"error": self.script.broken[1]})
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.script.left.set()
            self.close_connection = True

    def event(self, values):
        data = b"data: " + json.dumps(values, ensure_ascii=False).encode() + b"\n\n"
        for part in (data[:9], data[9:]):  # a chunk is no line
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    def answer(self, status, content_type, body):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def script():
    return Script()


@pytest.fixture
def grpc_url(script):
    with grpc_serving(GrpcStub(script)) as url:
        yield url


@pytest.fixture
def http_url(script):
    with serving(type("Stub", (HttpStub,), {"script": script})) as url:
        yield url


@pytest.fixture(params=["grpc", "http"])
def url(request):
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def client(url):
    with CXRReportGen(url) as client:
        yield client


@pytest.fixture
def film(grey):
    return grey(7)


def test_report_arrives_over_both_wires(client, script, film):
    assert client.report(film).text == "Heart is normal. Opacity."
    assert [model for model, *_ in script.requests] == ["cxrreportgen_stream"]


def test_report_whose_stream_breaks_off_is_asked_for_again(client, script, film):
    """Nobody has seen a piece of it; a stream of the caller's is not begun again."""
    script.broken = "UNAVAILABLE", FULL_QUEUE
    responses = script.responses

    def heal():
        if len(script.requests) == 2:
            script.broken = None
        return responses()

    script.responses = heal
    assert client.report(film).text == "Heart is normal. Opacity."
    assert len(script.requests) == 2


def test_report_whose_stream_ends_too_soon_is_an_error(client, script, film):
    script.responses = lambda: iter([{"text_output": PIECES[0]}])
    with pytest.raises(errors.ResponseError, match="the stream ended before its report"):
        client.report(film)


def test_report_that_takes_too_long_is_cancelled_on_the_server(client, script, film, monkeypatch):
    monkeypatch.setattr("medimage_client.wire.triton_workarounds.CANCEL_AFTER_S", 0.1)
    script.endless = True
    with pytest.raises(errors.RequestTimeout, match=r"no answer within 0\.5 s"):
        client.report(film, timeout=0.5)
    assert script.left.wait(WAIT_S)


def test_pieces_arrive_before_the_next_is_written(client, script, film):
    script.go_on.clear()
    stream = client.stream(film, timeout=WAIT_S)
    assert next(stream) == PIECES[0]
    script.go_on.set()
    assert [PIECES[0], *stream] == list(PIECES)
    assert stream.report.text == "Heart is normal. Opacity."


def test_study_travels_over_grpc_as_it_is(grpc_url, script, film):
    with CXRReportGen(grpc_url) as client:
        list(client.stream(film, indication="Füße", max_new_tokens=7, constrained=True, timeout=5))
    ((model, inputs, parameters),) = script.requests
    assert model == "cxrreportgen_stream"
    assert inputs == {
        "frontal_image": encode_image(film), "indication": "Füße".encode(), "mode": b"grounded", "max_new_tokens": 7
    }  # fmt: skip
    assert parameters["constrained"] is True
    assert 4_000_000 < parameters["timeout"] <= 5_000_000  # microseconds


def test_study_travels_over_http_as_json_with_base64_images(http_url, script, film):
    with CXRReportGen(http_url) as client:
        list(client.stream(film, indication="Füße", max_new_tokens=7, constrained=True))
    ((model, body, _),) = script.requests
    assert model == "cxrreportgen_stream"
    assert base64.b64decode(body.pop("frontal_image"), validate=True) == encode_image(film)
    assert body == {"indication": "Füße", "mode": "grounded", "max_new_tokens": 7, "constrained": True}


def test_full_queue_is_tried_again_over_both_wires(client, script, film, no_delay):
    script.refusals = [("UNAVAILABLE", FULL_QUEUE)] * 2
    assert list(client.stream(film)) == list(PIECES)
    assert len(script.requests) == 3


FAILURES = [  # gRPC code, message, type and status of the error
    ("INVALID_ARGUMENT", "lateral_image: not an image", errors.InvalidInput, 400),
    ("UNAVAILABLE", FULL_QUEUE, errors.Unavailable, 503),
    ("UNAVAILABLE", "cxr_image_encoder is busy; try again later", errors.Unavailable, 503),
    ("UNAVAILABLE", "the server is shutting down", errors.Unavailable, 503),
    ("UNAVAILABLE", "the report took longer than the limit of 600 s", errors.RequestTimeout, 504),
    ("INTERNAL", "internal error", errors.ServerError, 500),
    ("INTERNAL", "internal error: the image encoder gave no finite values", errors.ServerError, 500),
    ("INTERNAL", "internal error: a step is shutting down", errors.ServerError, 500),
    ("INTERNAL", "Stub process 'cxrreportgen_stream_0_0' is not healthy.", errors.ModelLost, 500),
    ("INTERNAL", "Failed to process the request(s): Stub process 'm_0_0' is not healthy.", errors.ModelLost, 500),
    ("INTERNAL", "Failed to process the request(s) for model 'm', message: MemoryError", errors.ServerError, 500),
    ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting", errors.Unavailable, 503),
    ("NOT_FOUND", "Request for unknown model: 'cxrreportgen_stream' is not found", errors.NotFound, 404),
    (
        "UNAVAILABLE",
        "Request for unknown model: 'cxrreportgen_stream' version 1 is not at ready state",
        errors.NotReady,
        503,
    ),
]


@pytest.mark.parametrize("method", ["report", "stream"])
@pytest.mark.parametrize(("code", "message", "error_type", "status"), FAILURES)
def test_refusal_is_the_same_error_over_both_wires(url, script, film, method, code, message, error_type, status):
    script.refusals = [(code, message)]
    with CXRReportGen(url, retries=0) as client, pytest.raises(errors.MedImageError) as refused:
        list(client.stream(film)) if method == "stream" else client.report(film)
    assert (type(refused.value), str(refused.value)) == (error_type, message)
    assert refused.value.status == status


def test_text_of_the_server_is_read_for_the_column_at_fault(url, script, film):
    script.refusals = [("INVALID_ARGUMENT", "lateral_image: not an image")]
    with CXRReportGen(url) as client, pytest.raises(errors.InvalidInput) as refused:
        list(client.stream(film))
    error = refused.value
    assert (error.reason, error.row, error.column) == ("not an image", None, "lateral_image")


@pytest.mark.parametrize("message", FULL_SHARED_MEMORY)
def test_full_shared_memory_of_the_server_is_tried_again_and_says_what_helps(url, script, film, no_delay, message):
    script.refusals = [("INTERNAL", message)] * 2
    with CXRReportGen(url) as client:
        assert list(client.stream(film)) == list(PIECES)
    script.refusals = [("INTERNAL", message)]
    with CXRReportGen(url, retries=0) as client, pytest.raises(errors.NoSharedMemory) as refused:
        list(client.stream(film))
    assert refused.value.status == 503
    assert "larger /dev/shm" in str(refused.value)
    assert "medimage-triton-" not in str(refused.value)  # who knows the name of a region can look for it


def test_stream_that_fails_over_grpc_is_left_to_end_by_itself(grpc_url, script, film):
    """Triton 2.51 may crash where one is cancelled just as it ends."""
    script.refusals = [("INVALID_ARGUMENT", "lateral_image: not an image")]
    with CXRReportGen(grpc_url) as client:
        with pytest.raises(errors.InvalidInput):
            list(client.stream(film))
        assert script.ended_by_itself
        script.ended_by_itself = None
        script.broken = "INTERNAL", "internal error"
        with pytest.raises(errors.ServerError):
            list(client.stream(film))
        assert script.ended_by_itself


def test_stream_that_does_not_end_after_its_error_is_cut(grpc_url, script, film, monkeypatch):
    """As where a process of the model has gone."""
    monkeypatch.setattr("medimage_client.wire.triton_workarounds.STREAM_END_S", 0.01)
    script.end_after_error = lambda context: script.left.wait(WAIT_S)
    script.refusals = [("INTERNAL", "internal error")]
    with CXRReportGen(grpc_url) as client, pytest.raises(errors.ServerError, match="internal error"):
        list(client.stream(film))
    wait_until(lambda: script.ended_by_itself is False)


def test_connection_that_is_lost_after_the_error_does_not_hide_it(grpc_url, script, film):
    script.end_after_error = lambda context: context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    script.refusals = [("INVALID_ARGUMENT", "lateral_image: not an image")]
    with CXRReportGen(grpc_url) as client, pytest.raises(errors.InvalidInput, match="not an image"):
        list(client.stream(film))
    assert len(script.requests) == 1


def test_unknown_model_over_grpc_is_not_found_without_a_code(grpc_url, film, monkeypatch):
    monkeypatch.setattr("medimage_client.reports.requests.MODEL", "unknown")
    with (
        CXRReportGen(grpc_url) as client,
        pytest.raises(errors.NotFound, match="unknown model: 'unknown' is not found"),
    ):
        list(client.stream(film))


@pytest.mark.parametrize(("code", "message", "error_type", "status"), FAILURES[1:])  # not what refuses a request
def test_stream_that_breaks_off_gives_its_pieces_and_the_same_error(
    client, script, film, code, message, error_type, status
):
    script.broken = code, message
    stream = client.stream(film)
    assert [next(stream) for _ in PIECES[:-1]] == list(PIECES[:-1])
    with pytest.raises(errors.MedImageError) as broken:
        next(stream)
    assert (type(broken.value), str(broken.value), broken.value.status) == (error_type, message, status)
    assert len(script.requests) == 1


def test_stream_left_early_ends_on_the_server(client, script, film):
    script.endless = True
    with client.stream(film) as stream:
        assert next(stream) == PIECES[0]
        assert next(stream) == "more"
    assert script.left.wait(WAIT_S)
    script.endless = False
    script.left.clear()
    assert client.report(film).status == "complete"  # the client is as good as before


def test_stream_out_of_time_ends_on_the_server(client, script, film):
    script.endless = True
    with pytest.raises(errors.RequestTimeout, match=r"no end within 0\.3 s"):
        list(client.stream(film, timeout=0.3))
    assert script.left.wait(WAIT_S)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_listening_is_a_transport_error(scheme, film):
    with CXRReportGen(f"{scheme}://127.0.0.1:1", retries=0) as client:  # a port nobody uses
        with pytest.raises(errors.TransportError, match="cannot reach the server: "):
            next(client.stream(film))
        assert client.is_ready() is False


def not_triton(status):
    return f"HTTP {status} and a body that is not Triton's; is this the address of a Triton server?"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (502, b"<html>Jane</html>", not_triton(502)),
        (200, b"<html>Jane</html>", "the stream ended before its report"),
        (200, b"data: Jane\n\n", not_triton(200)),
        (200, b'data: ["Jane"]\n\n', not_triton(200)),
        (200, b"x" * 2**20, not_triton(200)),
        (401, b'{"detail": "Jane"}', not_triton(401)),
        (403, b'{"error": "forbidden"}', "forbidden"),
    ],
    ids=["bad-gateway", "page", "event", "list", "endless-line", "other-json", "triton"],
)
def test_http_body_that_is_not_tritons_is_not_shown(film, status, body, message):
    class Proxy(HttpStub):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(status, "text/html", body)

    with serving(Proxy) as url, CXRReportGen(url, retries=0) as client, pytest.raises(errors.MedImageError) as refused:
        list(client.stream(film))
    assert str(refused.value) == message
    assert refused.value.status == status


def test_http_server_that_dies_in_a_stream_is_a_transport_error(film):
    class Dying(HttpStub):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.event({"text_output": "a"})
            self.close_connection = True  # without the last chunk

    with serving(Dying) as url, CXRReportGen(url) as client:
        stream = client.stream(film)
        assert next(stream) == "a"
        with pytest.raises(errors.TransportError, match="cannot reach the server: "):
            next(stream)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("method", ["report", "stream"])
@pytest.mark.parametrize(
    "answer",
    [
        b"Jane has a cough\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nJane has a cough\r\n\r\n",
        CHUNKED + b"Jane has a cough\r\n",
        CHUNKED + b"3\r\nJane has a cough\r\n",
        CHUNKED + b"100000\r\n" + b"Jane" * 2**18 + b"\r\n",
    ],
    ids=["status", "header", "chunk-size", "chunk", "endless-line"],
)
def test_http_that_is_damaged_is_not_shown(film, method, answer):
    class Damaged(HttpStub):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            with suppress(ConnectionError):  # the client does not read on
                self.wfile.write(answer)
            self.close_connection = True

    with serving(Damaged) as url, CXRReportGen(url, retries=0) as client, pytest.raises(errors.MedImageError) as failed:
        list(client.stream(film)) if method == "stream" else client.report(film)
    assert "\n" not in str(failed.value)
    assert "Jane" not in "".join(traceback.format_exception(failed.value))


# ---- the command, as a process of its own


@pytest.fixture
def command(url, script, film, tmp_path):
    """`medimage report` while it writes a plain text that has no end."""
    path = tmp_path / "film.png"
    path.write_bytes(encode_image(film))
    script.endless = True
    program = [sys.executable, "-c", "from medimage_client.cli import main; main()"]
    args = ["report", str(path), "--mode", "findings", "--url", url]
    with subprocess.Popen([*program, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        yield process
        process.kill()


def test_reader_that_leaves_ends_the_command_in_silence(command, script):
    command.stdout.close()
    assert command.wait(WAIT_S) == 1
    assert command.stderr.read() == b""
    assert script.left.wait(WAIT_S)


def test_ctrl_c_ends_the_command_with_one_line(command, script):
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=WAIT_S)[1].split() == [b"Aborted!"]
    assert command.returncode == 1
    assert script.left.wait(WAIT_S)
