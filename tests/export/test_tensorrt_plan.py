"""Everything up to TensorRT itself: stand-ins for its package and its command record what they are asked for."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import parser

from medimage_export.errors import PlanError, TensorRTMissing, UnsupportedByTensorRT
from medimage_export.tensorrt_package import TensorRTPackage
from medimage_export.tensorrt_plan import build_plan, find_toolkit, timing_cache_of, with_largest_profile
from medimage_export.tensorrt_profiles import Profile, batch_profiles, profile_for
from medimage_export.trtexec import Trtexec
from tests.export.fake_tensorrt import FakeTensorRT, ParserError, install

GIB = 2**30
# two inputs of different types and ranks, two outputs of different shapes
ENCODER = """
    <ir_version: 9, opset_import: ["" : 20]>
    encoder (uint8[n,4,3] pixels, int64[n,3] ids) => (float[n,4] features, float[n,1] scale) {
        values = Cast<to=1>(pixels)
        whole = Cast<to=1>(ids)
        last = Constant<value = int64[1] {-1}>()
        features = ReduceMean<keepdims=0>(values, last)
        scale = ReduceSum(whole, last)
    }
"""


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(parser.parse_model(ENCODER), path)
    return path


@pytest.fixture
def feed():
    rng = np.random.default_rng(0)
    return {
        "pixels": rng.integers(0, 256, (3, 4, 3), dtype=np.uint8),
        "ids": rng.integers(0, 1000, (3, 3), dtype=np.int64),
    }


@pytest.fixture
def tensorrt(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def trtexec(monkeypatch, tmp_path):
    """The stand-in as the one command on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "trtexec"
    script = Path(__file__).with_name("fake_trtexec.py")
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("PATH", str(folder))
    return tmp_path / "calls.jsonl"


def build(network, toolkit, *, max_batch_size=16):
    plan = network.with_name("model.plan")
    cache = network.with_name("timing.cache")
    return build_plan(toolkit, network, plan, max_batch_size=max_batch_size, timing_cache=cache)


@pytest.mark.parametrize(
    ("max_batch_size", "sizes"), [(1, [1]), (4, [1, 4]), (8, [1, 8]), (16, [1, 8, 16]), (64, [1, 8, 64])]
)
def test_profiles_are_tuned_for_1_and_8_and_for_the_largest_batch_of_the_config(max_batch_size, sizes):
    assert batch_profiles(max_batch_size) == [Profile(1, size, size) for size in sizes]


@pytest.mark.parametrize(("batch", "index"), [(1, 0), (2, 1), (8, 1), (9, 2), (16, 2)])
def test_profile_for_a_batch_is_the_smallest_that_allows_it(batch, index):
    assert profile_for(batch, batch_profiles(16)) == index


def test_timing_cache_lies_beside_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert timing_cache_of(Path("model_repository")) == tmp_path / "tensorrt-timing.cache"


def test_missing_tensorrt_is_one_line_with_the_command_for_nvidias_container(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TensorRTMissing) as caught:
        find_toolkit()
    message = str(caught.value)
    assert "\n" not in message
    assert "docker run --rm --gpus all" in message
    assert "nvcr.io/nvidia/tensorrt:YY.MM-py3" in message
    assert "medimage export medimageinsight --checkpoint DIR --precision fp16 --format tensorrt" in message


def test_package_without_its_libraries_counts_as_missing(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TensorRTMissing):
        find_toolkit()


def test_package_is_preferred_to_the_command(tensorrt, monkeypatch, tmp_path):
    (tmp_path / "trtexec").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(find_toolkit(), TensorRTPackage)


@pytest.mark.parametrize("old", ["8.6.1", "9.3.0.post12.dev1"])
def test_package_before_version_10_is_refused(tensorrt, monkeypatch, tmp_path, old):
    monkeypatch.setenv("PATH", str(tmp_path))
    tensorrt.__version__ = old
    with pytest.raises(PlanError, match=f"tensorrt {old} is too old; 10 or later"):
        find_toolkit()


def test_package_needs_a_pytorch_that_finds_the_gpu(tensorrt, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlanError, match="needs a PyTorch that finds the GPU"):
        find_toolkit()


