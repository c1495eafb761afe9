"""The cases: what lists them, the quick ones from end to end, and how a few of them count, on calls of known length."""

import json
import re
import subprocess
import sys
from functools import partial

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from perf.__main__ import CASES, questions
from perf.cases.triton_overhead import busy, one_at_a_time
from perf.memory import memory, peak_memory
from perf.servers import exported_for_onnxruntime
from perf.sessions import repeat
from tests.paths import ROOT

MIB = 2**20


def perf(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "perf", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def test_list_tells_the_question_of_every_case():
    done = perf("--list")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert set(lines) == {path.stem for path in CASES.iterdir() if path.name[0] != "_"}
    assert all(question.endswith("?") for question in lines.values())
    assert lines["preprocessing"].startswith("How long does an image file take to become the encoder's pixels")


def test_help_lists_cases_and_the_command_that_writes_the_pages():
    done = perf("--help")
    assert done.returncode == 0, done.stderr
    assert set(questions()) | {"page"} <= set(re.findall(r"^  (\w+)", done.stdout, re.MULTILINE))


def test_an_unknown_case_is_refused_in_one_line():
    done = perf("nothing")
    assert done.returncode == 2
    assert "No such command 'nothing'" in done.stderr.splitlines()[-1]


def test_a_quick_case_runs_from_end_to_end():
    done = perf("preprocessing", "--quick", "--rounds", "1", timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads((ROOT / "build" / "perf" / "preprocessing.json").read_text())
    assert report["machine"]["commit"] and report["machine"]["cores"]
    assert {row["image"].split()[0] for row in report["files"]} == {"512"}
    for row in report["files"]:
        assert f"| {row['image']}" in done.stdout
        assert row["path"]["ours"]["min_ms"] > 0


@pytest.mark.soak
@pytest.mark.parametrize("case", sorted({*questions()} - {"preprocessing", "perf_analyzer", "bulk"}))
def test_every_quick_case_runs_from_end_to_end(case):
    done = perf(case, "--quick", timeout=590)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout  # tables


class Clock:
    """Stands in for the module `time`: only what the calls take passes."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("perf.sessions.time", clock)
    monkeypatch.setattr("perf.measure.time", clock)
    return clock


@pytest.mark.parametrize(
    ("call_s", "seconds", "repeats", "expected"),
    [(4, 1, 20, 1), (1, 4, 20, 4), (1, 4.5, 20, 4), (1, 100, 20, 20)],
)
def test_repeats_fit_the_time_and_the_count(clock, call_s, seconds, repeats, expected):
    assert repeat(lambda: clock.sleep(call_s), seconds=seconds, repeats=repeats) == [call_s] * expected


def test_overhead_of_one_request_is_the_difference(clock):
    found = one_at_a_time(partial(clock.sleep, 2), partial(clock.sleep, 2.5), rounds=9)
    assert found == pytest.approx({"rounds": 9, "session_ms": 2000, "triton_ms": 2500, "overhead_ms": 500})


def test_what_is_lost_is_lost_against_the_faster_session(clock):
    session = partial(clock.sleep, 2)  # for any batch
    found = busy(session, session, lambda: 1.0, concurrency=4, seconds=8, rounds=3)
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
            *(sys.executable, "-m", "perf.sessions"),
            *(tmp_path / "model.onnx", tmp_path / "inputs.npz"),
            *("5", "3"),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    found = json.loads(answer.stdout)
    assert ballast.any()
    assert len(found["times_s"]) == 3
    assert 0 < found["process_bytes"] <= found["loaded_bytes"] < found["peak_bytes"] < 200 * MIB
    assert found["peak_bytes"] - found["loaded_bytes"] > 24 * MIB
