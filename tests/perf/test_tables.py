"""The tables and the pictures of the cases, from a run's JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from perf import plots, tables
from tests.paths import ROOT

TIMING = {"median_ms": 0.0, "min_ms": 0.0, "max_ms": 0.0, "max_abs_difference": 1e-7, "min_cosine": 0.9999995}
ABOUT = {
    "cpu": "Some CPU",
    "gpu": None,
    "cores": 2,
    "device": "cpu",
    "torch": "2.13.0",
    "onnxruntime": "1.31.1",
    "weights": "random weights of the published size",
    "commit": "1a2b3c4",
}
FLOOR = {
    "fp32": {"gflop_per_s": 250.0, "image_ms": 2460.0},
    "int8": {"gflop_per_s": 700.0, "image_ms": 878.6},
}
ENCODERS = {
    "image, batch 1": {
        "gflop": 615.0,
        "runtimes": {
            "PyTorch eager fp32": TIMING | {"median_ms": 4920.0, "min_ms": 4900.0, "max_ms": 5000.0},
            "PyTorch eager bf16": TIMING | {"median_ms": 5166.0, "min_ms": 5100.0, "max_ms": 5200.0},
            "OnnxRuntime int8": TIMING | {"median_ms": 1230.0, "min_ms": 1200.0, "max_ms": 1300.0},
        },
        "not_measured": {"OpenVINO fp32": "OpenVINO is not installed: `make perf` installs it"},
    }
}
WHOLE_PATH = {
    "through": "through Triton over gRPC",
    "profile": "azure",
    "cases": {
        "512 x 512": {
            "decode": TIMING | {"median_ms": 3.25, "min_ms": 3.0, "max_ms": 4.0},
            "runtimes": {
                # latencies of the model card's row MGBCXR, whose speed-up it gives as 73.91%
                "PyTorch eager fp32": TIMING | {"median_ms": 322.0, "min_ms": 320.0, "max_ms": 330.0},
                "OnnxRuntime int8": TIMING | {"median_ms": 84.0, "min_ms": 83.0, "max_ms": 90.0},
            },
        },
        "2048 x 2048": {
            "decode": TIMING | {"median_ms": 50.0, "min_ms": 49.0, "max_ms": 51.0},
            "runtimes": {
                "PyTorch eager fp32": TIMING | {"median_ms": 400.0, "min_ms": 390.0, "max_ms": 440.0},
                "OnnxRuntime int8": TIMING | {"median_ms": 500.0, "min_ms": 450.0, "max_ms": 510.0},
            },
        },
    },
}
ACCURACY = {
    "drawings": 1450,
    "normal": 100,
    "finding": 50,
    "runtimes": {
        "PyTorch eager fp32": {
            "accuracy": 0.46931,
            "balanced_accuracy": 0.34614,
            "macro_auc": 0.92552,
            "changed_answers": 0,
            "min_cosine": 1.0,
        },
        "OnnxRuntime int8": {
            "accuracy": 0.46731,
            "balanced_accuracy": 0.34714,
            "macro_auc": 0.92552,
            "changed_answers": 7,
            "min_cosine": 0.9976,
        },
    },
}
CONTENT = {"machine": ABOUT, "floor": FLOOR, "encoders": ENCODERS, "whole_path": WHOLE_PATH, "accuracy": ACCURACY}


def rows(text):
    """The cells of every table row of a Markdown text, without the rules."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| -")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def encoder_rows(content):
    """Of the second table: the floor's stands before it."""
    return rows(tables.encoders(content).partition("Encoders alone")[2])


def test_card_has_the_columns_of_the_model_card_and_its_definition_of_speed_up():
    header, *body = rows(tables.card(CONTENT))
    assert header == [
        "**Image size**",
        "**Model**",
        "**Latency** (ms)",
        "**Speed-up**",
        "**Accuracy**",
        "**BACC**",
        "**mAUC**",
    ]
    assert body[0] == [
        "**512 x 512**",
        "**Baseline** (PyTorch eager fp32)",
        "322",
        "-",
        "46.93%",
        "34.61%",
        "92.55%",
    ]
    assert body[1] == ["", "OnnxRuntime int8", "84.0", "**73.91%**", "46.73%", "34.71%", "92.55%"]


def test_card_shows_a_slowdown_as_one():
    assert rows(tables.card(CONTENT))[4][3] == "**-25.00%**"


