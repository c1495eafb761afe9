"""Will TensorRT's ONNX parser take a graph? Answered from its documentation, without TensorRT.

Source: onnx-tensorrt, docs/operators.md of TensorRT 10.15, opset 9 to 24 (TensorRT 11: to 25). Its rows of recurrent,
quantised and other operators that have restrictions of their own are left out here, so these are refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, defs, numpy_helper

from medimage_export.errors import UnsupportedByTensorRT

OPSETS = range(9, 25)

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
ANY = NUMBERS | {TensorProto.BOOL}

OF_BOOL = "And Not Or Xor"
OF_FLOATS = """
    BatchNormalization Ceil Clip Conv ConvTranspose Cos Einsum Erf Exp Floor Gemm GlobalAveragePool GlobalMaxPool
    GroupNormalization HardSigmoid HardSwish InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax
    LpNormalization MatMul PRelu RMSNormalization Reciprocal Round Sigmoid Sin Softmax Softplus Softsign Sqrt Tanh
"""
OF_NUMBERS = """
    Abs Add ArgMax ArgMin Div Equal Gelu Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Pad Pow Range
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Sign Sub Sum
"""
OF_ANY = """
    Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity Reshape Shape Size Slice
    Split Squeeze Tile Transpose Trilu Unsqueeze Where
"""
SUPPORTED_TYPES: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(OF_BOOL.split(), frozenset({TensorProto.BOOL})),
    **dict.fromkeys(OF_FLOATS.split(), FLOATS),
    **dict.fromkeys(OF_NUMBERS.split(), NUMBERS),
    **dict.fromkeys(OF_ANY.split(), ANY),
    "Cast": ANY | {TensorProto.UINT8},  # which is otherwise "only supported as network input or output tensor types"
}
# Of which type variables of the ONNX schema the documented types are, where not of the first input.
DOCUMENTED_VARIABLES = {"Cast": "T1 T2", "ConstantOfShape": "T2", "Where": "T"}
# ONNX lets the exponent have a type of its own, TensorRT's elementwise layer does not.
SAME_VARIABLE = {("Pow", "T1"): "T"}
# Which inputs of an operator are a shape, or decide one. TensorRT computes these on the host, before a run.
SHAPE_INPUTS: Mapping[str, Sequence[int]] = {
    **{"Reshape": [1], "Expand": [1], "Tile": [1], "Unsqueeze": [1], "Squeeze": [1], "Split": [1]},
    **{"Slice": [1, 2, 3, 4], "Pad": [1, 3], "ConstantOfShape": [0], "Range": [0, 1, 2]},
}


def check_operators(model: onnx.ModelProto, folder: Path) -> None:
    """Raise unless the parser's documentation supports the graph, strongly typed as it stands.

    Checked: operators, their opset and domain, and the types that each takes; that inputs of one type variable (both
    sides of an Add, scale and bias of a LayerNormalization) have one type, because a strongly typed network converts
    nothing; uint8 at the graph's inputs and outputs alone; no float64; no constant that is infinite or NaN, such as a
    mask of -inf, or a weight beyond float16; and no shape that depends on the values of an input, which Triton could
    not batch.

    `model` may be loaded without its external data, which is then read from `folder`, one tensor at a time.

    Raises:
        UnsupportedByTensorRT: names every fault.
    """
    faults = [*_opset_faults(model), *_constant_faults(model, folder)]
    types = _tensor_types(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 0)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        faults += [f"{_named(node)} {fault}" for fault in _node_faults(node, opset, types, constants)]
    faults += _shape_faults(model.graph)
    if not faults:  # a fault hides types downstream from inference
        faults = [f"{name} has no type" for node in model.graph.node for name in node.output if name not in types]
    if faults:
        raise UnsupportedByTensorRT("TensorRT cannot take this graph: " + "; ".join(faults))


def _opset_faults(model: onnx.ModelProto) -> Iterator[str]:
    for entry in model.opset_import:
        if entry.domain == "" and entry.version not in OPSETS:
            yield f"opset {entry.version} is not one of {OPSETS.start} to {OPSETS.stop - 1}"


def _constant_faults(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    for tensor in model.graph.initializer:
        if not _is_finite(tensor, folder):
            yield f"constant {tensor.name} is not finite everywhere"
    for node in model.graph.node:
        for attribute in node.attribute:
            tensor_is_finite = not attribute.HasField("t") or _is_finite(attribute.t, folder)
            if not tensor_is_finite or not np.isfinite([attribute.f, *attribute.floats]).all():
                yield f"{_named(node)} has a {attribute.name} that is not finite everywhere"


def _is_finite(tensor: TensorProto, folder: Path) -> bool:
    if tensor.data_type not in (*FLOATS, TensorProto.DOUBLE):
        return True
    copy = TensorProto()
    copy.CopyFrom(tensor)  # to_array would leave external data in the model
    return bool(np.isfinite(numpy_helper.to_array(copy, str(folder)).astype(np.float64)).all())


def _tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type by tensor, as far as inference gets."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {name: type_ for name, type_ in found.items() if type_} | {t.name: t.data_type for t in graph.initializer}


def _node_faults(node: NodeProto, opset: int, types: Mapping[str, int], constants: set[str]) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"is of {node.domain}, not of ai.onnx"
    elif node.op_type not in SUPPORTED_TYPES:
        yield "is not a supported operator"
    elif not defs.has(node.op_type, opset):
        yield f"does not exist in opset {opset}"
    else:
        yield from _type_faults(node, defs.get_schema(node.op_type, opset), types)
        if node.op_type == "LayerNormalization" and any(node.output[1:]):
            yield "has other outputs than Y"
        if node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in constants | {""}:
            yield "has axes that are no constant"


def _type_faults(node: NodeProto, schema: defs.OpSchema, types: Mapping[str, int]) -> Iterator[str]:
    found: dict[str, set[int]] = {}  # by type variable
    for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for index, name in enumerate(names):
            if name in types:
                variable = formals[min(index, len(formals) - 1)].type_str  # the last may stand for any number
                found.setdefault(SAME_VARIABLE.get((node.op_type, variable), variable), set()).add(types[name])
    for together in found.values():
        if len(together) > 1:
            yield f"mixes {_type_names(together)}, which strong typing does not convert"
    documented = DOCUMENTED_VARIABLES.get(node.op_type) or (schema.inputs or schema.outputs)[0].type_str
    seen = set[int]().union(*(found.get(variable, set()) for variable in documented.split()))
    if refused := seen - SUPPORTED_TYPES[node.op_type]:
        yield f"does not take {_type_names(refused)}"


def _shape_faults(graph: onnx.GraphProto) -> Iterator[str]:
    computed = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for index in SHAPE_INPUTS.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in computed:
                yield f"{_named(node)} gives a shape that depends on the values of an input"
        if node.op_type not in ("Shape", "Size") and not computed.isdisjoint(node.input):
            computed.update(node.output)


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def _type_names(types: set[int]) -> str:
    return " and ".join(sorted(TensorProto.DataType.Name(type_).lower() for type_ in types))
