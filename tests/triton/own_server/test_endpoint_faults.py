"""The endpoint when something breaks: each fault with the real processes, and real commands started for it.

After each fault every caller has an answer or a closed connection within ten seconds, the next requests are served, and
nothing is left: no slot, no process, no shared memory. `pytest -s` prints how long each took.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from shutil import which
from threading import Event, Thread
from time import monotonic, sleep

import numpy as np
import pytest

from tests.triton.commands import (
    CLOSED,
    END_S,
    KEY,
    MEDIMAGE,
    ask,
    head,
    images,
    metric,
    metrics_page,
    reports,
    started,
    status_of,
    texts,
    wait_until_idle,
)
from tests.triton.processes import descendants, is_running, shared_memory
from tests.waiting import wait_until

CLEAR_S = 10.0  # a fault is told, or is over, within so long
SILENCE_S = 12.0  # of a Triton that is stopped: three checks in a row must fail, which takes eight to nine seconds
RESTART_S = 60.0  # of Triton on a busy machine; 8 to 10 s on a free one
# Of a caller between two requests, which leaves the machine to those that start; a report takes ten times the others.
PAUSE_S = {"image": 0.25, "text": 0.25, "report": 1.5}
CALM = 2  # good answers of each kind in a row: it has recovered


@pytest.fixture(scope="module")
def times():
    """Rows of (fault, what the callers saw, seconds to a clear failure, seconds to recovery)."""
    rows = []
    yield rows
    lines = [f"{fault:<58} {seen:<34} {clear:>9} {recovery:>9}" for fault, seen, clear, recovery in rows]
    os.write(1, "\n".join(["", f"{'fault':<58} {'seen':<34} {'clear s':>9} {'over s':>9}", *lines, ""]).encode())


@pytest.fixture(scope="module")
def image(repository):
    return (repository / "image_preprocessing/warmup/drawing").read_bytes()[4:]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture(scope="module")
def served(repository, keys_file, tmp_path_factory):
    """`medimage serve` with the whole repository; each test leaves it healthy."""
    options = ["--repository", repository, "--score-port=0", "--workers=2", "--keys-file", keys_file]
    with started("serve", *options, folder=tmp_path_factory.mktemp("serve") / "tmp") as command:
        yield command


@contextmanager
def endpoint(triton, keys_file, folder, *options, tritons=()):
    """`medimage endpoint` in front of the package's Triton, and of others."""
    urls = [triton.server.url, *tritons]
    options = [*(f"--triton={url}" for url in urls), "--score-port=0", *options]
    page = triton.server.listening.metrics_url
    with started("endpoint", *options, "--keys-file", keys_file, "--triton-metrics", page, folder=folder) as command:
        yield command


@pytest.fixture(scope="module")
def front(triton, keys_file, tmp_path_factory):
    with endpoint(triton, keys_file, tmp_path_factory.mktemp("front"), "--access-log=log") as command:
        yield command


