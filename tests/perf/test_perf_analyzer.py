"""What goes into perf_analyzer and what is read out of it; perf_analyzer itself is not run."""

import base64
import csv
import os
import subprocess

import numpy as np
import pytest
from click.testing import CliRunner
from tritonclient.utils import deserialize_bytes_tensor

from medimage_server.model_repository import read_configs
from perf.perf_analyzer_input import PUBLIC, STEPS_BEFORE, content, input_data, main
from perf.perf_analyzer_summary import COLUMNS, mean_batches
from perf.perf_analyzer_summary import main as summarise
from tests.paths import REPOSITORY, ROOT

SCRIPT = ROOT / "perf" / "perf_analyzer.sh"

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


def test_the_input_of_an_ensemble_needs_no_server(tmp_path):
    output = tmp_path / "input.json"
    result = CliRunner().invoke(
        main,
        ["medimageinsight", "--url", "grpc://127.0.0.1:1", "--image-size", "64", "--output", str(output)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert b"\x89PNG" in base64.b64decode(output.read_text().split('"b64": "')[1].split('"')[0])


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


def test_the_summary_says_what_perf_analyzer_measured(runs, tmp_path):
    result = CliRunner().invoke(summarise, [str(runs), "--output", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    with (tmp_path / "perf_analyzer.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["model"], row["concurrency"], row["part"]) for row in rows] == [
        ("medimageinsight_image", "4", "medimageinsight_image"),
        ("medimageinsight_image", "4", "image_encoder"),
        ("medimageinsight_image", "4", "image_preprocessing"),
        ("text_encoder", "8", "text_encoder"),  # by number, 8 before 16
        ("text_encoder", "16", "text_encoder"),
    ]
    ensemble, encoder, _, alone, _ = rows
    assert (ensemble["requests"], ensemble["p50_ms"], ensemble["p99_ms"]) == ("73", "630.418", "924.103")
    assert ensemble["queue_ms"] == ""  # perf_analyzer's own is wrong
    assert (encoder["queue_ms"], encoder["compute_infer_ms"], encoder["p99_ms"]) == ("170.484", "282.938", "")
    assert (alone["per_second"], alone["p95_ms"], alone["queue_ms"]) == ("176.661", "37.92", "4.181")
    page = (tmp_path / "perf_analyzer.md").read_text()
    assert "cache" not in page  # perf_analyzer.sh's own server has none
    assert "| grpc | 4 | 73 | 6.6 | 630.4 | 872.0 | 911.7 | 924.1 |" in page
    assert "| grpc | 4 | image_encoder | 2.4 | 170.5 | 0.5 | 282.9 | 2.1 |" in page
    assert "| http | 8 | text_encoder | 3.6 | 4.2 | 0.1 | 15.7 | 0.6 |" in page
    assert page.strip() == result.output.strip()


def test_the_summary_of_another_server_warns_of_its_cache(runs, tmp_path):
    result = CliRunner().invoke(
        summarise, [str(runs), "--output", str(tmp_path), "--other-server"], catch_exceptions=False
    )
    assert "caches text vectors" in result.output.split("**medimageinsight_image**")[0]


def run_script(*arguments, **variables):
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )


def test_the_script_explains_itself():
    result = run_script("--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: perf/perf_analyzer.sh")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nodule"], "unknown model nodule"),
        (["--url", "localhost:8001"], "expected grpc://HOST:PORT or http://HOST:PORT"),
        (["--url"], "--url needs a value"),
        (["--concurrency", "1,,2"], "expected as in 1,2,4"),
        (["--seconds", "0"], "whole number from 1"),
        (["--verbose"], "unknown option --verbose"),
    ],
)
def test_bad_use_ends_in_one_line(arguments, message):
    result = run_script(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1


def test_a_server_that_does_not_answer_is_a_failure(tmp_path):
    analyzer = tmp_path / "perf_analyzer"
    analyzer.write_text("#!/bin/sh\necho 'error: failed to get model metadata'\nexit 99\n")
    analyzer.chmod(0o755)
    result = run_script(
        *("--url", "grpc://127.0.0.1:1", "--image-size", "32", "--output", str(tmp_path)),
        *("--runs", str(tmp_path / "runs"), "medimageinsight_image"),
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    )
    assert result.returncode == 1
    assert "perf_analyzer on medimageinsight_image, grpc, concurrency 1: error: failed to get" in result.stderr
