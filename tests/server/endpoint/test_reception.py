"""Callers have an answer while no worker is there to give it."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from time import monotonic

import pytest

from medimage_server.endpoint.reception import MESSAGE, Reception
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.workers import bound

SETTINGS = EndpointSettings(tritons=("grpc://127.0.0.1:1",))


@pytest.fixture
def listener():
    with bound("127.0.0.1", 0) as listener:
        yield listener


@pytest.fixture
def reception(listener):
    reception = Reception(listener, SETTINGS)
    reception.open()
    yield reception
    reception.close()


def test_port_is_nobody_elses_from_the_beginning(listener):
    """Two sockets with SO_REUSEADDR can have one port, of any users, as long as neither listens."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            other.bind(listener.getsockname())


def ask(listener, method="GET", body=None):
    with closing(HTTPConnection(*listener.getsockname(), timeout=10.0)) as connection:
        connection.request(method, "/live", body)
        response = connection.getresponse()
        return response.status, response.getheader("retry-after"), json.loads(response.read())


@pytest.mark.parametrize("body", [None, b"x" * 300_000], ids=["probe", "body"])
def test_caller_is_told_to_come_again(reception, listener, body):
    status, retry_after, error = ask(listener, "POST" if body else "GET", body)
    assert (status, retry_after) == (503, "5")
    assert (error["status"], error["message"]) == (503, MESSAGE)
    assert len(error["request_id"]) == 36


def test_silent_callers_hold_up_nobody_and_are_told_too(reception, listener):
    with ThreadPoolExecutor(32) as pool:
        silent = [socket.create_connection(listener.getsockname(), timeout=10.0) for _ in range(32)]
        start = monotonic()
        assert ask(listener)[0] == 503
        told = list(pool.map(lambda sock: sock.recv(100), silent))
        assert monotonic() - start < 2.0
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in told)
    for sock in silent:
        sock.close()


def test_closed_it_leaves_callers_to_the_workers(reception, listener):
    reception.close()
    with socket.create_connection(listener.getsockname(), timeout=10.0) as caller:
        listener.setblocking(True)
        taken, _ = listener.accept()
        with taken:
            caller.sendall(b"hello")
            assert taken.recv(100) == b"hello"
    reception.open()
    assert ask(listener)[0] == 503