def test_command_needs_no_pytorch_that_finds_the_gpu(trtexec, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(find_toolkit(), Trtexec)


def test_version_is_that_of_the_package(tensorrt):
    assert find_toolkit().version == "10.15.1"


@pytest.mark.parametrize(("banner", "version"), [("101303", "10.13.3"), ("100001", "10.0.1"), ("110000", "11.0.0")])
def test_version_is_that_of_the_command(trtexec, monkeypatch, banner, version):
    monkeypatch.setenv("FAKE_TRTEXEC_VERSION", banner)
    assert find_toolkit().version == version


def test_command_before_version_10_is_refused(trtexec, monkeypatch):
    monkeypatch.setenv("FAKE_TRTEXEC_VERSION", "8601")
    with pytest.raises(PlanError, match="trtexec of TensorRT v8601 is too old; 10 or later is needed"):
        find_toolkit()


def test_command_that_is_no_trtexec_is_refused():
    with pytest.raises(PlanError, match="true does not say that it is trtexec, and of which version"):
        Trtexec("true")


def test_package_builds_a_strongly_typed_network_without_tf32(network, tensorrt):
    build(network, find_toolkit())
    assert tensorrt.network_flags == 1 << tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert tensorrt.cleared_flags == [tensorrt.BuilderFlag.TF32]
    assert tensorrt.limits == {tensorrt.MemoryPoolType.WORKSPACE: 4 * GIB}


def test_package_gives_every_input_its_shapes_in_every_profile(network, tensorrt):
    build(network, find_toolkit())
    assert tensorrt.profiles == [
        {"pixels": ((1, 4, 3), (1, 4, 3), (1, 4, 3)), "ids": ((1, 3), (1, 3), (1, 3))},
        {"pixels": ((1, 4, 3), (8, 4, 3), (8, 4, 3)), "ids": ((1, 3), (8, 3), (8, 3))},
        {"pixels": ((1, 4, 3), (16, 4, 3), (16, 4, 3)), "ids": ((1, 3), (16, 3), (16, 3))},
    ]


def test_package_starts_from_the_saved_timing_cache_and_saves_what_it_learnt(network, tensorrt):
    cache = network.with_name("timing.cache")
    cache.write_bytes(b"earlier")
    build(network, find_toolkit())
    assert tensorrt.caches == [b"earlier"]
    assert cache.read_bytes() == b"earlier and more"


def test_package_starts_anew_where_the_timing_cache_is_of_another_gpu(network, tensorrt):
    cache = network.with_name("timing.cache")
    cache.write_bytes(b"foreign")
    tensorrt.mismatch = True
    build(network, find_toolkit())
    assert tensorrt.caches == [b""]
    assert cache.read_bytes() == b" and more"


def test_package_reports_every_error_of_the_parser_in_one_line(network, tensorrt):
    tensorrt.parser_errors = [
        ParserError(operator="Gelu", name="mlp/3", description="no importer\nfor this"),
        ParserError(operator="Pad", name="window", description="mode is unknown"),
    ]
    with pytest.raises(PlanError, match=r"^[^\n]*parse.*: Gelu mlp/3: no importer for this; Pad window: mode is unk"):
        build(network, find_toolkit())


def test_package_reports_why_the_build_failed_and_leaves_no_plan(network, tensorrt):
    toolkit = find_toolkit()
    tensorrt.build_error = "could not find any implementation for node 7"
    with pytest.raises(PlanError, match=r"cannot build the plan: could not find any implementation for node 7$"):
        build(network, toolkit)
    assert not list(network.parent.glob("model.plan*"))
    tensorrt.build_error = "out of memory"
    with pytest.raises(PlanError, match=r"cannot build the plan: out of memory$"):
        build(network, toolkit)


@pytest.mark.parametrize("way", ["tensorrt", "trtexec"])
def test_plan_gives_the_outputs_of_the_network(network, feed, way, request):
    request.getfixturevalue(way)
    session = build(network, find_toolkit())
    names = ["scale", "features"]
    expected = onnxruntime.InferenceSession(network).run(names, feed)
    for found, wanted in zip(session.run(names, feed), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("way", ["tensorrt", "trtexec"])
def test_plan_refuses_a_larger_batch_than_it_was_built_for(network, feed, way, request):
    request.getfixturevalue(way)
    session = build(network, find_toolkit(), max_batch_size=2)
    large = {name: np.repeat(array, 11, axis=0) for name, array in feed.items()}
    with pytest.raises(PlanError, match="no profile of the plan allows a batch of 33; the largest is 2"):
        session.run(["features"], large)


def test_package_runs_a_batch_in_the_profile_that_allows_it(network, feed, tensorrt):
    session = build(network, find_toolkit())
    session.run(["features"], feed)
    session.run(["features"], {name: array[:1] for name, array in feed.items()})
    assert session.context.profiles == [1, 0]


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("create_execution_context", "make the plan ready to run"),
        ("set_optimization_profile_async", "use profile 1"),
        ("set_input_shape", r"take pixels of shape \(3, 4, 3\)"),
        ("set_tensor_address", "use the memory of pixels"),
        ("execute_async_v3", "run a batch of 3"),
    ],
)
def test_package_reports_what_a_plan_refuses(network, feed, tensorrt, refused, message):
    toolkit = find_toolkit()
    tensorrt.refused = refused
    with pytest.raises(PlanError, match=rf"^TensorRT cannot {message}: {refused} was refused$"):
        build(network, toolkit).run(["features"], feed)


