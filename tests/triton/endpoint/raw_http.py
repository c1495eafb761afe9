"""Requests to the endpoint byte by byte, which may be wrong in any way, and the answers to them."""

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse

from tests.waiting import WAIT_S

KEY = "a-key-of-the-tests-1234567890"
CANARY = "Quokka"  # stands for what is private: it is in most requests, and may be in no answer and no log


@dataclass(frozen=True)
class Answer:
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def error(self):
        return json.loads(self.body)


def request(method="POST", path="/score", body=b"", *, key=KEY, version="1.1", **headers):
    """A request, right but for what is asked for. Header names have _ for -; None leaves one out.

    The connection is closed after its answer.
    """
    sent = {
        "host": "test",
        "connection": "close",
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-canary": CANARY,
    }
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in sent.items() if value is not None]
    return f"{method} {path} HTTP/{version}\r\n".encode("latin-1") + b"".join(lines) + b"\r\n" + body


def chunked(*parts, path="/score", **headers):
    """The same with a body in chunks."""
    head = request(path=path, **{"content_length": None, "transfer_encoding": "chunked"} | headers)
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def ask(address, raw, n_answers=1):
    """Send bytes and read an answer, or several to requests that were sent at once; a list of those there are."""
    with socket.create_connection(address, timeout=WAIT_S) as connection:
        with suppress(ConnectionError):  # who is refused early may be cut off while sending
            connection.sendall(raw)
        answers = []
        # one reader for all answers: what it has read too much of one belongs to the next
        with connection.makefile("rb") as reader:
            while len(answers) < n_answers and (answer := read_answer(reader, raw.partition(b" ")[0])):
                answers.append(answer)
        return answers


def read_answer(reader, method):
    """None if the connection ends without an answer."""
    response = HTTPResponse(Connected(reader), method=method.decode("latin-1"))
    try:
        response.begin()
        return Answer(response.status, response.headers, response.read())
    except ConnectionError:  # also http.client's own, of an end without a byte
        return None


class Connected:
    """What HTTPResponse wants of a socket, with a reader that stays open."""

    def __init__(self, reader):
        self._reader = reader

    def makefile(self, mode):
        return Unclosed(self._reader)


class Unclosed:
    def __init__(self, reader):
        self._reader = reader

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def close(self):
        pass
