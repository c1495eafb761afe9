"""Both wires against small servers of this process: the same answers, the same errors, and silence on stderr."""

import json
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor

from medimage_client import MedImageInsight, errors
from medimage_client.wire.error_reader import unified_error
from medimage_client.wire.triton import Endpoint
from tests.client.full_shared_memory import MESSAGES as FULL_SHARED_MEMORY
from tests.client.grpc_server import grpc_serving
from tests.client.http_server import serving

FULL_QUEUE = ("UNAVAILABLE", 503, "in ensemble 'medimageinsight_text', Exceeds maximum queue size")


class Script:
    """What a stub server does: fail as told, one failure a request, then answer; requests are noted."""

    def __init__(self):
        self.failures = []
        self.requests = []
        self.hold = None

    def answer(self, model, raw_values, parameters):
        texts = [value.decode() for value in deserialize_bytes_tensor(raw_values)]
        self.requests.append((model, texts, parameters))
        if self.hold is not None:
            self.hold.wait()
        return self.failures.pop(0) if self.failures else None, texts

    @staticmethod
    def outputs(texts):
        features = np.zeros((len(texts), 1024), np.float32)
        features[np.arange(len(texts)), [len(text) for text in texts]] = 1
        return {"text_features": features, "scaling_factor": np.full((len(texts), 1), 4.5, np.float32)}


class GrpcStub(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, script):
        self.script = script

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name != "medimageinsight_text")

    def ModelInfer(self, request, context):
        parameters = {name: value.int64_param for name, value in request.parameters.items()}
        failure, texts = self.script.answer(request.model_name, request.raw_input_contents[0], parameters)
        if failure is not None:
            code, _, message = failure
            context.abort(grpc.StatusCode[code], message)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, array in self.script.outputs(texts).items():
            response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


