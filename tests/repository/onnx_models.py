"""ONNX models small enough to work out by hand."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 100
OPSET = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 9}


def write_text_encoder(path: Path, *, length: int = 77, features: int = 1024) -> None:
    """text_features = the sum of the attended ids, `features` times over; scaling_factor = how many are attended."""
    constants = {
        "values": np.arange(VOCABULARY, dtype=np.float32),
        "ones": np.ones((1, features), np.float32),
        "last_axis": np.array([1]),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["values", "input_ids"], ["id_values"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["id_values", "mask"], ["attended"]),
            helper.make_node("ReduceSum", ["attended", "last_axis"], ["sum"]),
            helper.make_node("MatMul", ["sum", "ones"], ["text_features"]),
            helper.make_node("ReduceSum", ["mask", "last_axis"], ["scaling_factor"]),
        ],
        "text_encoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", length]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["rows", length]),
        ],
        [
            helper.make_tensor_value_info("text_features", TensorProto.FLOAT, ["rows", features]),
            helper.make_tensor_value_info("scaling_factor", TensorProto.FLOAT, ["rows", 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, **OPSET)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_identity(path: Path, numpy_type: type) -> None:
    """y = x, both of shape (any, any) and of one type; object stands for text."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type))
    x, y = (helper.make_tensor_value_info(name, element, ["rows", "length"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    onnx.save(helper.make_model(graph, **OPSET), path)


def write_integer_product(path: Path, weights: np.ndarray) -> None:
    """y = x @ weights, of x uint8 (any, K) and weights int8 (K, N): onnxruntime's MatMulIntegerToFloat, scales 1."""
    depth, width = weights.shape
    constants = {"weights": weights, "one": np.float32(1), "zero": np.uint8(0), "weight_zero": np.int8(0)}
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulIntegerToFloat",
                ["x", "weights", "one", "one", "zero", "weight_zero"],
                ["y"],
                domain="com.microsoft",
            )
        ],
        "integer_product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, **OPSET), path)