@contextmanager
def stopped(pid):
    """Silent, like a machine that has hung: its connections stay open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it was given up
            os.kill(pid, signal.SIGCONT)


class Load:
    """Callers who ask again and again, one of each kind; what became of each of their requests."""

    def __init__(self, port, image):
        self.answers = []  # (kind, start, end, status)
        self._bodies = {
            "image": lambda n: images(image),
            "text": lambda n: texts(f"a text that was not asked before, number {n} of {port} at {monotonic()}"),
            "report": lambda n: reports(image),
        }
        self._port = port
        self._end = Event()
        self._callers = [Thread(target=self._ask, args=item) for item in self._bodies.items()]

    def __enter__(self):
        for caller in self._callers:
            caller.start()
        wait_until(lambda: self.is_calm(0.0), what="that every kind is answered")
        return self

    def __exit__(self, *_):
        self._end.set()
        for caller in self._callers:
            caller.join()

    def _ask(self, kind, body):
        n = 0
        while not self._end.is_set():
            n, start = n + 1, monotonic()
            try:
                status = status_of(self._port, body(n))
            except TimeoutError:
                status = "hung"
            self.answers.append((kind, start, monotonic(), status))
            sleep(PAUSE_S[kind])

    def failures(self, since):
        return [
            (kind, start, end, status) for kind, start, end, status in self.answers if end > since and status != 200
        ]

    def is_calm(self, since):
        latest = {kind: [answer for answer in self.answers if answer[0] == kind][-CALM:] for kind in self._bodies}
        return all(
            len(answers) == CALM and all(start > since and status == 200 for _, start, _, status in answers)
            for answers in latest.values()
        )

    def has_recovered(self, since):
        return bool(self.failures(since)) and self.is_calm(since)

    def recovery_s(self, since):
        last = max(end for _, _, end, _ in self.failures(since))
        after = [
            next(end for of, start, end, status in self.answers if of == kind and start >= last and status == 200)
            for kind in self._bodies
        ]
        return max(after) - since


def strike(port, image, fault, *, limit_s=CLEAR_S, times, name):
    """Bring a fault about under load, wait until it is over, and check that nobody waited long for bad news."""
    with Load(port, image) as load:
        since = monotonic()
        fault()
        wait_until(lambda: load.has_recovered(since), within=RESTART_S, what=f"{name}: that it is over")
    failures = load.failures(since)
    seen = Counter(status for _, _, _, status in failures)
    assert set(seen) <= {503, 424, CLOSED}, (name, seen)
    longest_s = max(end - max(start, since) for _, start, end, _ in failures)
    assert longest_s < limit_s, name
    told = ", ".join(f"{n} x {status}" for status, n in seen.items())
    times.append((name, told, f"{longest_s:.1f}", f"{load.recovery_s(since):.1f}"))


# -- slow callers, all at once on an endpoint of their own, for their limits are seconds long


def plain(port, *, receive_bytes=None):
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(90.0)
    sock.connect(("127.0.0.1", port))
    return sock


def rest_of(sock):
    """All that comes until the other side has closed."""
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def half_head(port):
    with plain(port) as sock:
        sock.sendall(b"POST /score HTTP/1.1\r\nhost: localh")
        return rest_of(sock)


def half_body(port):
    with plain(port) as sock:
        sock.sendall(head(length=1000) + b'{"input_data": {')
        return rest_of(sock)


def drip(port):
    with plain(port) as sock:
        sock.sendall(head(length=100_000))
        try:
            while True:
                sock.sendall(b" ")
                sock.settimeout(0.5)
                try:
                    return sock.recv(65536)
                except TimeoutError:
                    pass
        except ConnectionError:
            return b""


MANY_TEXTS = texts(*(f"text number {n}" for n in range(1024)))


def never_reads(port):
    with plain(port, receive_bytes=4096) as sock:
        sock.sendall(head(MANY_TEXTS, x_request_id="never-reads") + MANY_TEXTS)
        sleep(15.0)  # for which it does nothing, though the answer waits
        return rest_of(sock)


def reads_slowly(port):
    with plain(port, receive_bytes=65536) as sock:
        sock.sendall(head(MANY_TEXTS, connection="close") + MANY_TEXTS)
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
            sleep(0.05)
        return b"".join(parts)


@pytest.fixture(scope="module")
def slow_callers(triton, keys_file, tmp_path_factory):
    """What each gets, and after how many seconds; and the endpoint."""
    folder = tmp_path_factory.mktemp("slow")

    def timed(caller, port):
        start = monotonic()
        return caller(port), monotonic() - start

    with endpoint(triton, keys_file, folder, "--access-log=log") as command, ThreadPoolExecutor() as pool:
        callers = (half_head, half_body, drip, never_reads, reads_slowly)
        yield {caller: pool.submit(timed, caller, command.score_port) for caller in callers}, command


@pytest.fixture(scope="module", autouse=True)
def _slow_callers_begin_with_the_first_test(slow_callers):
    pass


# -- Triton and its models


@pytest.mark.parametrize("model", [pytest.param("image_preprocessing", marks=pytest.mark.soak), "image_encoder"])
def test_killed_process_of_a_model_is_told_at_once_and_started_again(served, image, times, model):
    """Triton 2.51 would neither start the process of a Python model again nor call the model not ready."""
    triton = served.triton
    processes = [triton, *descendants(triton)]
    regions = shared_memory(triton)
    assert regions
    stub = served.stubs(model)[0]
    strike(served.score_port, image, lambda: os.kill(stub, signal.SIGKILL), times=times, name=f"{model} killed")
    assert not [pid for pid in processes if is_running(pid)]
    assert not [region for region in regions if region.exists()]
    assert served.triton != triton
    wait_until_idle(served.score_port)


def test_killed_report_model_ends_a_stream_that_has_begun(served, image, times):
    """The decoupled model's requests would never end."""
    with plain(served.score_port) as sock:
        body = reports(image, 10)
        sock.sendall(head(body, accept="text/event-stream", connection="close") + body)
        seen = sock.recv(65536)
        while b"event: text" not in seen:
            seen += sock.recv(65536)
        start = monotonic()
        os.kill(served.stubs("cxrreportgen_stream")[0], signal.SIGKILL)
        seen += rest_of(sock)
        clear_s = monotonic() - start
    wait_until(lambda: status_of(served.score_port, reports(image)) == 200, within=RESTART_S)
    last = re.findall(rb"event: (\w+)\ndata: (.*)\n", seen)[-1]
    assert last[0] == b"error"
    assert json.loads(last[1])["status"] in (424, 503)
    assert clear_s < CLEAR_S
    times.append(
        ("cxrreportgen_stream killed in a stream", "event: error", f"{clear_s:.1f}", f"{monotonic() - start:.1f}")
    )
    wait_until_idle(served.score_port)


