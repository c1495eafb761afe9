"""What another user of the machine can reach of `medimage serve`, and what it says of its own Triton."""

import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image
from tritonclient.utils import InferenceServerException

from medimage_client import MedImageInsight
from tests.triton.commands import (
    ANY_PORT,
    KEY,
    ask,
    head,
    images,
    metric,
    metrics_page,
    started,
    status_of,
    texts,
    wait_until_idle,
)
from tests.triton.processes import command_line, descendants, is_running, listening_addresses, shared_memory
from tests.waiting import wait_until

RESTART_S = 60.0  # of Triton on a busy machine; 5 to 10 s on a free one
NOBODY = 65534


@pytest.fixture(scope="module")
def image(repository):
    return (repository / "image_preprocessing/warmup/drawing").read_bytes()[4:]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A file that comes about if modules are imported from its folder, which are there and are none."""
    folder = tmp_path_factory.mktemp("serve")
    for module in ("medimage_server/__init__.py", "json.py", "numpy/__init__.py"):
        path = folder / module
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(folder / 'imported')!r}, 'a').write(__name__)\nraise SystemExit(3)\n")
    return folder / "imported"


@pytest.fixture(scope="module")
def served(repository, imported):
    """`medimage serve` with the endpoint; each test leaves it healthy."""
    options = ["--repository", repository, "--score-port=0"]
    with started("serve", *options, folder=imported.parent, environment={"MEDIMAGE_KEYS": KEY}) as command:
        yield command


@pytest.fixture(scope="module")
def bare(repository, tmp_path_factory):
    """`medimage serve` with Triton's own ports."""
    options = ["--repository", repository, "--models=medimageinsight_text", *ANY_PORT]
    with started("serve", *options, folder=tmp_path_factory.mktemp("bare") / "tmp", last_line="models: ") as command:
        yield command


def as_nobody(program, *arguments):
    """What a Python program of another user says."""
    if os.getuid() != 0:
        pytest.skip("only root can act as another user")
    become = f"import os, socket, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); "
    return subprocess.run(
        [sys.executable, "-S", "-c", become + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30.0,
    )


def test_triton_opens_no_port_beside_the_endpoint(served):
    assert not [address for pid in descendants(served.process.pid) for address in triton_ports(served, pid)]


def triton_ports(served, pid):
    return [(host, port) for host, port in listening_addresses(pid) if port != served.score_port]


def test_another_user_reaches_neither_triton_nor_what_it_shares(served, image):
    assert status_of(served.score_port, images(image, 4)) == 200  # so that there is something to see
    connect = "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for name in ("grpc:1", "metrics"):
        path = Path(served.socket.removeprefix("unix:")).with_name(name)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert "PermissionError" in as_nobody(connect, path).stderr
    regions = shared_memory(served.triton)
    assert len(regions) > 5
    for region in regions:
        assert stat.S_IMODE(region.stat().st_mode) == 0o600
        assert "PermissionError" in as_nobody("open(sys.argv[1], 'rb')", region).stderr


def test_nothing_is_imported_from_the_folder_where_it_is_started(served, imported):
    """Others may write there: /tmp, a folder of a project."""
    assert served.workers and served.stubs("cxrreportgen_stream")
    assert not imported.exists()


def test_own_client_reaches_it_by_its_socket(served):
    with MedImageInsight(served.socket) as client:
        assert client.is_ready()
        assert client.embed_texts(["heart"]).shape == (1, 1024)


def test_numbers_of_triton_are_on_the_endpoints_page(served, image):
    assert status_of(served.score_port, images(image)) == 200
    assert metric(metrics_page(served.score_port), "nv_inference_request_success") > 0


def test_status_names_what_was_exported(served):
    exports = json.loads(ask(served.score_port, path="/status")[2])["exports"]
    assert {name: export["precision"] for name, export in exports.items()} == {
        "medimageinsight": "fp32",
        "cxrreportgen_stream": "fp32",
    }
    assert all(re.fullmatch("[0-9a-f]{64}", export["checkpoint_sha256"]) for export in exports.values())


def test_images_of_a_caller_who_has_gone_are_not_worked_on(served):
    """Triton does not tell the steps of an ensemble; the endpoint does, through the folder that both have."""
    picture = io.BytesIO()
    Image.new("RGB", (7000, 7000), "navy").save(picture, "PNG")
    one, many = images(picture.getvalue()), images(picture.getvalue(), 16)
    begin = decoding_us(served)
    assert status_of(served.score_port, one) == 200
    alone = decoding_us(served) - begin
    with closing(socket.create_connection(("127.0.0.1", served.score_port))) as sock:
        sock.sendall(head(many) + many)
        wait_until(lambda: metric(metrics_page(served.score_port), "nv_inference_pending_request_count") > 0)
    assert status_of(served.score_port, one) == 200  # behind them, in the same queue
    assert decoding_us(served) - begin < 8 * alone
    wait_until_idle(served.score_port)


def decoding_us(served):
    """The time that the model which decodes images has spent on requests."""
    name = r'nv_inference_compute_infer_duration_us{model="image_preprocessing",.*}'
    (found,) = re.findall(rf"^{name} (\d+)$", metrics_page(served.score_port), re.MULTILINE)
    return int(found)


def test_no_process_shows_a_key(served):
    for pid in descendants(served.process.pid):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert KEY not in command_line(pid) + environment


def test_it_is_not_ready_from_the_end_of_its_triton_until_its_successor_answers(served, image):
    """Nobody else can stand in for it meanwhile: there is no address that they could take."""
    path = Path(served.socket.removeprefix("unix:"))
    triton = served.triton
    os.kill(triton, signal.SIGKILL)
    wait_until(lambda: not path.exists(), what="that the end was seen")
    while not path.exists():
        if status_of(served.score_port, path="/") == 200:
            assert path.exists(), "ready without a Triton"
    wait_until(lambda: status_of(served.score_port, images(image)) == 200, within=RESTART_S)
    assert served.triton != triton


@pytest.mark.soak
def test_hung_process_of_a_model_is_noticed_and_triton_started_again(served, image):
    stub = served.stubs("image_encoder")[0]
    os.kill(stub, signal.SIGSTOP)
    wait_until(lambda: not is_running(stub), within=30.0, what="that it is ended")
    assert served.has_said("Triton has a process of a Python model that gave no sign of life for 15 s")
    wait_until(lambda: status_of(served.score_port, images(image)) == 200, within=RESTART_S)


@pytest.mark.soak
def test_hung_triton_is_noticed_and_started_again(served, image):
    triton = served.triton
    os.kill(triton, signal.SIGSTOP)
    wait_until(lambda: not is_running(triton), within=60.0, what="that it is ended")
    assert served.has_said("Triton did not answer for 30 s")
    wait_until(lambda: status_of(served.score_port, texts("heart")) == 200, within=RESTART_S)


# -- bare Triton, whose ports every local user reaches


def test_locked_apis_cannot_be_opened_with_what_ps_shows(bare):
    """Nor by whoever writes the bytes of a request by hand."""
    rule = re.search(r"--http-restricted-api=[a-z,-]*:(.*?)=(\n\S+( \S+)?)", command_line(bare.triton), re.DOTALL)
    name, value = rule[1], rule[2]
    values = [value, value.strip(), f"{value.strip()} ", f"\r\n {value.strip()}", f" \n {value.strip()}"]
    for sent in values:
        for key in (name, name.replace(" ", "-"), name.replace(" ", "\t"), f"{name} "):
            answer = over_http(bare.http_port, f"{key}: {sent}")
            assert b" 200 " not in answer.split(b"\r\n", 1)[0], (key, sent)
    # the same request is answered where the API is open
    assert b" 200 " in over_http(bare.http_port, "x: y", path="/v2").split(b"\r\n", 1)[0]
    with grpc.InferenceServerClient(f"127.0.0.1:{bare.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_log_settings()
        with pytest.raises((InferenceServerException, ValueError)):  # gRPC's own client refuses to send it
            client.get_log_settings(headers={f"triton-grpc-protocol-{name}": value})


def over_http(port, header, *, path="/v2/logging"):
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10.0)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{header}\r\n\r\n".encode())
        try:
            return connection.recv(65536)
        except ConnectionResetError:
            return b"\r\n"


@pytest.mark.parametrize("is_locked", [True, False], ids=["locked", "open"])
def test_raw_http2_cannot_carry_the_header(bare, is_locked):
    """Frames as no gRPC library sends them; the same with an API that is open shows that they are understood."""
    rule = re.search(r"--grpc-restricted-protocol=[a-z,-]*:(.*?)=(\n\S+( \S+)?)", command_line(bare.triton), re.DOTALL)
    path = "LogSettings" if is_locked else "ServerMetadata"
    headers = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost")]
    headers += [(":path", f"/inference.GRPCInferenceService/{path}"), ("content-type", "application/grpc")]
    headers += [("te", "trailers")] + ([(f"triton-grpc-protocol-{rule[1]}", rule[2])] if is_locked else [])
    block = b"".join(b"\x10" + literal(name) + literal(value) for name, value in headers)  # RFC 7541, 6.2.3
    request = frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, bytes(5))
    with closing(socket.create_connection(("127.0.0.1", bare.grpc_port), timeout=10.0)) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + request)
        seen = set()
        with sock.makefile("rb") as answer:
            while not seen & {RST_STREAM, GOAWAY, DATA} and (start := answer.read(9)):
                answer.read(int.from_bytes(start[:3], "big"))
                seen.add(start[3])
    assert (DATA in seen) is not is_locked, seen


DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7  # RFC 9113, section 6
END_STREAM, END_HEADERS = 0x1, 0x4


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(text):
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def test_apis_for_operators_are_closed_to_callers(bare):
    with (
        grpc.InferenceServerClient(f"127.0.0.1:{bare.grpc_port}") as over_grpc,
        http.InferenceServerClient(f"127.0.0.1:{bare.http_port}") as by_http,
    ):
        for client in (over_grpc, by_http):
            for call in (
                client.get_model_repository_index,
                lambda client=client: client.load_model("text_encoder"),
                lambda client=client: client.unload_model("text_encoder"),
                client.get_trace_settings,
                client.get_log_settings,
            ):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call()
            assert client.is_server_ready()
            assert client.is_model_ready("text_encoder")


def test_ports_are_on_loopback_alone(bare):
    opened = listening_addresses(bare.triton)
    assert {bare.grpc_port, bare.http_port} < {port for _, port in opened}
    assert {address for address, _ in opened} == {"0100007F"}


def test_http_port_can_be_left_closed(repository, tmp_path):
    options = ["--repository", repository, "--models=medimageinsight_text", "--no-http"]
    options += ["--grpc-port=0", "--metrics-port=0"]
    with started("serve", *options, folder=tmp_path, last_line="models: ") as command:
        assert " http://" not in command.banner.splitlines()[0].replace("metrics http://", "")
        assert len(listening_addresses(command.triton)) == 2
        with MedImageInsight(f"grpc://127.0.0.1:{command.grpc_port}") as client:
            assert client.embed_texts(["heart"]).shape == (1, 1024)


def test_port_beside_the_endpoint_is_bad_use(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", "from medimage_server.cli import serve; serve()", "--score-port=0", "--grpc-port=8001"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == ("Error: with --score-port Triton opens no port; leave out --grpc-port")