def test_encoders_show_ratio_and_share_of_their_own_precisions_floor():
    header, *body = encoder_rows(CONTENT)
    assert [dict(zip(header, row, strict=True))["baseline ÷ it"] for row in body] == ["1.00", "0.95", "4.00"]
    # 2460 / 4920; of bf16 no rate was measured; 615 / 700 s = 878.6 ms / 1230
    assert [dict(zip(header, row, strict=True))["floor ÷ it"] for row in body] == ["50%", "-", "71%"]


def test_texts_have_a_floor_only_where_their_padding_is_cut():
    texts = ENCODERS["image, batch 1"] | {"gflop": 64.64}
    header, *body = encoder_rows(CONTENT | {"encoders": {"16 texts of 10 tokens": texts}})
    # 64.64 / 700 s = 92.3 ms / 1230; PyTorch computes 77 tokens of each
    assert [dict(zip(header, row, strict=True))["floor ÷ it"] for row in body] == ["-", "-", "8%"]


def test_encoders_of_another_size_have_no_floor():
    cases = {"image, batch 1": ENCODERS["image, batch 1"] | {"gflop": None}}
    header, *body = encoder_rows(CONTENT | {"encoders": cases})
    assert {dict(zip(header, row, strict=True))["floor ÷ it"] for row in body} == {"-"}


def test_encoders_say_what_was_not_measured_and_why():
    assert "OpenVINO fp32 was not measured. OpenVINO is not installed" in tables.encoders(CONTENT)


def test_accuracy_gives_differences_in_percentage_points():
    body = rows(tables.accuracy(CONTENT))[1:]
    assert body[1][1:] == ["46.73% (-0.20)", "34.71% (+0.10)", "92.55% (+0.00)", "met", "7", "0.997600"]


@pytest.mark.parametrize(
    ("runtime", "points", "goal"),
    [
        ("OnnxRuntime fp16", (0.2, -0.2, 0.1), "met"),
        ("OnnxRuntime fp16", (0, 0, -0.11), "missed"),
        ("OnnxRuntime fp16", (0.21, 0, 0), "missed"),  # gained by chance, not by precision
        ("OnnxRuntime int8", (0.5, 0.5, -0.5), "met"),
        ("OnnxRuntime int8", (0, -0.51, 0), "missed"),
        ("OnnxRuntime fp32", (0, 0, 0), "-"),
        ("PyTorch eager fp16", (9, 9, 9), "-"),
    ],
)
def test_accuracy_says_whether_a_precision_meets_its_goal(runtime, points, goal):
    reference = ACCURACY["runtimes"]["PyTorch eager fp32"]
    moved = {
        metric: reference[metric] + by / 100
        for metric, by in zip(("accuracy", "balanced_accuracy", "macro_auc"), points, strict=True)
    }
    runtimes = {"PyTorch eager fp32": reference, runtime: reference | moved}
    header, *body = rows(tables.accuracy(CONTENT | {"accuracy": ACCURACY | {"runtimes": runtimes}}))
    assert [row[header.index("goal")] for row in body] == ["-", goal]


def test_whole_path_shows_the_decoding_beside_the_pipelines():
    body = rows(tables.whole_path(CONTENT))[1:]
    assert body[0][1:4] == ["Pillow, decoding alone", "3.2", "3.0-4.0"]
    assert body[2][1:5] == ["OnnxRuntime int8", "84.0", "83.0-90.0", "3.83"]


def test_a_case_has_all_its_tables():
    text = tables.of("suite", CONTENT)
    assert text.startswith("| median ms ")
    assert all(part in text for part in ("Some CPU, 2 cores", "**mAUC**", "Encoders alone", "decoding alone", "unseen"))


def test_report_of_a_gpu_run_names_the_gpu():
    assert tables.about({"machine": ABOUT | {"device": "cuda", "gpu": "Some GPU"}}).startswith("Some GPU; torch 2.13.0")