def test_silent_triton_is_told_and_served_again_when_it_speaks(served, image, times):
    with Load(served.score_port, image) as load:
        since = monotonic()
        with stopped(served.triton):
            wait_until(lambda: len({kind for kind, *_ in load.failures(since)}) == 3, within=2 * SILENCE_S)
            longest_s = max(end - max(start, since) for _, start, end, _ in load.failures(since))
            status, headers, body = ask(served.score_port, images(image))
            assert (status, "retry-after" in headers) == (503, True), body
            # each worker learns it by itself, and any of them may be the one that is asked
            wait_until(
                lambda: {status_of(served.score_port, path="/") for _ in range(8)} == {503},
                within=SILENCE_S,
                what="that all workers are not ready",
            )
            assert status_of(served.score_port, path="/live") == 200
        awake = monotonic()
        wait_until(lambda: load.is_calm(awake), within=CLEAR_S)
    assert {status for *_, status in load.failures(since)} == {503}
    assert longest_s < SILENCE_S
    times.append(
        ("Triton stopped (silent), then continued", "503", f"{longest_s:.1f}", f"{load.recovery_s(awake):.1f}")
    )
    wait_until_idle(served.score_port)


def test_of_two_tritons_one_may_be_killed_and_no_caller_notices(served, triton, keys_file, image, tmp_path, times):
    """The one that is killed is `medimage serve`'s, which starts it again."""
    killed = served.triton
    with endpoint(triton, keys_file, tmp_path, "--workers=2", tritons=[served.socket]) as command:
        wait_until(lambda: metrics_page(command.score_port).count("medimage_endpoint_triton_ready{") == 4)
        with Load(command.score_port, image) as load:
            strike(
                served.score_port,
                image,
                lambda: os.kill(killed, signal.SIGKILL),
                times=times,
                name="Triton killed",
            )
        assert load.failures(0.0) == []
        longest_s = max(end - start for _, start, end, _ in load.answers)
        times.append(("one of two Tritons killed", f"{len(load.answers)} x 200", f"{longest_s:.1f}", "0.0"))
        assert served.triton != killed
        wait_until_idle(command.score_port)
    wait_until_idle(served.score_port)


# -- the endpoint's own processes


def test_killed_worker_is_started_again_and_connections_wait_for_it(front, times):
    (worker,) = front.workers
    os.kill(worker, signal.SIGKILL)
    start = monotonic()
    wait_until(lambda: not is_running(worker))
    status = status_of(front.score_port, texts("asked while there is no worker"))
    answered_s = monotonic() - start
    assert status in (200, 503)  # the latter where its start takes longer than callers are let wait
    assert answered_s < CLEAR_S
    wait_until(lambda: front.has_said("worker 1 of the endpoint is ready again"), within=CLEAR_S)
    seconds = monotonic() - start
    assert status_of(front.score_port, texts("heart")) == 200
    assert front.workers != [worker]
    assert front.has_said("worker 1 of the endpoint ended by itself with exit code -9; starting it again in 0.5 s")
    times.append(("the only worker killed", str(status), f"{answered_s:.1f}", f"{seconds:.1f}"))
    wait_until_idle(front.score_port)


