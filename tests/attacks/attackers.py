"""Attacks by another user of the machine, and by a caller with a key."""

import os
import re
import signal
import socket
from collections import Counter
from contextlib import ExitStack, closing, suppress
from time import monotonic, sleep

import click
import numpy as np
import tritonclient.grpc as grpc

from tests.attacks.service import (
    MARKER,
    as_nobody,
    attack,
    everything,
    is_idle,
    memory,
    picture,
    say,
    serving,
    shared_by,
    timed,
    triton_address,
    until_served,
)
from tests.server.hostile_files import pnm_bombs, tiff_bombs
from tests.triton.commands import ANY_PORT, ask, head, images, reports, texts
from tests.triton.processes import command_line, is_running, listening_addresses
from tests.triton.requests import array_input

# stands in for Triton at an address as soon as it can be had, and says ready to everything
IMPOSTOR = """
import grpc, struct, time
from concurrent.futures import ThreadPoolExecutor
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc
become_nobody()
class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ServerLive(self, request, context): return pb.ServerLiveResponse(live=True)
    def ServerReady(self, request, context): return pb.ServerReadyResponse(ready=True)
    def ModelReady(self, request, context): return pb.ModelReadyResponse(ready=True)
    def ModelInfer(self, request, context):
        print("read", sys.argv[2].encode() in b"".join(request.raw_input_contents), flush=True)
        answer = pb.ModelInferResponse(model_name=request.model_name)
        for output in request.outputs:
            shape = [1, 1024] if output.name.endswith("features") else [1]
            answer.outputs.add(name=output.name, datatype="FP32", shape=shape)
            answer.raw_output_contents.append(struct.pack("f", 0.03125) * shape[-1])
        return answer
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
        server.add_insecure_port(sys.argv[1])
        server.start()
        print("listens", flush=True)
        server.wait_for_termination(60)
    except RuntimeError: time.sleep(0.02)
"""
# opens whatever it can from the start on, as who has a file open keeps it, and at the end looks for a text in it
SPY = """
import glob, select, time
become_nobody()
held = {}
while not select.select([sys.stdin], [], [], 0)[0]:
    for path in glob.glob("/dev/shm/**", recursive=True):
        try: held.setdefault(path, None) or held.__setitem__(path, open(path, "rb"))
        except OSError: pass
    time.sleep(0.005)
def has(file):
    file.seek(0)
    return sys.argv[1].encode() in file.read()
print(sum(has(file) for file in held.values() if file))
"""


# -- a local user without a key


@attack
def impersonation(repository):
    """Kill Triton, and listen in its place as another user while it restarts."""
    with serving(repository) as command:
        address, port = triton_address(command), command.score_port
        with as_nobody(IMPOSTOR, address, MARKER) as impostor:
            sleep(1.0)
            os.kill(command.triton, signal.SIGKILL)
            start, health, answers = monotonic(), Counter(), Counter()
            while monotonic() - start < 20.0:
                health[timed(port, path="/")[0]] += 1
                answers[timed(port, texts(f"{MARKER} {monotonic()}"))[0]] += 1
                sleep(0.1)
            impostor.kill()
            said, complaint = impostor.communicate()
        reason = complaint.strip().splitlines()[-1:] or ["none"]
        say(
            f"an impostor at {address}",
            f"listened: {'listens' in said}, read {said.count('read True')} texts; / said {dict(health)}, "
            f"texts were answered {dict(answers)}; its last complaint: {reason[0][:100]}",
        )


@attack
def shared_memory(repository):
    """Open all of /dev/shm that another user can, from before the start on."""
    with as_nobody(SPY, MARKER) as spy:
        with serving(repository) as command:
            for _ in range(4):
                ask(command.score_port, images(picture(MARKER), 4))
                ask(command.score_port, texts(*(f"{MARKER} {n}" for n in range(8))))
            shared = shared_by(everything(command))
            modes = Counter(oct(path.stat().st_mode & 0o777) for path in shared)
            said, complaint = spy.communicate("end")
        say("another user looks for the marker", f"in {said.strip() or complaint} regions; modes {dict(modes)}")


