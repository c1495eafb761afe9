"""A scoring endpoint of this process. Its embeddings follow from what is sent, as those of `fake_triton.py`."""

import base64
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from io import BytesIO

import numpy as np
from PIL import Image

from tests.client.fake_reports import OUTPUT, PIECES
from tests.client.fake_triton import unit_vectors

SCALING_FACTOR = 4.513362407684326  # of the published model, see its card
WAIT_S = 10  # for what is bound to come


def event(name, **data):
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


REPORT_EVENTS = (
    *(event("text", row=0, text=piece) for piece in PIECES),
    event("row", row=0, output=OUTPUT, status="complete"),
    event("end"),
)


class Endpoint:
    """What the server does: give each of `answers` (status, headers, body), one a request, then right ones."""

    def __init__(self):
        self.requests = []  # (path, headers, decoded body), those that GET without a body
        self.texts = []  # of the requests, as they came
        self.answers = []
        self.events = REPORT_EVENTS  # of a report; None: Azure's own endpoint, which has JSON alone
        self.endless = False  # repeats the first event
        self.left = threading.Event()  # by the client, before the end
        self.healthy = True

    def refuse(self, status, message, headers=None, **place):
        body = json.dumps({"message": message, "status": status, "request_id": "r1"} | place).encode()
        self.answers.append((status, {"Content-Type": "application/json", **(headers or {})}, body))

    def bodies(self):
        return [body for _, _, body in self.requests]


def embedded(table):
    """Azure's rows for a table: a text's length, an image's first pixel."""
    for cells in table["data"]:
        row = cells if isinstance(cells, dict) else dict(zip(table["columns"], cells, strict=True))
        answer = {"scaling_factor": SCALING_FACTOR}
        if row.get("text"):
            answer["text_features"] = unit_vectors([len(row["text"])])[0].tolist()
        if row.get("image"):
            image = Image.open(BytesIO(base64.b64decode(row["image"]))).convert("L")
            answer["image_features"] = unit_vectors([int(np.asarray(image)[0, 0])]).tolist()
        yield answer


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def handle(self):
        with suppress(ConnectionError):  # a client that breaks off
            super().handle()

    def do_GET(self):
        self.endpoint.requests.append((self.path, dict(self.headers), None))
        self.answer(200 if self.endpoint.healthy else 503, {}, b"Healthy")

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(text)
        self.endpoint.texts.append(text)
        self.endpoint.requests.append((self.path, dict(self.headers), body))
        if self.endpoint.answers:
            self.answer(*self.endpoint.answers.pop(0))
        elif "frontal_image" not in body["input_data"]["columns"]:
            self.answer(200, {}, json.dumps([*embedded(body["input_data"])]).encode())
        elif self.endpoint.events is None:
            self.answer(200, {}, json.dumps([{"output": OUTPUT}] * len(body["input_data"]["data"])).encode())
        else:
            self.stream(self.endpoint.events)

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while self.endpoint.endless and not self.endpoint.left.wait(0.01):
                self.chunk(chunks[0])
            for chunk in chunks:
                self.chunk(chunk)
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self.endpoint.left.set()
            self.close_connection = True

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, *_):
        pass