def test_callers_are_answered_while_no_worker_can_be_started(triton, keys_file, tmp_path):
    """They would rest in the socket of the parent for minutes."""
    with endpoint(triton, keys_file, tmp_path) as command:
        port = command.score_port

        def no_worker():
            for pid in command.workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        no_worker()
        start = monotonic()
        while monotonic() - start < 6.0:
            asked = monotonic()
            status, headers, _ = ask(port, path="/live", timeout=CLEAR_S)
            assert monotonic() - asked < 3.0
            assert status in (503, 200, CLOSED)
            assert "retry-after" in headers or status != 503
            no_worker()
        wait_until(lambda: status_of(port, path="/live") == 200, within=RESTART_S)


def test_stopped_worker_is_answered_for_and_started_again(triton, keys_file, tmp_path, times):
    with endpoint(triton, keys_file, tmp_path) as command, stopped(command.workers[0]):
        start = monotonic()
        status, _, body = ask(command.score_port, path="/live", timeout=CLEAR_S)
        assert (status, "the endpoint is being started" in body.decode()) == (503, True)
        answered_s = monotonic() - start
        wait_until(lambda: status_of(command.score_port, path="/live") == 200, within=RESTART_S)
        assert command.has_said("worker 1 of the endpoint gave no sign of life for 10 s; starting it again in 0.5 s")
        times.append(("the only worker stopped (silent)", "503", f"{answered_s:.1f}", f"{monotonic() - start:.1f}"))


def test_killed_worker_of_two_leaves_the_other_serving(served, image, times):
    first, second = served.workers
    with Load(served.score_port, image) as load:
        since = monotonic()
        os.kill(first, signal.SIGKILL)
        answered = len(load.answers)
        wait_until(lambda: len(load.answers) > answered + 20)
        assert is_running(second)
        wait_until(lambda: len(served.workers) == 2)
        recovery_s = monotonic() - since
    failures = load.failures(since)
    assert {status for *_, status in failures} <= {CLOSED}  # those that it had taken
    assert len(failures) <= 3
    times.append(("one of two workers killed", f"{len(failures)} x closed", "0.0", f"{recovery_s:.1f}"))
    wait_until_idle(served.score_port)


def test_killed_parent_leaves_no_process_and_no_shared_memory(repository, keys_file, tmp_path, times):
    models = ["--models=cxrreportgen", "--models=cxrreportgen_stream"]
    options = ["--repository", repository, *models, "--score-port=0", "--keys-file", keys_file]
    with started("serve", *options, folder=tmp_path) as command:
        processes = descendants(command.process.pid)
        regions = shared_memory(command.triton)
        assert regions
        assert command.workers
        start = monotonic()
        command.process.kill()
        wait_until(lambda: not any(map(is_running, processes)), within=CLEAR_S, what="that no process is left")
        times.append(("`medimage serve` killed", "closed", "0.0", f"{monotonic() - start:.1f} (end)"))
    assert not [region for region in regions if region.exists()]


def test_without_restart_a_killed_worker_ends_everything(repository, keys_file, tmp_path, times):
    models = ["--models=cxrreportgen", "--models=cxrreportgen_stream"]
    options = ["--repository", repository, *models, "--score-port=0", "--keys-file", keys_file]
    with started("serve", *options, "--no-restart", folder=tmp_path) as command:
        processes = descendants(command.process.pid)
        os.kill(command.workers[0], signal.SIGKILL)
        start = monotonic()
        assert command.process.wait(CLEAR_S) == 1
        times.append(("worker killed, --no-restart", "exit code 1", f"{monotonic() - start:.1f}", "-"))
    last = command.errors.read_text().splitlines()[-1]
    assert last == "Error: worker 1 of the endpoint ended by itself with exit code -9; see its log above"
    assert not [pid for pid in processes if is_running(pid)]


# -- callers


@pytest.mark.parametrize("kind", ["embeddings", "report"])
def test_caller_who_hangs_up_frees_what_the_request_held(front, triton, image, times, kind):
    body = images(image, 16) if kind == "embeddings" else reports(image, 4)
    with stopped(triton.server.pid):  # so that it is certainly under way
        with plain(front.score_port) as sock:
            sock.sendall(head(body) + body)
            wait_until(lambda: in_flight(front) == 1)
            start = monotonic()
        wait_until(lambda: in_flight(front) == 0, within=2.0, what="that the slot is free")
        times.append((f"caller hangs up ({kind})", "-", "-", f"{monotonic() - start:.1f}"))
    wait_until_idle(front.score_port)