def test_parity_feeds_run_every_profile(network, feed, tensorrt):
    one = {name: array[:1] for name, array in feed.items()}
    feeds = with_largest_profile({"one": one, "three": feed}, 16)
    session = build(network, find_toolkit())
    for batch in feeds.values():
        session.run(["features"], batch)
    assert session.context.profiles == [0, 1, 2]


def test_batch_for_the_largest_profile_holds_whole_rows_of_all_feeds(feed):
    feeds = {"last": {name: array[2:] for name, array in feed.items()}, "first": {n: a[:2] for n, a in feed.items()}}
    added = with_largest_profile(feeds, 16)["in turn"]
    for name, array in feed.items():
        np.testing.assert_array_equal(added[name], array[[2, 0, 1] * 3])


def test_trtexec_is_asked_for_the_same_build_as_the_package(network, trtexec):
    build(network, find_toolkit())
    (arguments,) = [json.loads(line) for line in trtexec.read_text().splitlines()]
    options = dict(arguments)
    assert {"stronglyTyped", "noTF32", "skipInference"} <= options.keys()
    assert options["memPoolSize"] == "workspace:4096M"
    assert options["timingCacheFile"] == str(network.with_name("timing.cache"))
    profiles = [pair for pair in arguments if pair[0] == "profile" or pair[0].endswith("Shapes")]
    assert profiles == [
        *(["profile", "0"], ["minShapes", "pixels:1x4x3,ids:1x3"]),
        *(["optShapes", "pixels:1x4x3,ids:1x3"], ["maxShapes", "pixels:1x4x3,ids:1x3"]),
        *(["profile", "1"], ["minShapes", "pixels:1x4x3,ids:1x3"]),
        *(["optShapes", "pixels:8x4x3,ids:8x3"], ["maxShapes", "pixels:8x4x3,ids:8x3"]),
        *(["profile", "2"], ["minShapes", "pixels:1x4x3,ids:1x3"]),
        *(["optShapes", "pixels:16x4x3,ids:16x3"], ["maxShapes", "pixels:16x4x3,ids:16x3"]),
    ]


def test_trtexec_runs_a_batch_in_the_profile_that_allows_it(network, feed, trtexec):
    build(network, find_toolkit()).run(["features"], feed)
    options = dict(json.loads(trtexec.read_text().splitlines()[-1]))
    assert (options["useProfile"], options["shapes"]) == ("1", "pixels:3x4x3,ids:3x3")


def test_trtexec_outputs_that_are_no_numbers_reach_the_parity_check(tmp_path, trtexec):
    path = tmp_path / "model.onnx"
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[n,3] inf) => (float[n,3] nan) { nan = Sqrt(inf) }'
    onnx.save(parser.parse_model(text), path)
    (found,) = build(path, find_toolkit()).run(["nan"], {"inf": np.array([[4, -1, np.inf]], np.float32)})
    np.testing.assert_array_equal(found, np.array([[2, np.nan, np.inf]], np.float32))


def test_trtexec_failure_is_one_line_with_its_errors_and_leaves_no_plan(network, trtexec):
    (network.parent / "refuse").touch()
    with pytest.raises(PlanError, match=r"^trtexec failed: Error\[2\]: no kernel for node 7; Engine could not be c"):
        build(network, find_toolkit())
    assert not list(network.parent.glob("model.plan*"))


def test_trtexec_failure_without_a_reason_says_so(tmp_path):
    with pytest.raises(PlanError, match="trtexec failed: exit status 1, without a reason"):
        Trtexec("false")


def test_unsupported_graph_is_refused_before_tensorrt_sees_it(network, tensorrt):
    model = onnx.load(network)
    model.graph.node[0].op_type = "Hardmax"
    onnx.save(model, network)
    with pytest.raises(UnsupportedByTensorRT, match="Hardmax values is not a supported operator"):
        build(network, find_toolkit())
    assert tensorrt.network_flags is None


@pytest.mark.parametrize(("dims", "shape"), [("[4,4,3]", "fixed batch"), ("[n,m,3]", "two dynamic axes")])
def test_other_dynamic_axes_than_the_batch_are_refused(network, tensorrt, dims, shape):
    onnx.save(parser.parse_model(ENCODER.replace("[n,4,3]", dims).replace("float[n,4]", "float[n,k]")), network)
    with pytest.raises(PlanError, match="input pixels must have the batch as its one dynamic axis, in front"):
        build(network, find_toolkit())
