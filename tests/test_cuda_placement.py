"""Where onnxruntime's CUDA provider places the nodes of our graphs, and what it launches: see tests/cuda_stand_in.

MEDIMAGE_ONNXRUNTIME_GPU names the folder of a wheel of onnxruntime-gpu (250 MB), unpacked with `python -m zipfile -e`.
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medimage_export.cxrreportgen.config import read_config
from medimage_export.cxrreportgen.export import export_cxrreportgen
from medimage_export.repository import copy_unexported
from tests.cuda_stand_in import PROVIDER, StandIn, build
from tests.cuda_stand_in.on_gpu import MAX_LENGTH
from tests.paths import REPORT_CHECKPOINT, REPOSITORY
from tests.server.reports.small_model import write_small_model

pytestmark = pytest.mark.soak

ON_GPU = "tests.cuda_stand_in.on_gpu"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
HEADER = re.compile(r"(?:Node\(s\)|All nodes) placed on \[(\w+)\]")
NODE = re.compile(r"VerifyEachNodeIsAssignedToAnEp\] {2,}(\w+) \(")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    wheel = Path(os.environ.get("MEDIMAGE_ONNXRUNTIME_GPU", ""))
    if not (wheel / PROVIDER).is_file():
        pytest.skip("MEDIMAGE_ONNXRUNTIME_GPU does not name the folder of an unpacked wheel of onnxruntime-gpu")
    if missing := [tool for tool in ("gcc", "nm", "readelf", "strings") if not shutil.which(tool)]:
        pytest.skip(f"no {', '.join(missing)} to build what stands in for CUDA")
    return build(wheel, tmp_path_factory.mktemp("stand_in") / "lib")


@pytest.fixture(scope="module")
def fp16(exported, tmp_path_factory):
    """model -> the file of the phantom in fp16."""
    reports = copy_unexported(REPOSITORY, tmp_path_factory.mktemp("reports") / "models")
    export_cxrreportgen(REPORT_CHECKPOINT, reports, precision="fp16")
    return {
        "image_encoder": exported("fp16") / "image_encoder/1/model.onnx",
        "text_encoder": exported("fp16") / "text_encoder/1/model.onnx",
        "cxr_image_encoder": reports / "cxr_image_encoder/1/model.onnx",
        "decoder": reports / "cxrreportgen_stream/1/decoder.onnx",
    }


def placement(log: str) -> dict[str, Counter[str]]:
    """Provider -> how many nodes of each operator; of the largest session in the log, the others being probes."""
    sessions, provider = [], ""
    for line in log.splitlines():
        if "] Node placements" in line:
            sessions.append(defaultdict(Counter))
        elif header := HEADER.search(line):
            provider = header[1]
        elif node := NODE.search(line):
            sessions[-1][provider][node[1]] += 1
    return max(sessions, key=lambda session: sum(counts.total() for counts in session.values()))


def answer(run: subprocess.CompletedProcess[str]) -> object:
    """The JSON value that the process wrote, behind what onnxruntime may print."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def placed_by(stand_in: StandIn, path: Path) -> dict[str, Counter[str]]:
    run = stand_in.run(ON_GPU, "load", path)
    assert answer(run) == [CUDA, CPU]
    return placement(run.stderr)


def copies_of(found: dict[str, Counter[str]]) -> dict[str, int]:
    return {op: count for op, count in found[CUDA].items() if op.startswith("Memcpy")}


def vocabulary_size(decoder: Path) -> int:
    return len(np.load(decoder.with_name("embed_tokens.npy"), mmap_mode="r"))


# What is on the CPU computes shapes, of a few numbers, but for the text encoder's ArgMax: the place of each text's end.
@pytest.mark.parametrize(
    ("model", "on_cpu", "copies"),
    [
        ("image_encoder", {"Concat": 1}, {}),
        ("text_encoder", {"ArgMax": 1, "Concat": 2}, {"MemcpyFromHost": 1, "MemcpyToHost": 2}),
        ("decoder", {"Gather": 1, "Sub": 1}, {"MemcpyFromHost": 1}),
    ],
)
def test_fp16_is_placed_on_cuda(stand_in, fp16, model, on_cpu, copies):
    found = placed_by(stand_in, fp16[model])
    assert found[CPU] == on_cpu
    assert copies_of(found) == copies
    assert found[CUDA].total() > 10 * found[CPU].total()


