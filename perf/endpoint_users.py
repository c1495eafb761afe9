"""Callers for Locust: of the scoring endpoint, and of the same Triton over gRPC. Every answer is checked.

`endpoint_load.py` runs Locust with this file. The JSON file that MEDIMAGE_ROWS names holds rows, and the vectors that
they must get, as they were given when each was asked alone.
"""

import base64
import os
import random
import time
from pathlib import Path

import gevent
import grpc.experimental.gevent
import numpy as np
import orjson
import tritonclient.grpc as triton
from locust import FastHttpUser, User, events, task

TOLERANCE = 1e-5  # of a vector's entry: in another batch sums are made in another order
WAIT_S = 120.0
MOST_ROWS = 4  # of a mixed request
LONGEST_PAUSE_S = 1.0  # of a caller who is told to come again: less patient than it is told, so that the load stays

grpc.experimental.gevent.init_gevent()
ROWS = orjson.loads(Path(os.environ["MEDIMAGE_ROWS"]).read_bytes())
IMAGES = [row for row in ROWS if row["image"] and not row["text"]]


# With gevent, gRPC 1.85 does not end: the interpreter waits for it at exit.
events.quit.add_listener(lambda exit_code, **_: os._exit(exit_code))


class EndpointUser(FastHttpUser):
    """Sends a row with an image, waits for its vector, and sends the next."""

    network_timeout = WAIT_S
    connection_timeout = WAIT_S

    @task
    def score(self) -> None:
        self.send([random.choice(IMAGES)])

    def send(self, rows: list[dict]) -> None:
        data = [[row["image"], row["text"]] for row in rows]
        body = orjson.dumps({"input_data": {"columns": ["image", "text"], "data": data}, "params": {}})
        headers = {"content-type": "application/json"}
        with self.client.post("/score", body, headers=headers, catch_response=True, name="score") as response:
            if response.status_code == 429:
                response.request_meta["name"] = "refused with 429"
                response.success()
                gevent.sleep(min(float(response.headers["retry-after"]), LONGEST_PAUSE_S))
            elif response.status_code != 200:
                response.failure(f"status {response.status_code}")
            elif not is_right(rows, orjson.loads(response.content)):
                response.failure("wrong answer")


class MixedUser(EndpointUser):
    """The same with several rows, of images, texts and both, in any order."""

    @task
    def score(self) -> None:
        self.send(random.choices(ROWS, k=random.randint(1, MOST_ROWS)))


class GrpcUser(User):
    """Sends the same images over gRPC."""

    def on_start(self) -> None:
        self.triton = triton.InferenceServerClient(self.host.removeprefix("grpc://"))

    @task
    def embed(self) -> None:
        row = random.choice(IMAGES)
        tensor = triton.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[base64.b64decode(row["image"])]], dtype=np.object_))
        failure = None
        started = time.perf_counter()
        try:
            answer = self.triton.infer("medimageinsight_image", [tensor], client_timeout=WAIT_S)
            if not is_close(answer.as_numpy("image_features")[0], row["image_features"]):
                failure = AssertionError("wrong answer")
        except Exception as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name="infer",
            response_time=1e3 * (time.perf_counter() - started),
            response_length=0,
            exception=failure,
            context={},
        )


def is_right(rows: list[dict], answer: list[dict]) -> bool:
    """Whether every row has its own vectors, in its own place."""
    return len(answer) == len(rows) and all(
        is_close(got.get("image_features", [None])[0], row["image_features"])
        and is_close(got.get("text_features"), row["text_features"])
        for row, got in zip(rows, answer, strict=True)
    )


def is_close(got: list | None, expected: list | None) -> bool:
    if got is None or expected is None:
        return got is expected
    return bool(np.allclose(got, expected, rtol=0, atol=TOLERANCE))
