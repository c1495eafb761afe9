"""`medimage serve` and `medimage endpoint` as real commands, and requests to the endpoint they start."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.triton.processes import command_line, descendants, executable, is_running
from tests.waiting import wait_until

MEDIMAGE = [str(Path(sys.executable).with_name("medimage"))]
ANY_PORT = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
KEY = "a-key-of-the-tests-1"
END_S = 20.0  # Triton ends in about 4 s; one that waits for a request that never ends takes 30 s
ANSWER_S = 30.0  # far more than anything here takes; who waits longer hangs

CLOSED = "closed"  # in the place of a status


@dataclass
class Command:
    """A command that has said that it is ready."""

    process: subprocess.Popen
    banner: str
    errors: Path  # its stderr

    @property
    def score_port(self):
        return int(re.search(r"score: https?://127\.0\.0\.1:(\d+)/score", self.banner)[1])

    @property
    def grpc_port(self):
        return int(re.search(r"ready: grpc://127\.0\.0\.1:(\d+)", self.banner)[1])

    @property
    def http_port(self):
        return int(re.search(r"ready: .*  http://127\.0\.0\.1:(\d+)", self.banner)[1])

    @property
    def socket(self):
        """URL of Triton's, where it opens no port."""
        return re.search(r"ready: .*(unix:\S+)", self.banner)[1]

    @property
    def triton(self):
        """Its process id; it is another one after each start."""
        (triton,) = [pid for pid in descendants(self.process.pid) if executable(pid) == "tritonserver"]
        return triton

    @property
    def workers(self):
        return [pid for pid in descendants(self.process.pid) if "endpoint.worker_process" in command_line(pid)]

    def stubs(self, model):
        """Process ids of a Python model, or of one of our onnxruntime backend."""
        return [pid for pid in descendants(self.triton) if is_running(pid) and f"/{model}/1/" in command_line(pid)]

    def has_said(self, words):
        return words in self.errors.read_text()


@contextmanager
def started(*arguments, folder, last_line="limits: ", environment=None, through=()):
    """A command, from when it is ready; it is ended with the block, if it still runs, with all that it started.

    `through` is a command that becomes it, as `unshare --mount`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [*through, *MEDIMAGE, *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder)} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        everything = {process.pid}
        try:
            banner = ""
            for line in process.stdout:
                banner += line
                if line.startswith(last_line):
                    break
            else:
                raise AssertionError(f"{arguments[0]} did not start:\n{errors.read_text()}")
            everything |= set(descendants(process.pid))
            yield Command(process, banner, errors)
        finally:
            everything |= set(descendants(process.pid))
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(END_S)
            finally:
                for pid in filter(is_running, everything):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def png(seed):
    """A picture like no other: 8 x 8 colours, and fine noise that makes it a file of 7 kB."""
    random_numbers = np.random.default_rng(seed)
    colours = random_numbers.integers(0, 240, (8, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    pixels = colours + random_numbers.integers(0, 16, colours.shape, dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def question(columns, rows):
    return json.dumps({"input_data": {"columns": columns, "data": rows}}).encode()


def images(image, n=1):
    return question(["image", "text"], [[base64.b64encode(image).decode(), ""]] * n)


def texts(*values):
    return question(["image", "text"], [["", value] for value in values])


def reports(image, n=1):
    return question(["frontal_image"], [[base64.b64encode(image).decode()]] * n)


def head(body=b"", *, method="POST", path="/score", length=None, key=KEY, **headers):
    """The head of a request, for a plain socket."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {key}"]
    lines += ["content-type: application/json", f"content-length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def ask(port, body=None, *, path="/score", key=KEY, timeout=ANSWER_S, headers=()):
    """(status, headers, body) of an answer; (CLOSED, {}, b"") of a connection that was refused or ended without."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        sent = {"content-type": "application/json", "authorization": f"Bearer {key}", **dict(headers)}
        try:
            connection.request("POST" if body is not None else "GET", path, body, sent)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        except TimeoutError:
            raise
        except (ConnectionError, HTTPException):
            return CLOSED, {}, b""


def status_of(port, body=None, **options):
    return ask(port, body, **options)[0]


def metric(page, name):
    """The sum of a metric over its labels; 0 where there is none."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def metrics_page(port):
    status, _, page = ask(port, path="/metrics")
    assert status == 200
    return page.decode()


def wait_until_idle(port, *, within=10.0):
    """No request holds anything in the endpoint, and none waits in Triton or holds a slot of the report generator."""

    def is_idle():
        page = metrics_page(port)
        return (
            metric(page, "medimage_endpoint_in_flight") == 0
            and metric(page, "medimage_endpoint_in_flight_bytes") == 0
            and metric(page, "nv_inference_pending_request_count") == 0
            and metric(page, "medimage_report_live_slots") == 0
        )

    wait_until(is_idle, within=within, what="that nothing is under way")