def test_report_image_encoder_in_fp16_computes_shapes_alone_on_the_cpu(stand_in, fp16):
    found = placed_by(stand_in, fp16["cxr_image_encoder"])
    assert copies_of(found) == {}  # nothing between the two, so what the CPU computes comes from shapes
    computing = {"MultiHeadAttention", "Gemm", "MatMul", "Softmax", "Conv", "LayerNormalization", "Gelu"}
    assert not computing & found[CPU].keys()
    assert found[CUDA]["MultiHeadAttention"] > 0


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_attention_of_a_decoder_that_is_not_fp16_would_be_on_the_cpu(stand_in, tmp_path, precision):
    """Why `placed` gives no such decoder to the GPU: between its nodes on either the KV cache would go to and fro."""
    model = write_small_model(tmp_path, "linear", precision)
    found = placed_by(stand_in, model.folder / "decoder.onnx")
    layers = model.config.decoder.num_layers
    assert found[CPU]["GroupQueryAttention"] == layers
    assert "GroupQueryAttention" not in found[CUDA]
    assert min(copies_of(found)[copy] for copy in ("MemcpyToHost", "MemcpyFromHost")) >= layers


def test_step_of_the_fp16_decoder_copies_no_cache(stand_in, fp16, tmp_path):
    log = tmp_path / "calls"
    run = stand_in.run(ON_GPU, "step", fp16["decoder"], 0, log=log)
    assert answer(run) is True
    sizes = [int(size) for size in re.findall(r"^memcpy\w*_(?:H2D|D2H) (\d+)", log.read_text(), re.MULTILINE)]
    assert sizes
    assert max(sizes) <= 2 * 4 * vocabulary_size(fp16["decoder"])  # the logits of two tokens, in float32


@pytest.mark.parametrize("long_rope", [0, 1])
def test_decoder_with_long_rope_takes_its_rope_rows_from_position_ids(stand_in, tmp_path, long_rope):
    """A kernel that gets them writes the keys into the cache before attention; the fast one gets none and does it all.

    The variable must do on the provider what `heed_positions` says.
    """
    model = write_small_model(tmp_path, "longrope", "fp16")
    log = tmp_path / "calls"
    run = stand_in.run(ON_GPU, "step", model.folder / "decoder.onnx", long_rope, log=log)
    assert answer(run) is True
    kernels = re.findall(r"^KERNEL (\S+)", log.read_text(), re.MULTILINE)
    assert sum("UnpackRoPEAppend" in kernel for kernel in kernels) == (
        model.config.decoder.num_layers if long_rope else 0
    )


def test_kv_cache_is_one_block_of_its_own_size_for_as_many_slots_as_are_free(stand_in, fp16, tmp_path):
    """In onnxruntime's arena its buffers took a third more."""
    config = read_config(REPORT_CHECKPOINT).decoder
    slot_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * MAX_LENGTH * 2
    log = tmp_path / "calls"
    run = stand_in.run(ON_GPU, "slots", fp16["decoder"], 16, log=log, STUB_FREE=str(int(5.5 * slot_bytes)))
    assert answer(run) == 5
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("ours: ")]
    assert re.fullmatch(r"ours: 16 slots of 64 tokens need .* GB of KV cache, .* GB are free on GPU 0: 5 slots", line)
    calls = log.read_text()
    assert re.findall(r"^cuMemAlloc (\d+)", calls, re.MULTILINE) == [str(5 * slot_bytes)]
    logits_bytes = 5 * vocabulary_size(fp16["decoder"]) * 4
    assert re.findall(r"^cuMemHostAlloc (\d+)", calls, re.MULTILINE) == [str(logits_bytes)]


def test_kv_cache_that_does_not_fit_names_what_to_lower(stand_in, fp16):
    run = stand_in.run(ON_GPU, "slots", fp16["decoder"], 16, STUB_FREE="1000")
    assert run.returncode != 0
    assert "fits in the 0.0 GB that are free on GPU 0: lower the parameter max_length" in run.stderr


def test_device_that_is_lost_is_told_and_the_decoder_stays_on_it(stand_in, fp16):
    run = stand_in.run(ON_GPU, "fail", fp16["decoder"])
    before, error, providers = answer(run)
    assert before is None  # the convolution ran
    assert error
    assert providers == [CUDA, CPU]
    assert "ours: decoder.onnx: CUDA device 0 computes nothing any more, so the server has to start again" in run.stderr


def test_missing_cudnn_is_told_at_load(stand_in, fp16, tmp_path):
    shutil.copytree(stand_in.libraries, tmp_path / "lib", ignore=shutil.ignore_patterns("libcudnn*"))
    run = replace(stand_in, libraries=tmp_path / "lib").run(ON_GPU, "load", fp16["image_encoder"])
    assert answer(run) == [CPU]
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("ours: ")]
    assert line.startswith("ours: model: CUDA device 0 computes no convolution, so the CPU is used ")
    assert "libcudnn" in line