def in_flight(command):
    """While Triton is silent, whose numbers the page of metrics would wait for."""
    status, _, content = ask(command.score_port, path="/status")
    assert status == 200
    return json.loads(content)["load"]["in_flight"]


def test_caller_who_hangs_up_in_a_stream_frees_the_report_generator(front, image, times):
    body = reports(image, 10)
    with plain(front.score_port) as sock:
        sock.sendall(head(body, accept="text/event-stream") + body)
        seen = b""
        while b"event: text" not in seen:
            seen += sock.recv(4096)
    start = monotonic()
    wait_until_idle(front.score_port)
    assert not front.has_said("Traceback")
    times.append(("caller hangs up in a stream", "-", "-", f"{monotonic() - start:.1f}"))


def answer_of(slow_callers, caller, times):
    answer, seconds = slow_callers[0][caller].result(timeout=90.0)
    names = {
        half_head: "caller sends half a head",
        half_body: "caller sends half a body",
        drip: "caller sends a byte each half second",
    }
    seen = answer.split(b"\r\n", 1)[0].decode() or "closed"
    if caller not in (never_reads, reads_slowly):
        times.append((names[caller], seen, f"{seconds:.1f}", "-"))
    return answer, seconds


def test_half_a_head_is_closed(slow_callers, times):
    answer, seconds = answer_of(slow_callers, half_head, times)
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer
    assert seconds < CLEAR_S


def test_half_a_body_is_told(slow_callers, times):
    answer, seconds = answer_of(slow_callers, half_body, times)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body came too slowly: 16 bytes" in answer
    assert seconds < CLEAR_S


def test_caller_who_never_reads_is_cut_and_one_who_reads_slowly_is_served(slow_callers, times):
    cut, _ = answer_of(slow_callers, never_reads, times)
    whole, seconds = answer_of(slow_callers, reads_slowly, times)
    start, _, rows = whole.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 200 ")
    assert np.shape([row["text_features"] for row in json.loads(rows)]) == (1024, 1024)
    assert seconds > 11.0  # longer than one who does not read at all may stay
    assert len(cut) < len(whole) / 2
    (line,) = [entry for entry in map(json.loads, log_lines(slow_callers[1])) if entry["request_id"] == "never-reads"]
    cut_s = line["stages_ms"]["send"] / 1000
    assert 1.0 < cut_s < CLEAR_S  # its slot is held until the answer has gone
    times.append(("caller never reads 1024 rows", f"{len(cut)} of {len(whole)} bytes", f"{cut_s:.1f}", "-"))
    times.append(("caller reads 1024 rows slowly", "200", "-", f"{seconds:.1f} (whole)"))


def log_lines(command):
    return command.errors.with_name("log").read_text().splitlines()


# -- files


def test_file_of_keys_as_it_stands_is_what_counts_within_two_seconds(front, keys_file):
    def statuses(*keys):
        return [status_of(front.score_port, texts("heart"), key=key) for key in keys]

    later = "a-key-of-the-tests-2"
    (worker,) = front.workers
    assert statuses(KEY, later) == [200, 403]
    try:
        replacement = keys_file.with_name("later")
        replacement.write_text(later + "\n")
        replacement.replace(keys_file)
        wait_until(lambda: statuses(KEY, later) == [403, 200], within=2.0)
        keys_file.write_text(f"short\n{KEY}\n")  # of a line that is no key the others are none the worse
        wait_until(lambda: statuses(KEY, later) == [200, 403], within=2.0)
        for broken in (b"", b"short\n", b"\xff\xfe", None):
            keys_file.unlink() if broken is None else keys_file.write_bytes(broken)
            wait_until(lambda: statuses(KEY, later) == [403, 403], within=2.0)
            keys_file.write_text(KEY + "\n")
            assert statuses(KEY, later) == [200, 403]  # at once
        keys_file.unlink()
        wait_until(lambda: statuses(KEY) == [403], within=2.0)
        os.kill(worker, signal.SIGKILL)  # the next one starts without the file
        wait_until(lambda: front.workers not in ([], [worker]))
        wait_until(lambda: statuses(KEY) == [403], what="that it answers")  # until then, its parent may: 503
    finally:
        keys_file.write_text(KEY + "\n")
    wait_until(lambda: statuses(KEY, later) == [200, 403])
    assert front.has_said(f"cannot read {keys_file}: No such file or directory; nobody is admitted by it")