@attack
def chunks(repository):
    """A million chunks of a byte each to Triton's HTTP port, and to the endpoint's."""
    body = b"1\r\na\r\n" * 1_000_000 + b"0\r\n\r\n"
    lines = ["POST /v2/models/medimageinsight_text/infer HTTP/1.1", "host: a", "transfer-encoding: chunked", "", ""]
    for options, last_line in ((["--score-port=0"], "limits: "), (ANY_PORT, "models: ")):
        with serving(repository, *options, last_line=last_line) as command:
            triton = command.triton
            own = command.score_port if "--score-port=0" in options else None
            ports = sorted({port for pid in everything(command) for _, port in listening_addresses(pid)} - {own})
            http = command.http_port if re.search(r"ready: .*  http://", command.banner) else own
            with suppress(ConnectionError), closing(socket.create_connection(("127.0.0.1", http))) as sock:
                sock.sendall("\r\n".join(lines).encode() + body)
                sock.settimeout(10.0)
                sock.recv(100)
            sleep(2.0)
            whose = "the endpoint's port" if http == own else "Triton's HTTP port"
            say(f"{options[0]}, open beside the endpoint's: {ports}, to {whose}", f"Triton runs: {is_running(triton)}")


@attack
def locked_apis(repository):
    """The key of the locked APIs out of `ps`, used to set Triton's logging."""
    with serving(repository) as command, grpc.InferenceServerClient(triton_address(command)) as client:
        name, key = re.search(
            r"--grpc-restricted-protocol=[a-z,-]*:(.*?)=(\n\S+( \S+)?|\S+)", command_line(command.triton)
        ).groups()[:2]
        try:
            settings = client.update_log_settings({"log_verbose_level": 1}, {f"triton-grpc-protocol-{name}": key})
            outcome = f"used: {str(settings).split()[:4]}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error)[:80]}"
        say(f"{name!r}: {key!r}", outcome)


# -- a caller with a key


@attack
def decoding(repository):
    """Images that cost seconds, whose sender hangs up; and the time of a neighbour's."""
    comments = b"P2\n" + b"#\n" * 3_500_000 + b"8 8 255\n" + b"0 " * 64
    bombs = {"7 MB of PNM comments": comments, "1 MB": dict(pnm_bombs())["a-megabyte-of-comments-in-a-plain-one"]()}
    bombs["8 million TIFF strips"] = dict(tiff_bombs())["8-million-strips"]()
    with serving(repository) as command:
        port = command.score_port
        timed(port, images(picture()))
        for name, bomb in bombs.items():
            say(f"{name}, asked", "status {}, {} s".format(*timed(port, images(bomb), limit=120.0)))
            body = images(bomb)
            for _ in range(2):
                with suppress(ConnectionError), closing(socket.create_connection(("127.0.0.1", port))) as sock:
                    sock.sendall(head(body) + body)
                    sleep(0.3)
            say(
                f"{name}, twice, hung up; a neighbour's image",
                "{}, {} s".format(*timed(port, images(picture()), limit=120.0)),
            )


@attack
def max_new_tokens(repository):
    """Absurd numbers of new tokens, by gRPC."""
    with serving(repository) as command, grpc.InferenceServerClient(triton_address(command)) as client:
        for number in (2**31 - 1, -(2**31), -1, 0, 10**6, 6144, None):
            inputs = [grpc.InferInput("frontal_image", [1], "BYTES")]
            inputs[0].set_data_from_numpy(np.array([picture()], dtype=np.object_))
            if number is not None:
                inputs.append(array_input("max_new_tokens", np.array([number], dtype=np.int32), "INT32"))
            start = monotonic()
            try:
                outcome = client.infer("cxrreportgen", inputs, client_timeout=60.0).as_numpy("status").ravel()[0]
            except Exception as error:
                outcome = str(error)[:110]
            say(f"max_new_tokens {number}", f"{outcome} ({monotonic() - start:.1f} s)")
        say("then a report", until_served(command.score_port, reports(picture())))


@attack
@click.option("--streams", default=300)
@click.option("--rows", default=10, help="Of each; no more are allowed.")
def unread_streams(repository, streams, rows):
    """Streams of reports whose readers never read, and hang up at last."""
    body = reports(picture())
    many = reports(picture(), rows)
    sent = head(many, accept="text/event-stream") + many
    with serving(repository) as command, ExitStack() as held:
        port, before = command.score_port, memory(command)
        timed(port, images(picture()))
        for _ in range(streams):
            sock = held.enter_context(closing(socket.socket()))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", port))
            sock.sendall(sent)
        others = [timed(port, images(picture())) for _ in range(10)] + [timed(port, body, limit=60.0) for _ in range(3)]
        during = memory(command)
        held.pop_all().close()
        start = monotonic()
        while not is_idle(port) and monotonic() - start < 60:
            sleep(0.1)
        say(
            f"{streams} streams",
            f"neighbours' images and reports {others}; MB {before} then {during}; "
            f"idle {monotonic() - start:.1f} s after they hung up: {is_idle(port)}; then {timed(port, body)}",
        )
