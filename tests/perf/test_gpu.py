"""The benchmark of a GPU, run on the CPU with the phantoms; and its tables, on numbers of an H100."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from medimage_export.medimageinsight.davit import WindowAttention
from perf import measure, tables
from perf.cases.gpu import PIECES, Piece, checks, images, main, setting
from perf.cases.gpu.setting import Setting, phantom_model

DRY = ("check", "floor", "image-1", "decoder", "reports-256", "generate-256", "autotune-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("results")
        patch.setattr(measure, "QUICK_RESULTS", folder)
        patch.setattr(setting, "QUICK_RESULTS", folder)
        yield folder


def run(*arguments):
    return CliRunner().invoke(main, ["--quick", *arguments])


@pytest.fixture(scope="module")
def dry(folder):
    """What the run of one piece of each kind prints, and its results."""
    done = run(*DRY)
    assert done.exit_code == 0, done.output
    return done.output, json.loads((folder / "gpu.json").read_text())


def test_every_kind_of_piece_measures_the_phantoms_on_a_cpu(dry):
    output, found = dry
    assert {name.rpartition("-")[0] or name for name in DRY} | {"path"} == {
        name.rpartition("-")[0] or name for name in PIECES
    }
    assert not [name for name in DRY if "failed" in found[name]], output
    assert min(found["check"]["min_cosines"].values()) > 0.99999
    assert found["check"]["same_tokens"]["same"] == found["check"]["same_tokens"]["tokens"]
    runtimes = found["image-1"]["runtimes"]
    assert min(timing["min_cosine"] for timing in runtimes.values()) > 0.99999
    assert runtimes.keys() == {
        *("PyTorch eager fp32", "PyTorch SDPA fp32", "PyTorch SDPA fp32, channels last"),
        "OnnxRuntime fp32",
    }
    for steps in (found["reports-256"]["steps"], found["generate-256"]["steps"]):
        assert [step["studies"] for step in steps] == [1, 4]
        assert all(step["median_s"] > 0 for step in steps)
    for title in ("min cosine", "tokens in a slot"):
        assert title in output


def test_next_run_measures_what_is_left_and_a_failure_again_where_it_is_named(dry, monkeypatch):
    asked = []

    def measuring(name, found):
        return Piece(1, lambda setting: asked.append(name) or found())

    def fail():
        raise RuntimeError("no memory\nfor that")

    pieces = {name: measuring(name, lambda: {"value": 1}) for name in DRY} | {"path": measuring("path", fail)}
    monkeypatch.setattr("perf.cases.gpu.PIECES", pieces)
    monkeypatch.setattr(tables, "of", lambda case, report: json.dumps(report))
    first = run()
    assert (asked, first.exit_code) == (["path"], 1)
    assert "path: RuntimeError: no memory\n" in first.output
    assert run().exit_code == 0
    assert asked == ["path"]
    pieces["path"] = measuring("path", lambda: {"value": 2})
    again = run("path")
    assert (asked, again.exit_code) == (["path"] * 2, 0)
    assert '"path": {"value": 2}' in again.output


def test_no_piece_is_begun_that_would_end_too_late(folder, monkeypatch):
    asked = []
    pieces = {
        name: Piece(minutes, lambda setting, n=name: asked.append(n) or {}) for name, minutes in (("a", 50), ("b", 1))
    }
    monkeypatch.setattr("perf.cases.gpu.PIECES", pieces)
    monkeypatch.setattr("perf.cases.gpu.check_present", lambda device: None)
    monkeypatch.setattr(measure, "RESULTS", folder / "full")
    monkeypatch.setattr(tables, "of", lambda case, report: "")
    for expected in (["a"], ["a", "b"]):
        assert CliRunner().invoke(main, ["--minutes", "0.5"]).exit_code == 0
        assert asked == expected


def test_after_a_failed_check_nothing_is_measured(folder, monkeypatch):
    def wrong(setting):
        raise checks.Wrong("CUDA computes nothing: libcudnn.so.9 is missing")

    monkeypatch.setattr("perf.cases.gpu.PIECES", {"check": Piece(1, wrong), "floor": Piece(1, lambda setting: 1 / 0)})
    monkeypatch.setattr(measure, "QUICK_RESULTS", folder / "other")
    done = run()
    assert done.exit_code == 1
    assert "check: Wrong: CUDA computes nothing: libcudnn.so.9 is missing" in done.output
    assert "floor" not in json.loads((folder / "other" / "gpu.json").read_text())


def test_checks_refuse_vectors_of_other_weights(folder, monkeypatch):
    monkeypatch.setattr(checks, "logits", lambda setting: 1.0)
    monkeypatch.setattr(checks, "vectors", lambda setting: {"image_encoder": 0.98, "text_encoder": float("nan")})
    with pytest.raises(checks.Wrong, match=r"below 0\.999: image_encoder 0\.98000, text_encoder nan$"):
        checks.check(Setting.of(quick=True))


@torch.inference_mode()
def test_pytorchs_fused_attention_takes_the_place_of_every_window():
    model = phantom_model().eval()
    fused = images.fused(model)
    windows = [module for module in fused.modules() if isinstance(module, WindowAttention)]
    assert windows
    assert {type(module) for module in windows} == {images.FusedWindowAttention}
    assert not any(isinstance(module, images.FusedWindowAttention) for module in model.modules())
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 480, 480)).astype(np.float32))
    torch.testing.assert_close(fused.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=1e-6)


H100 = {
    "machine": {
        **{"device": "cuda", "gpu": "NVIDIA H100 80GB HBM3", "cpu": "Some CPU", "cores": 16, "torch": "2.13.0"},
        **{"onnxruntime": "1.31.1", "weights": "random weights of the published sizes", "commit": "1a2b3c4"},
    },
    "floor": {"gflop_per_s": {"fp32": 50e3, "fp16": 615e3}, "bytes_per_s": 2.5e12},
    "image-8": {
        **{"batch": 8, "gflop": 8 * 615.0, "not_measured": {"torch.compile fp16": "torch.compile failed: no gcc"}},
        "runtimes": {"OnnxRuntime fp16": {"median_ms": 16.0, "min_ms": 15.0, "max_ms": 18.0, "min_cosine": 0.9999981}},
    },
    # 7.6 GB and 16 x 1,700 tokens of 0.39 MB are read in 7.3 ms
    "reports-1700": {
        **{"weight_bytes": 7.6e9, "first_token_s": 0.081},
        "steps": [
            {
                **{"context": 1700, "studies": 16, "median_s": 0.0091, "min_s": 0.009, "max_s": 0.0095},
                "kv_bytes": 10.65e9,
            }
        ],
    },
    "generate-1700": {"steps": [{"context": 1700, "studies": 16, "median_s": 0.0182, "min_s": 0.018}]},
    "path": {"failed": "LaunchError: Triton is not installed"},
}


def test_tables_name_the_gpu_and_set_each_time_beside_its_floor():
    text = tables.of("gpu", H100)
    assert text.startswith("NVIDIA H100 80GB HBM3; torch 2.13.0, onnxruntime 1.31.1; random weights")
    assert "fp16 615.0 TFLOP/s, 2,500 GB/s" in text
    assert "path failed: LaunchError: Triton is not installed" in text
    assert "torch.compile fp16 was not measured. torch.compile failed: no gcc" in text
    (image,) = [line for line in text.splitlines() if line.startswith("| image-8")]
    assert [cell.strip() for cell in image.split("|")][2:8] == [
        *("OnnxRuntime fp16", "16.0", "15.0-18.0", "500", "50%", "0.999998")
    ]
    (step,) = [line for line in text.splitlines() if "1700 |" in line]
    assert [cell.strip() for cell in step.split("|")][1:9] == [
        *("1700", "16", "9.10", "9.00-9.50", "1,758", "7.30", "80%", "18.20")
    ]
