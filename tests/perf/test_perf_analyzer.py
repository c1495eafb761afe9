"""What goes into perf_analyzer and what is read out of it; perf_analyzer itself is not run."""

import base64
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from tritonclient.utils import deserialize_bytes_tensor

from medimage_server.model_repository import read_configs
from perf.cases import perf_analyzer
from perf.cases.perf_analyzer import main, window
from perf.cases.perf_analyzer.inputs import PUBLIC, STEPS_BEFORE, content, input_data, make_input
from perf.cases.perf_analyzer.outputs import mean_batches, read_runs
from tests.paths import REPOSITORY

# as perf_analyzer 2.51.0 printed and wrote them for an ensemble and for one model, shortened
ENSEMBLE_PRINTED = """\
Request concurrency: 4
  Client: 
    Request count: 73
    Throughput: 6.62235 infer/sec
  Server: 
    Inference count: 73
    Execution count: 73
    Successful request count: 73

  Composing models: 
  image_encoder, version: 1
      Inference count: 73
      Execution count: 30
      Successful request count: 73

  image_preprocessing, version: 1
      Inference count: 74
      Execution count: 74
"""
HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv"
)
LATENCIES = ",p50 latency,p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait"
ENSEMBLE_REPORT = f"""\
{HEADER}{LATENCIES}
4,6.62235,39,197259,2,578,399207,3154,2,630418,872001,911703,924103,600244,41,600194
"""
ENCODER_REPORT = f"{HEADER}\n4,6.62235,0,9,170484,495,282938,2078,0\n"
PREPROCESSING_REPORT = f"{HEADER}\n4,6.71307,0,2,21261,83,115389,1062,0\n"
ALONE_PRINTED = """\
  Client: 
    Request count: 534
  Server: 
    Inference count: 534
    Execution count: 150
"""
ALONE_REPORT = f"""\
{HEADER}{LATENCIES}
8,176.661,155,7136,4181,113,15706,562,0,21004,34659,37920,44171,18495,155,18316
"""


def test_a_string_travels_with_its_length_before_it():
    found = content(np.array([b"Nodule"], dtype=object))
    assert base64.b64decode(found["content"]["b64"]) == b"\x06\x00\x00\x00Nodule"
    assert found["shape"] == [1]


@pytest.mark.parametrize("data", [b"", "Röntgen".encode(), b"\x89PNG\r\n" + bytes(300)])
def test_tritonclient_reads_the_strings_back(data):
    raw = base64.b64decode(content(np.array([data], dtype=object))["content"]["b64"])
    assert list(deserialize_bytes_tensor(raw)) == [data]


def test_numbers_travel_as_their_bytes():
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    found = content(values)
    assert found["shape"] == [2, 3]
    assert (np.frombuffer(base64.b64decode(found["content"]["b64"]), "<i8").reshape(2, 3) == values).all()


def test_each_row_is_a_request():
    data = input_data({"a": np.array([[1], [2]], np.uint8), "b": np.array([[b"x"], [b"y"]], dtype=object)})["data"]
    assert [set(row) for row in data] == [{"a", "b"}, {"a", "b"}]
    assert [base64.b64decode(row["a"]["content"]["b64"]) for row in data] == [b"\x01", b"\x02"]
    assert [base64.b64decode(row["b"]["content"]["b64"])[4:] for row in data] == [b"x", b"y"]


def test_inputs_are_those_of_the_configs():
    configs = read_configs(REPOSITORY)[0]
    for model, inputs in PUBLIC.items():
        assert {tensor.name for tensor in configs[model].input} == set(inputs)
    for model, (step, taken, given) in STEPS_BEFORE.items():
        assert {tensor.name for tensor in configs[model].input} == set(given)
        assert {tensor.name for tensor in configs[step].output} == set(given)
        assert {tensor.name for tensor in configs[step].input if not tensor.optional} == set(taken)


def test_the_input_of_an_ensemble_needs_no_server():
    data = make_input("medimageinsight", "grpc://127.0.0.1:1", image_size=64)["data"]
    assert b"\x89PNG" in base64.b64decode(data[0]["image"]["content"]["b64"])


def test_executions_are_counted_by_part():
    assert mean_batches(ENSEMBLE_PRINTED) == {
        "": 1,
        "image_encoder": pytest.approx(73 / 30),
        "image_preprocessing": 1,
    }


def test_an_inner_ensemble_is_not_counted():
    inner = ENSEMBLE_PRINTED.replace(
        "  image_preprocessing", "\n    Composing models: \n    image_preprocessing"
    ).replace("image_encoder", "image_embedding")
    assert mean_batches(inner) == {"": 1, "image_preprocessing": 1}


