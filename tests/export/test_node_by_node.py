"""Rounding after every node: against numpy, which has float16 arithmetic of its own."""

import weakref

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from medimage_export.node_by_node import NodeByNode

SUMS = """
    <ir_version: 9, opset_import: ["" : 20]>
    sums (float16[n,64] x, float16[64] y) => (float16[n,64] back, float16[n,64] scaled) {
        up = Add(x, y)
        back = Sub(up, y)
        part = Mul(back, x)
        scaled = Div(part, y)
    }
"""


def saved(tmp_path, text):
    path = tmp_path / "model.onnx"
    onnx.save(parser.parse_model(text), path)
    return path


@pytest.fixture
def feed():
    random = np.random.default_rng(0)
    return {
        "x": random.standard_normal((5, 64)).astype(np.float16),
        "y": random.uniform(100, 1000, 64).astype(np.float16),  # has steps of 0.06 to 0.5
    }


def rounded_by_numpy(x, y):
    """float16 arrays, of which numpy rounds each result to float16."""
    back = (x + y) - y
    return back, (back * x) / y


def test_every_result_is_rounded_as_numpy_rounds_it(tmp_path, feed):
    back, scaled = NodeByNode(saved(tmp_path, SUMS)).run(["back", "scaled"], feed)
    assert back.dtype == scaled.dtype == np.float16
    for found, wanted in zip((back, scaled), rounded_by_numpy(**feed), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_session_on_a_cpu_drops_the_roundings_between_nodes(tmp_path, feed):
    """Why the class exists: of a sum that float16 loses, onnxruntime gives nearly all back."""
    session = onnxruntime.InferenceSession(saved(tmp_path, SUMS), providers=["CPUExecutionProvider"])
    found = session.run(["back"], feed)[0]
    lost = abs(rounded_by_numpy(**feed)[0].astype(np.float32) - feed["x"]).max()
    assert lost > 0.1
    assert abs(found.astype(np.float32) - feed["x"]).max() < lost / 100


def test_sums_inside_a_node_are_float32(tmp_path):
    """2,048 ones: float16 cannot count beyond that."""
    signature = "(float16[1,4099] x, float16[4099,1] w) => (float16[1,1] y)"
    text = f'<ir_version: 9, opset_import: ["" : 20]> g {signature} {{ y = MatMul(x, w) }}'
    (found,) = NodeByNode(saved(tmp_path, text)).run(
        ["y"], {"x": np.ones((1, 4099), np.float16), "w": np.ones((4099, 1), np.float16)}
    )
    assert found.item() == np.float16(4099) == 4100


def test_outputs_come_by_name_also_those_that_other_nodes_read(tmp_path, feed):
    graph = NodeByNode(saved(tmp_path, SUMS))
    scaled, back = graph.run(["scaled", "back"], feed)
    np.testing.assert_array_equal(graph.run(["back"], feed)[0], back)
    np.testing.assert_array_equal(graph.run(["up", "scaled"], feed)[1], scaled)


def test_tensor_that_no_node_reads_any_more_is_given_up(tmp_path, monkeypatch):
    """A full-size encoder makes over 1,000 of them."""
    made, alive = [], []

    class Watched(onnxruntime.InferenceSession):
        def run(self, names, feed):
            found = super().run(names, feed)
            made.extend(weakref.ref(array) for array in found)
            alive.append(sum(reference() is not None for reference in made))
            return found

    steps = " ".join(f"t{i + 1} = Neg(t{i})" for i in range(20))
    text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[n] t0) => (float[n] t20) {{ {steps} }}'
    graph = NodeByNode(saved(tmp_path, text))
    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)
    np.testing.assert_array_equal(graph.run(["t20"], {"t0": np.ones(3, np.float32)})[0], [1, 1, 1])
    assert len(made) == 20
    assert max(alive) <= 2  # a node's input and output


def test_float32_graph_gives_the_numbers_of_a_session(tmp_path):
    """With weights in a file beside it, an input left out, two outputs of a node, and an operator of onnxruntime's."""
    text = """
        <ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[n,8] x) => (float[n,4] y, float[n,4] z) {
            product = MatMul(x, weight)
            left, right = Split<axis = 1, num_outputs = 2>(product)
            high = Constant<value = float {0.5}>()
            y = Clip(left, , high)
            z = com.microsoft.QuickGelu(right)
        }
    """
    model = parser.parse_model(text)
    random = np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(random.standard_normal((8, 8)).astype(np.float32), "weight"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    feed = {"x": random.standard_normal((3, 8)).astype(np.float32)}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, wanted in zip(NodeByNode(path).run(["y", "z"], feed), session.run(["y", "z"], feed), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