class HttpStub(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(400 if self.path == "/v2/models/medimageinsight_text/ready" else 200, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        header_length = int(self.headers["Inference-Header-Content-Length"])
        parameters = json.loads(body[:header_length])["parameters"]
        model = self.path.split("/")[3]
        failure, texts = self.script.answer(model, body[header_length:], parameters)
        if failure is not None:
            _, status, message = failure
            self.reply(status, message if isinstance(message, bytes) else json.dumps({"error": message}).encode())
            return
        outputs = [
            {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.reshape(-1).tolist()}
            for name, array in self.script.outputs(texts).items()
        ]
        self.reply(200, json.dumps({"model_name": model, "outputs": outputs}).encode())

    def reply(self, status, body):
        with suppress(ConnectionError):  # a client that stopped waiting
            self.send_response(status)
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
    with MedImageInsight(url) as client:
        yield client


def test_answers_arrive_over_both_wires(client, script, unit_vectors):
    assert np.array_equal(client.embed_texts(["abc", "é"], timeout=7), unit_vectors([3, 1]))
    ((model, texts, parameters),) = script.requests
    assert (model, texts) == ("medimageinsight_text", ["abc", "é"])
    assert 6_000_000 < parameters["timeout"] <= 7_000_000  # microseconds, for Triton's queue


@pytest.mark.parametrize(
    ("code", "http_status", "error_type", "status"),
    [
        ("INVALID_ARGUMENT", 400, errors.InvalidInput, 400),
        ("PERMISSION_DENIED", 403, errors.ResponseError, 403),
        ("NOT_FOUND", 404, errors.NotFound, 404),
        ("RESOURCE_EXHAUSTED", 429, errors.Unavailable, 429),
        ("INTERNAL", 500, errors.ServerError, 500),
        ("UNIMPLEMENTED", 501, errors.ServerError, 501),
        ("UNAVAILABLE", 503, errors.Unavailable, 503),
        ("DEADLINE_EXCEEDED", 504, errors.RequestTimeout, 504),
    ],
)
def test_failure_is_the_same_error_over_both_wires(url, script, code, http_status, error_type, status):
    script.failures = [(code, http_status, "in ensemble 'medimageinsight_text', some\nreason")]
    with MedImageInsight(url, retries=0) as client, pytest.raises(errors.MedImageError) as failed:
        client.embed_texts(["a"])
    assert type(failed.value) is error_type
    assert failed.value.status == status
    assert str(failed.value) == "some reason"


def test_full_queue_is_retried_over_both_wires(client, script, unit_vectors, no_delay):
    script.failures = [FULL_QUEUE, FULL_QUEUE]
    assert np.array_equal(client.embed_texts(["abc"]), unit_vectors([3]))
    assert len(script.requests) == 3


@pytest.mark.parametrize("message", FULL_SHARED_MEMORY)
def test_full_shared_memory_of_the_server_is_tried_again_and_says_what_helps(
    url, script, unit_vectors, no_delay, message
):
    script.failures = [("INTERNAL", 500, f"in ensemble 'medimageinsight_text', {message}")] * 2
    with MedImageInsight(url) as client:
        assert np.array_equal(client.embed_texts(["abc"]), unit_vectors([3]))
    script.failures = [("INTERNAL", 500, message)]
    with MedImageInsight(url, retries=0) as client, pytest.raises(errors.NoSharedMemory) as failed:
        client.embed_texts(["abc"])
    assert failed.value.status == 503
    assert "larger /dev/shm" in str(failed.value)


@pytest.mark.parametrize(
    "message",
    [
        "Request for unknown model: 'medimageinsight_text' version 1 is not at ready state",
        "Request for unknown model: 'medimageinsight_text' has no available versions",
        "Server not ready",
    ],
)
def test_model_that_is_not_loaded_is_not_ready(url, script, message):
    script.failures = [("UNAVAILABLE", 503, message)]
    with MedImageInsight(url, retries=0) as client, pytest.raises(errors.NotReady) as failed:
        client.embed_texts(["a"])
    assert str(failed.value) == message


def test_is_ready_needs_both_models(client):
    assert client.is_ready() is False  # the stubs have no text model


def test_no_answer_in_time_is_a_timeout_over_both_wires(client, script):
    script.hold = threading.Event()
    try:
        with pytest.raises(errors.RequestTimeout, match=r"no answer within 0\.2 s"):
            client.embed_texts(["a"], timeout=0.2)
    finally:
        script.hold.set()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_listening_is_a_transport_error_and_not_ready(scheme):
    with MedImageInsight(f"{scheme}://127.0.0.1:1", retries=0) as client:  # a port nobody uses
        with pytest.raises(errors.TransportError, match="cannot reach the server: ") as failed:
            client.embed_texts(["a"])
        assert client.is_ready() is False
    assert failed.value.status is None
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    "message",  # recorded with grpcio 1.85
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host",
        "errors resolving nowhere.invalid:1: [field:hostname lookup error:address lookup failed for nowhere.invalid:1]",
        "Stream removed (Socket closed)",
    ],
    ids=["refused", "unknown-host", "server-died"],
)
def test_grpc_connection_failure_is_told_from_an_unavailable_model(message):
    error = unified_error(InferenceServerException(message, status="StatusCode.UNAVAILABLE"))
    assert type(error) is errors.TransportError


def test_http_server_that_dies_is_a_transport_error():
    class Dying(HttpStub):
        def do_POST(self):
            self.close_connection = True  # without an answer

    with serving(Dying) as url, MedImageInsight(url, retries=0) as client, pytest.raises(errors.TransportError):
        client.embed_texts(["a"])


def test_body_that_is_not_tritons_is_not_shown(http_url, script):
    script.failures = [(None, 502, b"<html>\n<body>Bad gateway</body>")]
    with MedImageInsight(http_url, retries=0) as client, pytest.raises(errors.ServerError) as failed:
        client.embed_texts(["a"])
    assert str(failed.value) == "HTTP 502 and a body that is not Triton's; is this the address of a Triton server?"


@pytest.mark.parametrize(
    "body",
    [b"<html>Log in, Jane</html>", b"", b'{"login": "Jane"}', b'["Jane"]', b'{"outputs": [{"name": "text_features"}]}'],
    ids=["page", "nothing", "object", "list", "half-an-answer"],
)
def test_login_page_of_a_proxy_is_told_from_tritons_answer(http_url, script, body):
    script.failures = [(None, 200, body)]
    with MedImageInsight(http_url) as client, pytest.raises(errors.ResponseError) as failed:
        client.embed_texts(["a"])
    assert str(failed.value) == "HTTP 200 and a body that is not Triton's; is this the address of a Triton server?"
    assert failed.value.status == 200


