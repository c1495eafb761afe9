"""Which graphs TensorRT's documentation takes: small ones with one fault each, and the parser's own text."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from medimage_export.errors import UnsupportedByTensorRT
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.tensorrt_operators import check_operators
from tests.paths import PHANTOM_CHECKPOINT


def graph(body, *, signature="(float16[n,4] x) => (float16[n,4] y)", opset=20, domains=""):
    """A model in ONNX's own text syntax."""
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}{domains}]> g {signature} {{ {body} }}')


def test_check_takes_a_strongly_typed_mixed_precision_graph(tmp_path):
    body = """
        sizes = Shape<start=0, end=1>(x)
        three = Constant<value = int64[1] {3}>()
        axis = Constant<value = int64[1] {-1}>()
        wide = Cast<to=10>(pixels)
        shape = Concat<axis=0>(sizes, three)
        weights = Constant<value = float16[3,3] {1, 0, 0, 0, 1, 0, 0, 0, 1}>()
        scale = Constant<value = float[3] {1, 1, 1}>()
        product = MatMul(wide, weights)
        precise = Cast<to=1>(product)
        normal = LayerNormalization<axis=-1>(precise, scale)
        active = Gelu(normal)
        length = ReduceL2(active, axis)
        unit = Div(active, length)
        y = Reshape(unit, shape)
    """
    signature = "(uint8[n,3] pixels, float16[n,2] x) => (float[n,3] y)"
    check_operators(graph(body, signature=signature), tmp_path)


@pytest.mark.parametrize(
    ("body", "signature", "fault"),
    [
        ("y = Hardmax(x)", None, "Hardmax y is not a supported operator"),
        ("y = com.microsoft.FastGelu(x)", None, "FastGelu y is of com.microsoft, not of ai.onnx"),
        (
            "wide = Cast<to=1>(x) sum = Add(x, wide) y = Cast<to=10>(sum)",
            None,
            "Add sum mixes float and float16, which strong typing does not convert",
        ),
        (
            "scale = Constant<value = float[4] {1, 1, 1, 1}>() y = LayerNormalization(x, scale)",
            None,
            "LayerNormalization y mixes float and float16",
        ),
        ("two = Constant<value = float {2}>() y = Pow(x, two)", None, "Pow y mixes float and float16"),
        ("wide = Cast<to=11>(x) y = Cast<to=10>(wide)", None, "Cast wide does not take double"),
        ("r = Relu(x) y = Cast<to=10>(r)", "(double[n,4] x) => (float16[n,4] y)", "Relu r does not take double"),
        (
            "turned = Transpose(x) y = Cast<to=10>(turned)",
            "(uint8[n,4] x) => (float16[4,n] y)",
            "Transpose turned does not take uint8",
        ),
        ("y = Softmax(x)", "(int64[n,4] x) => (int64[n,4] y)", "Softmax y does not take int64"),
        ("axes = Identity(a) y = ReduceSum(x, axes)", "(float16[n,4] x, int64[1] a) => (float16[1,1] y)", "Reduce"),
        (
            "y, mean = LayerNormalization(x, s)",
            "(float16[n,4] x, float16[4] s) => (float16[n,4] y, float[n,1] mean)",
            "LayerNormalization y has other outputs than Y",
        ),
        (
            "longest = ReduceMax<keepdims=0>(lengths) one = Constant<value = int64[1] {1}>() "
            "zero = Constant<value = int64[1] {0}>() end = Reshape(longest, one) y = Slice(x, zero, end, one)",
            "(float16[n,4] x, int64[n] lengths) => (float16[n,m] y)",
            "Slice y gives a shape that depends on the values of an input",
        ),
    ],
    ids=lambda value: value.split()[0] if value and value[0].isupper() else None,
)
def test_check_names_the_fault(tmp_path, body, signature, fault):
    model = graph(body, domains=', "com.microsoft" : 1', **({"signature": signature} if signature else {}))
    with pytest.raises(UnsupportedByTensorRT, match=f"^TensorRT cannot take this graph: .*{fault}"):
        check_operators(model, tmp_path)


@pytest.mark.parametrize(
    "attribute", [{"value_float": -np.inf}, {"value": numpy_helper.from_array(np.float16(-np.inf))}]
)
def test_check_refuses_a_mask_of_minus_infinity(tmp_path, attribute):
    model = graph("mask = Constant<value_float = 1>() m = Cast<to=10>(mask) y = Add(x, m)")
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["mask"], **attribute))
    with pytest.raises(UnsupportedByTensorRT, match=f"Constant mask has a {next(iter(attribute))} that is not finite"):
        check_operators(model, tmp_path)


def test_check_names_every_fault_in_one_line(tmp_path):
    model = graph("a = Hardmax(x) b = Cast<to=11>(x) y = Identity(a)")
    with pytest.raises(UnsupportedByTensorRT, match=r"Hardmax a is not .*; Cast b does not take double$"):
        check_operators(model, tmp_path)


def test_check_refuses_an_operator_that_came_after_the_opset(tmp_path):
    with pytest.raises(UnsupportedByTensorRT, match="Gelu y does not exist in opset 17"):
        check_operators(graph("y = Gelu(x)", opset=17), tmp_path)


def test_check_refuses_an_opset_that_the_parser_does_not_document(tmp_path):
    with pytest.raises(UnsupportedByTensorRT, match="opset 25 is not one of 9 to 24"):
        check_operators(graph("y = Relu(x)", opset=25), tmp_path)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_check_reads_constants_from_external_data_without_loading_them_into_the_model(tmp_path, value):
    weights = np.ones((4, 4), np.float16)
    weights[2, 3] = value
    model = graph("y = MatMul(x, w)")
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    light = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    with pytest.raises(UnsupportedByTensorRT, match="constant w is not finite everywhere"):
        check_operators(light, tmp_path)
    assert not light.graph.initializer[0].raw_data


@pytest.fixture(scope="module")
def phantom():
    return load_model(find_checkpoint(PHANTOM_CHECKPOINT))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("write", [write_image_encoder, write_text_encoder])
def test_encoders_are_graphs_that_tensorrt_takes(phantom, tmp_path, write, precision):
    path = tmp_path / "model.onnx"
    write(phantom, path, precision=precision, operators="standard")
    check_operators(onnx.load(path, load_external_data=False), tmp_path)


@pytest.mark.parametrize("write", [write_image_encoder, write_text_encoder])
def test_encoders_for_onnxruntime_are_none(phantom, tmp_path, write):
    path = tmp_path / "model.onnx"
    write(phantom, path, precision="fp16", operators="onnxruntime")
    with pytest.raises(UnsupportedByTensorRT, match=r"is of com\.microsoft, not of ai\.onnx"):
        check_operators(onnx.load(path, load_external_data=False), tmp_path)
