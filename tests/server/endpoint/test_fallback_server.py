"""Callers have an answer while no worker is there to give it."""

import asyncio
import errno
import json
import os
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPConnection, HTTPSConnection
from select import select
from shutil import which
from time import monotonic

import pytest

from medimage_server.endpoint.fallback_server import HANDSHAKE_S, MAX_CALLERS, MESSAGE, FallbackServer
from medimage_server.endpoint.settings import EndpointSettings
from medimage_server.endpoint.worker_pool import bound
from tests.waiting import wait_until

SETTINGS = EndpointSettings(tritons=("grpc://127.0.0.1:1",))


@pytest.fixture
def listener():
    with bound("127.0.0.1", 0) as listener:
        yield listener


@pytest.fixture
def fallback(listener):
    fallback = FallbackServer(listener, SETTINGS)
    fallback.open()
    yield fallback
    fallback.close()


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
def test_caller_is_told_to_come_again(fallback, listener, body):
    status, retry_after, error = ask(listener, "POST" if body else "GET", body)
    assert (status, retry_after) == (503, "5")
    assert (error["status"], error["message"]) == (503, MESSAGE)
    assert len(error["request_id"]) == 36


def test_silent_callers_hold_up_nobody_and_are_told_too(fallback, listener):
    with ThreadPoolExecutor(32) as pool:
        silent = [socket.create_connection(listener.getsockname(), timeout=10.0) for _ in range(32)]
        start = monotonic()
        assert ask(listener)[0] == 503
        told = list(pool.map(lambda sock: sock.recv(100), silent))
        assert monotonic() - start < 2.0
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in told)
    for sock in silent:
        sock.close()


def test_handshakes_are_counted_and_leave_the_command_its_descriptors(listener, certificate):
    """Nothing that callers do may keep it from starting a worker."""
    fallback = FallbackServer(listener, replace(SETTINGS, tls_certificate=certificate[0], tls_key=certificate[1]))
    fallback.open()
    with ExitStack() as held:
        held.callback(fallback.close)
        before = len(os.listdir("/proc/self/fd"))
        silent = [
            held.enter_context(socket.create_connection(listener.getsockname(), timeout=10.0))
            for _ in range(MAX_CALLERS + 50)
        ]
        ended = select(silent, [], [], 10.0)[0]  # those beyond the bound, at once
        assert ended
        held_open = len(os.listdir("/proc/self/fd")) - before - len(silent)
        assert held_open <= MAX_CALLERS + 1  # the one that is being turned away
        wait_until(lambda: len(select(silent, [], [], 0)[0]) == len(silent), within=5 * HANDSHAKE_S)
        context = ssl.create_default_context(cafile=certificate[0])
        with closing(HTTPSConnection(*listener.getsockname(), timeout=10.0, context=context)) as connection:
            connection.request("GET", "/live")
            assert connection.getresponse().status == 503


@pytest.fixture
def certificate(tmp_path):
    if which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    pem, key = str(tmp_path / "pem"), str(tmp_path / "key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days=1", "-subj=/CN=localhost"]
    command += ["-addext=subjectAltName=IP:127.0.0.1", f"-keyout={key}", f"-out={pem}"]
    subprocess.run(command, check=True, capture_output=True)
    return pem, key


def test_without_a_descriptor_it_is_opened_later(listener, monkeypatch):
    """As it is asked to ten times a second; what fails here would end the command."""
    fallback = FallbackServer(listener, SETTINGS)
    failures = [OSError(errno.EMFILE, "Too many open files")]
    new_event_loop = asyncio.new_event_loop
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: new_event_loop() if not failures else raised(failures.pop()))
    fallback.open()
    fallback.close()
    fallback.open()
    assert ask(listener)[0] == 503
    fallback.close()


def raised(error):
    raise error


def test_closed_it_leaves_callers_to_the_workers(fallback, listener):
    fallback.close()
    with socket.create_connection(listener.getsockname(), timeout=10.0) as caller:
        listener.setblocking(True)
        taken, _ = listener.accept()
        with taken:
            caller.sendall(b"hello")
            assert taken.recv(100) == b"hello"
    fallback.open()
    assert ask(listener)[0] == 503
