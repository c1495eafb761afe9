"""What a worker is told travels as JSON."""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import closing
from dataclasses import asdict, replace
from http.client import HTTPConnection
from time import sleep
from types import SimpleNamespace

import pytest
import uvicorn

from medimage_server.endpoint.settings import MAX_ROWS, MODELS, EndpointSettings
from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.endpoint.worker_process import WorkerServer
from medimage_server.errors import LaunchError
from medimage_server.exported import Export
from medimage_server.supervisor import running
from tests.server.endpoint.asgi import SETTINGS
from tests.waiting import until

FULL = replace(
    SETTINGS,
    layout="card",
    tritons=("grpc://a:1", "http://b:2"),
    key_digests=("00ff", "ff00"),
    keys_file="/run/schlüssel",
    tls_certificate="/c",
    tls_key="/k",
    access_log="-",
    triton_metrics="http://a:8002/metrics",
)


@pytest.mark.parametrize("settings", [SETTINGS, FULL, replace(SETTINGS, deployments=("cxrreportgen",))])
def test_settings_come_back_as_they_were_from_one_line(settings):
    text = settings.to_json()
    assert "\n" not in text
    assert EndpointSettings.from_json(text + "\n") == settings
    assert hash(EndpointSettings.from_json(text)) == hash(settings)  # no list among them
    assert json.loads(text)["tritons"] == [*settings.tritons]


def test_settings_of_another_version_are_refused():
    with pytest.raises(TypeError):
        EndpointSettings.from_json(json.dumps(json.loads(SETTINGS.to_json()) | {"colour": "red"}))


def test_deployments_are_those_whose_models_triton_serves():
    images, texts = MODELS["medimageinsight"]
    assert SETTINGS.serving(["x", texts, images], {}) == replace(SETTINGS, deployments=("medimageinsight",))
    assert SETTINGS.serving([*MODELS["medimageinsight"], *MODELS["cxrreportgen"]], {}).deployments == tuple(MODELS)
    with pytest.raises(LaunchError, match=r"there is nothing to score: .*; Triton serves medimageinsight_image$"):
        SETTINGS.serving([images], {})


def test_what_was_exported_comes_back_from_the_line():
    export = Export("int8", "onnx", "weights.pt", "0" * 64)
    settings = SETTINGS.serving(MODELS["medimageinsight"], {"medimageinsight": export})
    assert EndpointSettings.from_json(settings.to_json()).exports["medimageinsight"] == asdict(export)


def test_reports_have_a_time_of_their_own():
    assert SETTINGS.time_limit_s("medimageinsight") == 20.0
    assert SETTINGS.time_limit_s("cxrreportgen") == 30.0


def test_rows_and_models_are_those_of_azures_documentation_and_the_repository():
    assert MAX_ROWS == {"medimageinsight": 1024, "cxrreportgen": 10}
    assert MODELS == {
        "medimageinsight": ("medimageinsight_image", "medimageinsight_text"),
        "cxrreportgen": ("cxrreportgen_stream",),
    }


def test_half_a_second_is_a_limit_too(tmp_path):
    """A worker that is told to end waits for it: the rest of this body comes 0.2 s later."""
    settings = replace(SETTINGS, tritons=("grpc://127.0.0.1:1",), drain_limit_s=0.5)
    with (
        bound("127.0.0.1", 0) as listener,
        running(endpoint_services(settings, listener, tmp_path)) as (worker,),
        closing(HTTPConnection(*listener.getsockname(), timeout=10)) as connection,
    ):
        connection.putrequest("POST", "/score")
        headers = {"content-type": "application/json", "content-length": "2", "expect": "100-continue"}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(b"{")
        assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 ")  # it is at work
        worker.process.terminate()
        sleep(0.2)
        connection.send(b"}")
        assert connection.getresponse().status == 400


def test_requests_that_are_no_http_write_no_log(tmp_path, capfd):
    """Anybody could fill the disk with lines."""
    settings = replace(SETTINGS, tritons=("grpc://127.0.0.1:1",))
    with (
        bound("127.0.0.1", 0) as listener,
        running(endpoint_services(settings, listener, tmp_path)),
    ):
        for request in (
            b"no HTTP\r\n\r\n",
            b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        ):
            with socket.create_connection(listener.getsockname(), timeout=10.0) as caller:
                caller.sendall(request)
                assert caller.recv(100).startswith(b"HTTP/1.1 ")
    assert "uvicorn" not in capfd.readouterr().err


async def test_signal_leaves_the_loop_that_it_interrupts_alone(monkeypatch):
    """Else the request whose timer is being set is lost."""

    async def application(scope, receive, send):
        pytest.fail("nobody asked")

    loop, monitoring = asyncio.get_running_loop(), SimpleNamespace(is_draining=False)
    stdin, parent = os.pipe()
    with open(stdin) as stdin, open(parent, "w"), open(os.devnull, "wb") as beats, bound("127.0.0.1", 0) as listener:
        monkeypatch.setattr(sys, "stdin", stdin)
        server = WorkerServer(
            uvicorn.Config(app=application, lifespan="off", log_config=None),
            monitoring,
            drain_delay_s=0.0,
            beat_fd=beats.fileno(),
            read_keys=pytest.fail,
            make_context=lambda: None,
        )
        serving = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        with monkeypatch.context() as interrupted:
            for name in ("call_soon", "call_later", "call_at"):
                interrupted.setattr(loop, name, lambda *args: pytest.fail("the loop is not to be touched"))
            server.handle_exit(signal.SIGTERM, None)
        assert not monitoring.is_draining
        await asyncio.wait_for(serving, 5.0)
        assert monitoring.is_draining