def test_moved_log_is_written_anew(front):
    """Lines of earlier tests' requests may come late, into either file."""
    log = front.errors.with_name("log")

    def is_logged(name, file=log):
        return file.exists() and any(json.loads(line)["request_id"] == name for line in file.read_text().splitlines())

    def log_request(name):
        assert ask(front.score_port, texts("heart"), headers={"x-request-id": name})[0] == 200
        wait_until(lambda: is_logged(name))

    log_request("before-the-move")
    moved = log.rename(log.with_name("log.1"))
    log_request("after-the-move")
    assert is_logged("before-the-move", moved) and not is_logged("after-the-move", moved)


def test_full_disk_loses_lines_of_the_log_and_no_request(triton, keys_file, tmp_path, times):
    with endpoint(triton, keys_file, tmp_path, "--access-log=/dev/full") as command:
        assert [status_of(command.score_port, texts("heart")) for _ in range(5)] == [200] * 5
        wait_until(lambda: metric(metrics_page(command.score_port), "medimage_endpoint_lost_log_lines_total") >= 5)
        times.append(("disk of the log full", "5 x 200, lines counted", "-", "0.0"))


# -- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate for 127.0.0.1 with its key, and another key."""
    if which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days=1", "-subj=/CN=localhost"]
        command += ["-addext=subjectAltName=IP:127.0.0.1", f"-keyout={folder / name}.key", f"-out={folder / name}.pem"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def test_tls_is_spoken_with_the_given_certificate_and_nothing_else(triton, keys_file, certificates, tmp_path):
    pair = ["--tls-certificate", certificates / "own.pem", "--tls-key", certificates / "own.key"]
    with endpoint(triton, keys_file, tmp_path, *pair) as command:
        assert f"score: https://127.0.0.1:{command.score_port}/score" in command.banner
        body = texts("heart")
        context = ssl.create_default_context(cafile=certificates / "own.pem")
        with context.wrap_socket(plain(command.score_port), server_hostname="127.0.0.1") as sock:
            sock.sendall(head(body, connection="close") + body)
            assert rest_of(sock).startswith(b"HTTP/1.1 200 ")
        with plain(command.score_port) as sock, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="127.0.0.1")
        start = monotonic()
        assert status_of(command.score_port, body) == CLOSED
        assert monotonic() - start < CLEAR_S


def test_hangup_reads_certificate_and_keys_again(triton, certificates, tmp_path):
    """A renewed certificate needs no restart; one that does not fit its key changes nothing."""
    pair = {kind: tmp_path / f"served.{kind}" for kind in ("pem", "key")}
    keys = tmp_path / "keys"

    def put(**files):
        for kind, name in files.items():
            shutil.copy(certificates / f"{name}.{kind}", pair[kind])

    def is_served(port, name):
        context = ssl.create_default_context(cafile=certificates / f"{name}.pem")
        try:
            with context.wrap_socket(plain(port), server_hostname="127.0.0.1"):
                return True
        except (ssl.SSLError, ConnectionError):
            return False

    put(pem="own", key="own")
    keys.write_text(KEY + "\n")
    options = ["--tls-certificate", pair["pem"], "--tls-key", pair["key"]]
    with endpoint(triton, keys, tmp_path / "endpoint", *options) as command:
        port, workers = command.score_port, command.workers
        assert is_served(port, "own")
        put(pem="other", key="other")
        assert not is_served(port, "other")
        command.process.send_signal(signal.SIGHUP)
        wait_until(lambda: is_served(port, "other"))
        assert not is_served(port, "own")
        put(pem="own")
        command.process.send_signal(signal.SIGHUP)
        wait_until(lambda: command.has_said("they do not fit; the certificate before stays in use"))
        assert is_served(port, "other")
        assert command.workers == workers


