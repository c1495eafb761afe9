"""The callers that Locust makes, against a scoring endpoint of a few lines; Triton's are tested by the quick cases."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from perf.load import Load, load, triton_load
from tests.client.grpc_server import grpc_serving

ROWS = [{"image_features": [[float(n), 0.5]], "text_features": [float(n)]} for n in range(4)]


def request(*numbers):
    """Asks for rows by their number, which the stub answers from ROWS."""
    expected = [ROWS[n] | {"image_features": ROWS[n]["image_features"][0]} for n in numbers]
    return {"body": json.dumps(numbers).encode(), "expected": expected}


@contextmanager
def endpoint(answer=None):
    """A server that notes how many requests it has at most; it answers with ROWS, or as `answer(numbers)` says."""
    seen, lock = {"now": 0, "most": 0, "requests": 0}, threading.Lock()
    full = threading.Barrier(3, timeout=20)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            numbers = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                seen["requests"] += 1
                seen["now"] += 1
                seen["most"] = max(seen["most"], seen["now"])
                first = seen["requests"] <= 3
            if first and answer is None:
                full.wait()  # passes only where three are in flight at once
            status, rows = answer(numbers) if answer else (200, [ROWS[n] for n in numbers])
            with lock:
                seen["now"] -= 1
            body = json.dumps(rows).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after", "0.01")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


def test_so_many_callers_ask_at_once_and_every_answer_is_counted():
    with endpoint() as (url, seen):
        found = load(url, [request(0), request(1, 2), request(3)], callers=3, seconds=2)
    assert list(found) == ["score"]
    assert found["score"].failures == {}
    assert len(found["score"].latencies_ms) == seen["requests"] > 3
    assert found["score"].seconds > 1
    assert seen["most"] == 3
    assert found["score"].rate == pytest.approx(seen["requests"] / found["score"].seconds)


def test_refusals_failures_and_wrong_answers_are_told_apart():
    def answer(numbers):
        match numbers:
            case [0]:
                return 429, {}
            case [1]:
                return 500, {}
            case [2, 3]:
                return 200, [ROWS[3], ROWS[2]]  # in each other's place
        return 200, [ROWS[n] for n in numbers]

    with endpoint(answer) as (url, _):
        found = load(url, [request(0), request(1), request(2, 3), request(3)], callers=4, seconds=2)
    assert set(found) == {"score", "refused with 429"}
    assert found["refused with 429"].failed == 0
    assert set(found["score"].failures) == {"status 500", "wrong answer"}
    assert 0 < found["score"].failed < len(found["score"].latencies_ms)


TO_TRITON = [{"model": "nothing", "inputs": {"text": np.array([[b"heart"]], object)}, "expected": {}}]


def test_a_failed_request_fails_the_load_of_a_triton():
    class OnlyLive(service_pb2_grpc.GRPCInferenceServiceServicer):
        def ServerLive(self, request, context):
            return service_pb2.ServerLiveResponse(live=True)

    failure = r"(\d+) of \1 requests failed: .*not implemented"
    with grpc_serving(OnlyLive()) as url, pytest.raises(RuntimeError, match=failure):
        triton_load(url, TO_TRITON, callers=1, seconds=1)


def test_a_triton_that_is_not_there_fails_the_load():
    with pytest.raises(RuntimeError, match=r"no request to grpc://127\.0\.0\.1:1 ended in 1 s"):
        triton_load("grpc://127.0.0.1:1", TO_TRITON, callers=1, seconds=1)


def test_percentiles_are_those_of_numpy():
    latencies = list(np.random.default_rng(0).exponential(size=100))
    assert Load(latencies, {}, 1.0).percentile_ms(99) == pytest.approx(np.quantile(latencies, 0.99))
