"""The layers that both encoders are made of: 8-bit arithmetic against numpy, and the width of matrices."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from medimage_export.medimageinsight.encoder_writer import EncoderWriter
from medimage_export.medimageinsight.quantization import Quantization, Range, quantize_channels
from tests.export.medimageinsight.written import run

WIDE = 1024  # rows of so many float32 lie a page apart


def quantized(values, found):
    """By onnxruntime's QuantizeLinear."""
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]), helper.make_empty_tensor_value_info("y")
    parameters = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [found.scale]),
        helper.make_tensor("zero_point", TensorProto.UINT8, [], [found.zero_point]),
    ]
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], parameters), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.asarray(values, np.float32)})[0]


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (-0.17, 3.9), (-5e-4, 1e-4), (0.0, 6.0), (-7.5, 0.0), (-300.0, 0.01)],
    ids=["even", "after gelu", "tiny", "positive", "negative", "uneven"],
)
def test_range_gives_zero_an_integer_and_each_value_the_nearest(low, high):
    found = Range(low, high)
    step = (high - low) / 255
    assert found.scale == np.float32(step)
    assert abs(-low / step - found.zero_point) <= 0.501
    (zero,) = quantized([0], found)
    assert zero == found.zero_point  # what pads is exact
    values = np.linspace(low, high, 10_001)
    integers = quantized(values, found)
    assert integers.min() <= 1 and integers.max() >= 254  # no step but at the ends is wasted
    restored = (integers.astype(np.float64) - found.zero_point) * step
    # half a step; at the ends as much again, by which the zero was moved to an integer
    assert abs(restored - values).max() <= step * 1.001
    inside = (integers > 0) & (integers < 255)
    assert abs(restored - values)[inside].max() <= step * 0.501


def test_range_of_zeros_alone_gives_zeros():
    assert (Range(0.0, 0.0).scale, Range(0.0, 0.0).zero_point) == (1, 0)


def test_range_cuts_what_lies_outside():
    assert list(quantized([-9.0, 9.0], Range(-1.0, 1.0))) == [0, 255]


def test_channels_are_quantized_each_with_its_own_scale_as_numpy_does_it():
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 7)[:, None]
    integers, scales = quantize_channels(weight)
    wanted = np.abs(weight.numpy()).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(scales.numpy(), wanted)
    np.testing.assert_array_equal(integers.numpy(), np.rint(weight.numpy() / wanted[:, None]))
    assert (integers.dtype, integers.abs().amax(dim=1).tolist()) == (torch.int8, [127] * 7)
    assert (abs(integers * scales[:, None] - weight) <= scales[:, None] * 0.501).all()


@pytest.mark.parametrize("denormals_are_zero", [True, False])
def test_channel_of_zeros_stays_zero(denormals_are_zero):
    torch.set_flush_denormal(denormals_are_zero)
    integers, scales = quantize_channels(torch.zeros(2, 5))
    assert not integers.any()
    assert (scales > 0).all() and torch.isfinite(scales).all()


def write_layers(path, layers, *, precision="fp32", operators="onnxruntime"):
    """x (n, width) -> y (n, 8) by an MLP and a linear layer; names as in `layers`."""
    mlp, last = layers["mlp"], layers["last"]
    with EncoderWriter(path, precision=precision, operators=operators) as graph:
        x = graph.input("x", TensorProto.FLOAT, ["n", mlp[0].in_features])
        x = graph.mlp(x, ("fc1", mlp[0]), graph.gelu, ("fc2", mlp[2]))
        x = graph.linear(graph.activation(x, "last", last.in_features), "last", last.weight, last.bias)
        graph.node("Identity", [x], graph.output("y", TensorProto.FLOAT, ["n", 8]))


def layers_of(width, *, bias):
    """All wide but for the input, which has the given width."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(width, WIDE), nn.GELU(), nn.Linear(WIDE, WIDE)).requires_grad_(False)
    return {"mlp": mlp, "last": nn.Linear(WIDE, 8, bias=bias).requires_grad_(False)}


def widths_multiplied(path):
    """Columns of the left side of each product, which are the rows of a right side that is not transposed."""
    graph = onnx.load(path, load_external_data=False).graph
    dims = {weight.name: weight.dims for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    return [dims[node.input[1]][1 if node.op_type == "Gemm" else 0] for node in products]


def test_rows_that_onnxruntimes_fp32_product_reads_lie_no_whole_pages_apart(tmp_path):
    write_layers(tmp_path / "model.onnx", layers_of(WIDE, bias=True))
    widths = widths_multiplied(tmp_path / "model.onnx")
    assert len(widths) == 3
    assert all(width > WIDE and width * 4 % 4096 for width in widths)


@pytest.mark.parametrize(
    ("operators", "opsets"), [("onnxruntime", {"": 18, "com.microsoft": 1}), ("standard", {"": 20})]
)
def test_opset_is_one_that_onnxruntimes_cuda_provider_pads_in_and_tensorrt_has_a_gelu_in(tmp_path, operators, opsets):
    """tests/test_cuda_placement.py shows it, with a wheel of 1.23 or 1.24: of opset 19 and later Pad is on the CPU."""
    write_layers(tmp_path / "model.onnx", layers_of(48, bias=True), operators=operators)
    found = onnx.load(tmp_path / "model.onnx", load_external_data=False).opset_import
    assert {entry.domain: entry.version for entry in found} == opsets


@pytest.mark.parametrize(("precision", "operators"), [("fp32", "standard"), ("fp16", "onnxruntime")])
def test_no_other_graph_has_spare_columns(tmp_path, precision, operators):
    write_layers(tmp_path / "model.onnx", layers_of(WIDE, bias=True), precision=precision, operators=operators)
    assert widths_multiplied(tmp_path / "model.onnx") == [WIDE] * 3


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("width", [WIDE, 48])
def test_spare_columns_change_no_result(tmp_path, width, bias):
    layers, path = layers_of(width, bias=bias), tmp_path / "model.onnx"
    write_layers(path, layers)
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(1)) * 3
    wanted = layers["last"](layers["mlp"](x)).numpy()
    np.testing.assert_allclose(run(path, {"x": x.numpy()})[0], wanted, rtol=0, atol=2e-6)


def test_int8_product_is_exact_for_integers(tmp_path):
    """Inputs and weights that 8 bits hold exactly, an offset zero, and a bias: the product must be numpy's."""
    random = np.random.default_rng(0)
    x = random.integers(-55, 201, (6, 32)).astype(np.float32)
    weight = random.integers(-127, 128, (5, 32)).astype(np.float32)
    weight[:, 0] = 127
    bias = random.integers(-9, 10, 5).astype(np.float32)
    path = tmp_path / "model.onnx"
    with EncoderWriter(
        path, precision="int8", operators="onnxruntime", integer_layers={"linear": Quantization(Range(-55.0, 200.0))}
    ) as graph:
        quantized = graph.activation(graph.input("x", TensorProto.FLOAT, ["n", 32]), "linear", 32)
        product = graph.linear(quantized, "linear", torch.from_numpy(weight), torch.from_numpy(bias))
        graph.node("Identity", [product], graph.output("y", TensorProto.FLOAT, ["n", 5]))
    np.testing.assert_array_equal(run(path, {"x": x})[0], x @ weight.T + bias)