@pytest.mark.parametrize(
    ("url", "scheme", "address"),
    [
        ("grpc://gpu-1:9001", "grpc", "gpu-1:9001"),
        ("grpc://gpu-1", "grpc", "gpu-1:8001"),
        ("grpcs://gpu-1:443/", "grpcs", "gpu-1:443"),
        ("http://gpu-1", "http", "gpu-1:8000"),
        ("https://host/triton/", "https", "host:443/triton"),
        ("http://[::1]:8000", "http", "[::1]:8000"),
    ],
)
def test_url_gives_scheme_and_address(url, scheme, address):
    assert Endpoint.parse(url) == Endpoint(scheme, address)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8001", "url has no valid scheme and port; expected one of grpc://, grpcs://, http://, https://"),
        ("ftp://host", "url has no valid scheme and port"),
        ("grpc://host:port", "url has no valid scheme and port"),
        ("grpc://", "url is not grpc://host:port"),
        ("http://me:secret@host", "url is not http://host:port; credentials and queries have no place in it"),
        ("http://host?key=secret", "url is not http://host:port; credentials and queries have no place in it"),
        ("grpc://host/path", "url has the path '/path'; gRPC has none, expected grpc://host:port"),
    ],
)
def test_bad_url_is_refused_without_its_secrets(url, message):
    with pytest.raises(errors.InvalidInput) as refused:
        MedImageInsight(url)
    assert str(refused.value).startswith(message)
    assert "secret" not in str(refused.value)


MANY_CLIENTS = """
    import asyncio, sys, threading
    from medimage_client import AsyncMedImageInsight, MedImageInsight

    urls = sys.argv[1:]
    expected = list(range(1, 31))

    def synchronous(url):
        with MedImageInsight(url) as client:
            assert client.embed_texts(["x" * n for n in expected]).argmax(axis=1).tolist() == expected

    async def asynchronous(url):
        async with AsyncMedImageInsight(url) as client:
            assert (await client.embed_texts(["x" * n for n in expected])).argmax(axis=1).tolist() == expected

    threads = [threading.Thread(target=synchronous, args=[url]) for url in urls * 3]
    for thread in threads:
        thread.start()
    for url in urls * 3:
        asyncio.run(asynchronous(url))
    for thread in threads:
        thread.join()
    forgotten = [MedImageInsight(url) for url in urls]
    for client in forgotten:
        client.embed_texts(["a"])
    print("done")
"""


def test_many_clients_sync_and_async_and_forgotten_end_in_silence(grpc_url, http_url):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(MANY_CLIENTS), grpc_url, http_url]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("done\n", "", 0)


FORK = """
    import os, sys
    from medimage_client import MedImageInsight

    def embed(text):
        with MedImageInsight(sys.argv[1], timeout=10) as client:
            return int(client.embed_texts([text]).argmax())

    inherited = MedImageInsight(sys.argv[1])  # and forgotten, in both processes
    embed("a")  # starts the loop
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1])
    print(embed("abc"))
"""


def test_client_made_in_a_forked_child_does_not_hang(http_url):
    # in a process of its own, where the warning of Python 3.12 about threads and fork is no error
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORK), http_url]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("3\n0\n3\n", "", 0)


INHERITED = """
    import os, sys, time
    from medimage_client import MedImageInsight

    client = MedImageInsight(sys.argv[1], timeout=10)
    embed = lambda text: int(client.embed_texts([text]).argmax())
    embed("a")
    child = os.fork()
    if child == 0:
        print(embed("abcd"), flush=True)
        if sys.argv[2] == "close":
            client.close()
        sys.exit()  # with all that an interpreter does at its end
    status = os.waitpid(child, 0)[1]
    began = time.monotonic()
    print(status, embed("abc"), time.monotonic() - began < 5)
"""


@pytest.mark.parametrize("end", ["close", "forget"])
def test_client_used_in_a_forked_child_harms_no_call_of_its_parent(http_url, end):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(INHERITED), http_url, end]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("4\n0 3 True\n", "", 0)


TWO_LOOPS = """
    import asyncio, sys
    from medimage_client import AsyncMedImageInsight

    clients = [AsyncMedImageInsight(url) for url in sys.argv[1:]]

    async def embed(length):  # many at once, which wait for a slot
        for client in clients:
            texts = ["x" * n for n in range(1, 200)] + ["y" * length]
            print(int((await client.embed_texts(texts))[-1].argmax()))

    for length in (3, 5, 7):
        asyncio.run(embed(length))
"""


def test_asynchronous_client_works_in_one_event_loop_after_the_other(grpc_url, http_url):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(TWO_LOOPS), grpc_url, http_url]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("3\n3\n5\n5\n7\n7\n", "", 0)