@pytest.fixture
def runs(tmp_path):
    files = {
        "medimageinsight_image/grpc/4/printed.txt": ENSEMBLE_PRINTED,
        "medimageinsight_image/grpc/4/report.csv": ENSEMBLE_REPORT,
        "medimageinsight_image/grpc/4/image_encoder_v1.report.csv": ENCODER_REPORT,
        "medimageinsight_image/grpc/4/image_preprocessing_v1.report.csv": PREPROCESSING_REPORT,
        "medimageinsight_image/grpc/first/report.csv": ENSEMBLE_REPORT,
        "text_encoder/http/16/printed.txt": ALONE_PRINTED,
        "text_encoder/http/16/report.csv": ALONE_REPORT.replace("\n8,", "\n16,"),
        "text_encoder/http/8/printed.txt": ALONE_PRINTED,
        "text_encoder/http/8/report.csv": ALONE_REPORT,
    }
    for name, text in files.items():
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "runs"


def test_the_rows_say_what_perf_analyzer_measured(runs):
    rows = read_runs(runs)
    assert [(row["model"], row["concurrency"], row["part"]) for row in rows] == [
        ("medimageinsight_image", 4, "medimageinsight_image"),
        ("medimageinsight_image", 4, "image_encoder"),
        ("medimageinsight_image", 4, "image_preprocessing"),
        ("text_encoder", 8, "text_encoder"),  # by number, 8 before 16
        ("text_encoder", 16, "text_encoder"),
    ]
    ensemble, encoder, _, alone, _ = rows
    assert (ensemble["requests"], ensemble["p50_ms"], ensemble["p99_ms"]) == (73, 630.418, 924.103)
    assert "queue_ms" not in ensemble  # perf_analyzer's own is wrong
    assert (encoder["queue_ms"], encoder["compute_infer_ms"]) == (170.484, 282.938)
    assert "p99_ms" not in encoder
    assert (alone["per_second"], alone["p95_ms"], alone["queue_ms"]) == (176.661, 37.92, 4.181)


@pytest.mark.parametrize(
    ("concurrency", "latency_us", "expected"),
    # windows of which three make the time at the rate before: 8 requests of 18.495 ms at once fill 10 s 4,325 times
    [(8, "18495", 1442), (32, "9999999", 22), (1, "99999999", 4)],
    ids=["time", "requests in flight", "least"],
)
def test_windows_fill_the_time_and_the_queue(concurrency, latency_us, expected, tmp_path):
    report = tmp_path / "report.csv"
    report.write_text(ALONE_REPORT.replace("18495", latency_us))
    assert window(report, concurrency, seconds=10) == expected


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(perf_analyzer, "RUNS", tmp_path / "runs")
    monkeypatch.setattr("perf.measure.RESULTS", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [*arguments, "--url", "grpc://127.0.0.1:1", "medimageinsight_image"])


def analyzer(folder, script):
    (folder / "perf_analyzer").write_text(f"#!/bin/sh\n{script}")
    (folder / "perf_analyzer").chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nodule"], "'nodule' is not one of"),
        (["--url", "localhost:8001"], "expected grpc://HOST:PORT or http://HOST:PORT"),
        (["--concurrency", "0"], "0 is not in the range x>=1"),
        (["--seconds", "0"], "0 is not in the range x>=1"),
    ],
)
def test_bad_use_is_refused(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_server_that_does_not_answer_is_a_failure(folders):
    analyzer(folders, "echo 'error: failed to get model metadata'\nexit 99\n")
    result = run()
    assert result.exit_code == 1
    assert "perf_analyzer on medimageinsight_image, grpc, concurrency 1: error: failed to get" in result.output


def test_each_run_is_made_as_long_as_the_one_before_it_lets_expect(folders):
    """A stand-in for perf_analyzer, which notes how it is called and writes what the real one wrote for an ensemble."""
    (folders / "printed").write_text(ENSEMBLE_PRINTED)
    (folders / "report").write_text(ENSEMBLE_REPORT)
    (folders / "encoder").write_text(ENCODER_REPORT)
    analyzer(
        folders,
        f'echo "$@" >> {folders}/calls\ncat {folders}/printed\ncp {folders}/report report.csv\n'
        f"cp {folders}/encoder image_encoder_v1.report.csv\n",
    )
    result = run("--concurrency", "4", "--concurrency", "8", "--seconds", "30")
    assert result.exit_code == 0, result.output
    first, four, eight = (folders / "calls").read_text().splitlines()
    assert "--concurrency-range=1 --request-count=3" in first
    # 4 requests of 600.244 ms at once fill 30 s 200 times, in three windows
    assert all("--measurement-request-count=67" in call for call in (four, eight))
    report = json.loads((folders / "perf_analyzer.json").read_text())
    assert report["other_server"] is True
    assert [(row["concurrency"], row["part"]) for row in report["runs"]] == [
        (4, "medimageinsight_image"),
        (4, "image_encoder"),
        (8, "medimageinsight_image"),
        (8, "image_encoder"),
    ]
    assert "answered from its cache" in result.output
