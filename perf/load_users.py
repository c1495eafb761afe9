"""Callers for Locust: of a Triton over gRPC, and of the scoring endpoint. `load.py` runs Locust with this file.

PERF_REQUESTS names a file of requests, as `load.py` has them, and PERF_ANSWERS the one that gets what was answered.
PERF_SECONDS is how long they ask.
"""

import itertools
import json
import os
import pickle
import time
from collections import Counter, defaultdict
from pathlib import Path

import gevent
import grpc.experimental.gevent
import numpy as np
import orjson
import tritonclient.grpc as triton
from locust import FastHttpUser, User, events, task
from locust.env import Environment
from tritonclient.utils import np_to_triton_dtype

TOLERANCE = 1e-5  # of a vector's entry: in another batch sums are made in another order
WAIT_S = 600.0
LONGEST_PAUSE_S = 1.0  # of a caller who is told to come again: less patient than it is told, so that the load stays
JSON = {"content-type": "application/json"}

grpc.experimental.gevent.init_gevent()
REQUESTS = itertools.cycle(pickle.loads(Path(os.environ["PERF_REQUESTS"]).read_bytes()))

latencies_ms: dict[str, list[float]] = defaultdict(list)
failures: dict[str, Counter[str]] = defaultdict(Counter)
begun: list[float] = []
ended: list[float] = []


class TritonUser(User):
    """Sends a request, waits for its answer, and sends the next."""

    def on_start(self) -> None:
        self.triton = triton.InferenceServerClient(self.host.removeprefix("grpc://"))
        self.triton.is_server_live()  # so that it is connected

    @task
    def infer(self) -> None:
        request, tensors = next(REQUESTS), []
        for name, values in request["inputs"].items():
            tensors.append(triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
            tensors[-1].set_data_from_numpy(values)
        failure = None
        started = time.perf_counter()
        try:
            answer = self.triton.infer(request["model"], tensors, client_timeout=WAIT_S)
            if not all(is_close(answer.as_numpy(name), want) for name, want in request["expected"].items()):
                failure = AssertionError("wrong answer")
        except Exception as error:
            failure = error
        milliseconds = 1e3 * (time.perf_counter() - started)
        self.environment.events.request.fire(
            request_type="gRPC",
            name="infer",
            response_time=milliseconds,
            response_length=0,
            exception=failure,
            context={},
        )


class ScoreUser(FastHttpUser):
    """The same to the endpoint; one that is refused comes again."""

    network_timeout = WAIT_S
    connection_timeout = WAIT_S

    @task
    def score(self) -> None:
        request = next(REQUESTS)
        with self.client.post("/score", request["body"], headers=JSON, catch_response=True, name="score") as response:
            if response.status_code == 429:
                response.request_meta["name"] = "refused with 429"
                response.success()
                gevent.sleep(min(float(response.headers["retry-after"]), LONGEST_PAUSE_S))
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif not is_right(orjson.loads(response.content), request["expected"]):
                response.failure("wrong answer")


def is_right(answer: list[dict], expected: list[dict]) -> bool:
    """Whether every row has its own vectors, in its own place."""
    return len(answer) == len(expected) and all(
        is_close(got.get("image_features", [None])[0], want["image_features"])
        and is_close(got.get("text_features"), want["text_features"])
        for got, want in zip(answer, expected, strict=True)
    )


def is_close(got: object, expected: object) -> bool:
    if got is None or expected is None:
        return got is expected
    return np.shape(got) == np.shape(expected) and bool(np.allclose(got, expected, rtol=0, atol=TOLERANCE))


@events.init.add_listener
def limit_time(environment: Environment, **_: object) -> None:
    """Locust's own --run-time begins before its callers do, on a busy machine by seconds."""
    environment.events.spawning_complete.add_listener(
        lambda **_: gevent.spawn_later(float(os.environ["PERF_SECONDS"]), environment.runner.quit)
    )


@events.request.add_listener
def note(name: str, response_time: float, exception: Exception | str | None, **_: object) -> None:
    latencies_ms[name].append(response_time)
    ended.append(time.perf_counter())
    begun.append(ended[-1] - response_time / 1e3)
    if exception is not None:
        failures[name][str(exception)] += 1


@events.quit.add_listener
def end(exit_code: int, **_: object) -> None:
    """Write the answers and leave at once: with gevent, gRPC 1.85 does not end, and the interpreter waits for it."""
    try:
        seconds = max(ended) - min(begun) if ended else 0.0
        found = {
            name: {"latencies_ms": times, "failures": failures[name], "seconds": seconds}
            for name, times in latencies_ms.items()
        }
        Path(os.environ["PERF_ANSWERS"]).write_text(json.dumps(found))
    finally:
        os._exit(exit_code)