def test_hangup_under_nohup_and_other_signals_mean_nothing(triton, keys_file, tmp_path):
    signal_before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the command inherits, as from nohup
    try:
        with endpoint(triton, keys_file, tmp_path) as command:
            for pid in (command.process.pid, *command.workers):
                os.kill(pid, signal.SIGUSR1)
            command.process.send_signal(signal.SIGHUP)
            assert [status_of(command.score_port, texts("heart")) for _ in range(3)] == [200] * 3
            assert command.process.poll() is None
    finally:
        signal.signal(signal.SIGHUP, signal_before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-certificate=own.pem"], "TLS needs both --tls-certificate and --tls-key"),
        (
            ["--tls-certificate=own.pem", "--tls-key=other.key"],
            "cannot use --tls-certificate own.pem with --tls-key other.key: they do not fit",
        ),
        (
            ["--tls-certificate=own.pem", "--tls-key=none.key"],
            "cannot use --tls-certificate own.pem with --tls-key none.key: No such file or directory",
        ),
    ],
    ids=["no-key", "another-key", "missing-key"],
)
def test_certificate_without_its_key_is_one_line(certificates, options, message):
    command = [*MEDIMAGE, "endpoint", "--triton=grpc://127.0.0.1:1", "--deployment=medimageinsight", "--score-port=0"]
    ended = subprocess.run([*command, *options], cwd=certificates, capture_output=True, text=True, timeout=60.0)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"Error: {message}\n")


# -- the end


def test_told_to_end_it_finishes_what_is_under_way_and_says_so_first(triton, keys_file, image, tmp_path, times):
    with (
        endpoint(triton, keys_file, tmp_path, "--workers=2", "--drain-delay=1.5") as command,
        ThreadPoolExecutor() as pool,
    ):
        port = command.score_port
        with stopped(triton.server.pid):
            asked = [pool.submit(ask, port, body) for body in (images(image, 2), texts("not asked before: draining"))]
            wait_until(lambda: in_flight(command) == 2)
            start = monotonic()
            command.process.terminate()
            wait_until(lambda: status_of(port, path="/") == 503, within=1.0, what="that it is not ready")
            assert status_of(port, path="/live") == 200  # connections are still taken
            wait_until(lambda: status_of(port, path="/live") == CLOSED, within=3.0, what="that connections are refused")
            assert monotonic() - start > 1.0
            assert command.process.poll() is None
        assert [answer.result()[0] for answer in asked] == [200, 200]
        assert command.process.wait(END_S) == 0
        times.append(("told to end, requests under way", "2 x 200", "-", f"{monotonic() - start:.1f} (end)"))


def test_requests_that_outlast_the_drain_limit_are_told(triton, keys_file, image, tmp_path, times):
    with (
        endpoint(triton, keys_file, tmp_path, "--drain-limit=1") as command,
        ThreadPoolExecutor() as pool,
        stopped(triton.server.pid),
    ):
        asked = pool.submit(ask, command.score_port, images(image))
        wait_until(lambda: in_flight(command) == 1)
        start = monotonic()
        command.process.terminate()
        status, headers, body = asked.result()
        assert (status, "retry-after" in headers) == (503, True), body
        assert json.loads(body)["message"] == "the server is about to end"
        assert monotonic() - start > 1.0
        times.append(("told to end, --drain-limit 1", "503", f"{monotonic() - start:.1f}", "-"))
        assert command.process.wait(CLEAR_S) == 0
    assert "Traceback" not in command.errors.read_text()


def test_second_signal_ends_at_once(triton, keys_file, image, tmp_path):
    with (
        endpoint(triton, keys_file, tmp_path) as command,
        ThreadPoolExecutor() as pool,
        stopped(triton.server.pid),
    ):
        asked = pool.submit(ask, command.score_port, images(image))
        wait_until(lambda: in_flight(command) == 1)
        processes = descendants(command.process.pid)
        command.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            command.process.wait(1.0)  # it waits for the request
        command.process.terminate()
        assert command.process.wait(2.0) == 0
        assert asked.result()[0] in (503, CLOSED)
        wait_until(lambda: not any(map(is_running, processes)), within=1.0)


def test_dripping_body_is_told_and_nothing_is_held(slow_callers, times):
    answer, seconds = answer_of(slow_callers, drip, times)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 8.0 <= seconds < 11.0
    wait_until_idle(slow_callers[1].score_port)
