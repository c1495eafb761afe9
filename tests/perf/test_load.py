"""The load generator and the repeats of scaling.py and overhead.py, on calls of known length; and the picture."""

import json
import re
import subprocess
import sys
import threading

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from perf.load import Load, requests_for, run_load
from perf.machine import exported_for_onnxruntime, memory, peak_memory
from perf.overhead import busy, one_at_a_time
from perf.scaling_plots import plot
from perf.session_process import repeat
from tests.paths import ROOT

MIB = 2**20


def test_so_many_calls_are_in_flight_and_each_is_made_once():
    numbers, most, now, lock = [], 0, 0, threading.Lock()
    full = threading.Barrier(3, timeout=10)  # passes only where three are in flight at once

    def call(number):
        nonlocal most, now
        with lock:
            numbers.append(number)
            now += 1
            most = max(most, now)
        full.wait()
        with lock:
            now -= 1

    load = run_load(call, concurrency=3, requests=9)
    assert sorted(numbers) == list(range(9))
    assert most == 3
    assert len(load.latencies_s) == 9
    assert load.rate == pytest.approx(9 / load.seconds)


def test_a_failed_call_fails_the_load():
    def call(number):
        if number == 2:
            raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        run_load(call, concurrency=2, requests=4)


def test_percentiles_are_those_of_numpy():
    latencies = list(np.random.default_rng(0).exponential(size=100))
    assert Load(1, latencies, 1.0).percentile_ms(99) == pytest.approx(1e3 * np.quantile(latencies, 0.99))


@pytest.mark.parametrize(
    ("seconds", "rate", "concurrency", "expected"),
    [(10, 30, 4, 300), (10, 0.75, 32, 64), (1, 0.2, 1, 4)],  # time, requests in flight, and the least count
)
def test_requests_fill_the_time_and_the_queue(seconds, rate, concurrency, expected):
    assert requests_for(seconds, rate=rate, concurrency=concurrency) == expected


class Clock:
    """Stands in for the module `time`: only what the calls take passes."""

    def __init__(self):
        self.now = 0.0
        self.lock = threading.Lock()

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        with self.lock:
            self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in ("session_process", "overhead", "load"):
        monkeypatch.setattr(f"perf.{module}.time", clock)
    return clock


@pytest.mark.parametrize(
    ("call_s", "seconds", "repeats", "expected"),
    [(4, 1, 20, 1), (1, 4, 20, 4), (1, 4.5, 20, 4), (1, 100, 20, 20)],
)
def test_repeats_fit_the_time_and_the_count(clock, call_s, seconds, repeats, expected):
    assert repeat(lambda: clock.sleep(call_s), seconds=seconds, repeats=repeats) == [call_s] * expected


class Session:
    """Takes two seconds for any batch."""

    def __init__(self, clock):
        self.clock = clock

    def run(self, outputs, feed):
        self.clock.sleep(2)


def test_overhead_of_one_request_is_the_difference(clock):
    inputs = {"x": np.zeros((16, 1), np.float32)}
    found = one_at_a_time(Session(clock), lambda number: clock.sleep(2.5), inputs, seconds=20)
    assert found["session_ms"] == pytest.approx(2000)
    assert found["triton_ms"] == pytest.approx(2500)
    assert found["overhead_ms"] == pytest.approx(500)
    assert found["turns"] == 9  # of 4.5 s and the rests, in twice 20 s


def test_what_is_lost_is_lost_against_the_faster_session(clock):
    inputs = {"x": np.zeros((16, 1), np.float32)}
    found = busy(Session(clock), lambda number: clock.sleep(1), inputs, 4, seconds=8, rounds=3)
    assert found["rows_per_second"] == pytest.approx({"session_alone": 0.5, "session_batched": 2.0, "triton": 1.0})
    assert found["lost_share"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"format": "tensorrt", "precision": "fp16"}, "holds tensorrt plans; export it with --format onnx"),
        ({"format": "onnx", "precision": "bf16"}, "holds bf16, which OpenVINO computes: only onnxruntime is measured"),
    ],
    ids=["plans", "bf16"],
)
def test_what_another_runtime_serves_is_not_measured_as_onnxruntime(tmp_path, found, message):
    manifest = tmp_path / "medimageinsight" / "1" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"checkpoint": {"weights": "random"}, **found}))
    with pytest.raises(click.ClickException, match=f"^{re.escape(str(tmp_path))} {message}$"):
        exported_for_onnxruntime(tmp_path)


def test_memory_counts_children():
    hold = f"data = bytearray(b'x') * {64 * MIB}; print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        process.stdout.readline()
        found, peak = memory(process.pid), peak_memory(process.pid)
        process.stdin.write(b"\n")
    assert 64 * MIB < found.pss <= found.rss <= peak < 192 * MIB


def test_the_session_process_measures_itself_alone(tmp_path):
    rows, columns = 4, 2 * MIB  # the sum needs 32 MiB more than its input
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.ones((rows, columns), np.float32))
    ballast = np.ones(200 * MIB, np.uint8)  # of this process, which must not count
    answer = subprocess.run(
        [
            sys.executable,
            ROOT / "perf" / "session_process.py",
            tmp_path / "model.onnx",
            tmp_path / "inputs.npz",
            "5",
            "3",
        ],
        check=True,
        capture_output=True,
    )
    found = json.loads(answer.stdout)
    assert ballast.any()
    assert len(found["times_s"]) == 3
    assert 0 < found["process_bytes"] <= found["loaded_bytes"] < found["peak_bytes"] < 200 * MIB
    assert found["peak_bytes"] - found["loaded_bytes"] > 24 * MIB


def test_the_picture_shows_both_towers(tmp_path):
    sizes = (1, 2, 4)
    report = {
        "batches": [
            {"tower": tower, "batch": size, "median_ms": 10.0 * size, "peak_bytes": 1e8 * size}
            for tower in ("image", "text")
            for size in sizes
        ],
        "serving": {
            "loads": [
                {"tower": tower, "concurrency": size, "per_second": 2.0 * size, "p99_ms": 30.0 * size}
                for tower in ("image", "text")
                for size in sizes
            ]
        },
    }
    plot(report, tmp_path / "scaling.png")
    colours = {colour for _, colour in Image.open(tmp_path / "scaling.png").convert("RGB").getcolors(maxcolors=2**24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
