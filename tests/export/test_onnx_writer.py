"""Files of the graph writer, read back by onnx, numpy and onnxruntime."""

import mmap

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special
from onnx import TensorProto

from medimage_export.onnx_writer import OnnxWriter
from tests.paths import ROOT

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def written(tmp_path):
    """y = gelu(x @ WEIGHT + 1), gelu by an operator of onnxruntime's, and what nobody reads."""
    path = tmp_path / "graph.onnx"
    with OnnxWriter(path, opset=20) as graph:
        x = graph.input("x", TensorProto.FLOAT, ["n", 4])
        product = graph.node("MatMul", [x, graph.weight("weight", WEIGHT)], "product")
        one = graph.constant("one", np.ones(1, np.float32))
        assert graph.constant("one", np.ones(1, np.float32)) == one
        moved = graph.node("Add", [product, one], "moved")
        assert graph.node("Split", [x], ["first", "second"], axis=1, num_outputs=2) == "first"
        active = graph.node("Gelu", [moved], "active", domain="com.microsoft")
        graph.weight("padding", np.arange(5, dtype=np.int8))
        graph.weight("transposed", WEIGHT.T.astype(np.float16))
        graph.node("Identity", [active], graph.output("y", TensorProto.FLOAT, ["n", 3]))
    return path


def test_graph_runs_with_its_weights_and_passes_onnxs_checks(written):
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    onnx.checker.check_model(written)
    (found,) = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    z = x.astype(np.float64) @ WEIGHT + 1
    wanted = z * 0.5 * (1 + scipy.special.erf(z / np.sqrt(2)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_weights_lie_in_the_data_file_where_they_can_be_mapped_in_their_own_types(written):
    light = onnx.load(written, load_external_data=False)
    external = [tensor for tensor in light.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert [tensor.name for tensor in external] == ["weight", "padding", "transposed"]
    wanted = {"weight": WEIGHT, "padding": np.arange(5, dtype=np.int8), "transposed": WEIGHT.T.astype(np.float16)}
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "graph.onnx.data"
        assert int(place["offset"]) % mmap.ALLOCATIONGRANULARITY == 0
        expected = wanted[tensor.name]
        mapped = np.memmap(
            written.with_name(place["location"]), expected.dtype, "r", int(place["offset"]), expected.shape
        )
        np.testing.assert_array_equal(mapped, expected)
        assert int(place["length"]) == expected.nbytes
    assert len(written.read_bytes()) < 2000


def test_constant_of_the_same_name_is_written_once(written):
    names = [tensor.name for tensor in onnx.load(written).graph.initializer]
    assert names.count("one") == 1


def test_opsets_are_those_that_the_nodes_need(written, tmp_path):
    assert {entry.domain: entry.version for entry in onnx.load(written).opset_import} == {"": 20, "com.microsoft": 1}
    with OnnxWriter(tmp_path / "plain.onnx", opset=23) as graph:
        graph.node("Relu", [graph.input("x", TensorProto.FLOAT, [1])], graph.output("y", TensorProto.FLOAT, [1]))
    assert [(entry.domain, entry.version) for entry in onnx.load(tmp_path / "plain.onnx").opset_import] == [("", 23)]


def test_file_holds_no_path_of_the_machine(written, tmp_path):
    for path in (written, written.with_name("graph.onnx.data")):
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(ROOT).encode() not in path.read_bytes()


def test_graph_that_was_not_finished_is_not_written(tmp_path):
    path = tmp_path / "graph.onnx"
    with pytest.raises(RuntimeError, match="half way"), OnnxWriter(path, opset=20) as graph:
        graph.weight("weight", WEIGHT)
        raise RuntimeError("half way")
    assert not path.exists()