def test_picture_has_a_bar_for_each_size_and_runtime_as_high_as_its_median(tmp_path):
    figure = plots.latency_by_size(WHOLE_PATH)
    (axes,) = figure.axes
    assert [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")] == [
        [322.0, 400.0],
        [84.0, 500.0],
    ]
    assert "ms" in axes.get_ylabel()
    figure.savefig(tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_picture_counts_in_seconds_where_the_baseline_takes_them():
    cases = {
        size: case
        | {
            "runtimes": {
                name: timing | {key: 10 * timing[key] for key in ("median_ms", "min_ms", "max_ms")}
                for name, timing in case["runtimes"].items()
            }
        }
        for size, case in WHOLE_PATH["cases"].items()
    }
    (axes,) = plots.latency_by_size(WHOLE_PATH | {"cases": cases}).axes
    heights = [bar.get_height() for bars in axes.containers if hasattr(bars, "patches") for bar in bars]
    assert np.allclose(heights, [3.22, 4.0, 0.84, 5.0])
    assert axes.get_ylabel().endswith(", s")


def test_growth_shows_both_towers(tmp_path):
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
    plots.growth(report).savefig(tmp_path / "scaling.png")
    colours = {colour for _, colour in Image.open(tmp_path / "scaling.png").convert("RGB").getcolors(maxcolors=2**24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_what_triton_adds_is_held_to_its_goals():
    rates = {"session_alone": 9.0, "session_batched": 10.0, "triton": 9.5}
    report = {
        "machine": ABOUT,
        "exported": {"weights": "random", "precision": "fp32"},
        "one": [
            {"tower": "image", "rounds": 5, "session_ms": 100.0, "triton_ms": 114.0, "overhead_ms": 14.0},
            {"tower": "text", "rounds": 5, "session_ms": 100.0, "triton_ms": 116.0, "overhead_ms": 16.0},
        ],
        "busy": [
            {"what": what, "concurrency": 8, "rows_per_second": rates, "lost_share": 0.05}
            for what in ("image encoder", "PNG to vector")
        ],
    }
    found = rows(tables.triton_overhead(report))
    assert [row[-1] for row in found] == ["goal: 15 ms", "met", "missed", "goal", "3%, missed", "7%, met"]


def test_perf_analyzer_is_shown_by_model_and_by_part():
    report = json.loads((ROOT / "perf" / "results" / "perf_analyzer.json").read_text())
    body = rows(tables.perf_analyzer(report))[1:]
    assert body[0] == ["medimageinsight_image", "grpc", "1", "12", "0.5", *["2,152.8", "2,234.7", "2,234.7", "2,287.8"]]
    assert len(body) == sum(row["part"] == row["model"] for row in report["runs"])
    parts = rows(tables.perf_analyzer_parts(report))[1:]
    assert parts[0] == ["medimageinsight_image", "grpc", "1", "image_encoder", "1.0", "5.2", "0.2", "2,106.4", "4.3"]
    assert ["text_encoder", "http", "4", "text_encoder"] in [row[:4] for row in parts]
    assert "cache" not in tables.perf_analyzer(report)
    assert "answered from its cache" in tables.perf_analyzer(report | {"other_server": True})


def test_a_pod_answers_what_its_latency_leaves_it_time_for():
    timings = {"PyTorch eager fp32": {"median_ms": 8000.0}, "OnnxRuntime fp32": {"median_ms": 4000.0}}
    content = {"machine": ABOUT | {"cores": 2}, "whole_path": {"cases": {"512 x 512": {"runtimes": timings}}}}
    assert rows(tables.capacity(content))[1:] == [["OnnxRuntime fp32", "0.25", "8.0"]]


def test_rates_of_several_tritons_are_beside_that_of_one():
    seen = {"requests": 300, "failed": 0, "p50_ms": 1.0, "p99_ms": 20.4, "max_ms": 31.0}
    report = {"machine": ABOUT | {"commit": "c"}, "callers": 8, "cores": 2}
    report["numbers"] = [{"tritons": n, "per_second": rate, **seen} for n, rate in ((1, 10.0), (3, 25.0))]
    report["changes"] = [{"what": "one added", "seconds": 1.25, **seen, "failed": 2}]
    assert rows(tables.several_tritons(report))[1:] == [
        ["1", "10.0 (1.00 x)", "1", "20", "0 of 300"],
        ["3", "25.0 (2.50 x)", "1", "20", "0 of 300"],
    ]
    assert rows(tables.changed_tritons(report))[1:] == [["one added", "1.2", "2 of 300", "1", "20", "31"]]


def test_reports_are_beside_every_decoder_of_the_run():
    earlier = json.loads((ROOT / "perf/results/reports.json").read_text())
    baselines = {
        "transformers bf16": {"first_token_s": 9.04, "step_s": 0.1994},
        "OpenVINO, our int4": {"first_token_s": 7.4, "step_s": 0.038},
    }
    text = tables.of("reports", earlier | {"baselines": baselines})
    assert text.startswith(tables.of("reports", earlier))
    assert "| transformers bf16  |       9.0 |        199 |" in text
    assert "| OpenVINO, our int4 |       7.4 |         38 |" in text
    assert "| transformers fp32 " in text and "| ours, int4 " in text
