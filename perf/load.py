"""Keep a server busy with a number of callers, made by Locust, and time and check each of their requests."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

USERS = Path(__file__).with_name("load_users.py")
FAILED_REQUESTS = 1  # exit code of Locust


class TritonRequest(TypedDict):
    """To a model of Triton, over gRPC."""

    model: str
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]  # by output; what is not here is not checked


class ScoreRequest(TypedDict):
    """To the scoring endpoint."""

    body: bytes
    expected: list[dict[str, list | None]]  # of each row, its vectors by name


@dataclass(frozen=True)
class Load:
    """What so many callers at a time were answered, to requests of one kind."""

    latencies_ms: list[float]  # of each request, from call to answer
    failures: dict[str, int]  # what went wrong, and how often
    seconds: float  # from the first call to the last answer, of any kind

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies_ms) / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of the requests did not exceed, interpolated."""
        return float(np.percentile(self.latencies_ms, percent))


def load(
    url: str, requests: Sequence[TritonRequest] | Sequence[ScoreRequest], *, callers: int, seconds: int
) -> dict[str, Load]:
    """What is answered, by kind ("infer" over gRPC; "score" and "refused with 429" of the endpoint).

    Each caller sends the next of the requests as soon as it has the answer to its last one, for so many seconds, and at
    least one. The start, into an empty queue, and the end, when fewer are left, are part of the time.

    Raises:
        RuntimeError: Locust could not run, or no request ended.
    """
    user = "TritonUser" if url.startswith("grpc://") else "ScoreUser"
    with tempfile.TemporaryDirectory() as scratch:
        sent, answers = Path(scratch, "requests.pickle"), Path(scratch, "answers.json")
        sent.write_bytes(pickle.dumps(requests))
        command = [sys.executable, "-m", "locust", "-f", str(USERS), user, "--headless", "--host", url]
        command += ["-u", str(callers), "-r", str(callers), "--stop-timeout", "600"]
        variables = {"PERF_REQUESTS": str(sent), "PERF_ANSWERS": str(answers), "PERF_SECONDS": str(seconds)}
        done = subprocess.run(
            [*command, "--skip-log", "--only-summary", "--loglevel", "ERROR"],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, FAILED_REQUESTS) or not answers.is_file():
            raise RuntimeError(f"Locust ended with {done.returncode}:\n{done.stderr[-2000:]}")
        answered = {kind: Load(**found) for kind, found in json.loads(answers.read_text()).items()}
    if not answered:
        raise RuntimeError(f"no request to {url} ended in {seconds} s:\n{done.stderr[-2000:]}")
    return answered


def triton_load(url: str, requests: Sequence[TritonRequest], *, callers: int, seconds: int) -> Load:
    """The same of a Triton, which must answer every request.

    Raises:
        RuntimeError: a request failed.
    """
    (found,) = load(url, requests, callers=callers, seconds=seconds).values()
    if found.failures:
        raise RuntimeError(f"{found.failed} of {len(found.latencies_ms)} requests failed: {'; '.join(found.failures)}")
    return found
