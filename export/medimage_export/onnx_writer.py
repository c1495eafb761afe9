"""An ONNX graph written node by node, with the weights in a file beside it."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
from onnx import TensorProto, helper

ALIGNMENT = 4096  # of each tensor in the data file, so that it can be memory-mapped
MICROSOFT = "com.microsoft"  # onnxruntime's own operators
MICROSOFT_VERSION = 1


class OnnxWriter:
    """A `with` block in which a graph is written to `path`, and its weights, one at a time, to `<path>.data`.

    Tensors are told by their names, which every method gives back.
    """

    def __init__(self, path: Path, *, opset: int) -> None:
        self.path = path
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._constants: set[str] = set()

    def __enter__(self) -> Self:
        self._data = (self.path.parent / f"{self.path.name}.data").open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._data.close()
        if kind is None:
            domains = {"": self.opset} | {node.domain: MICROSOFT_VERSION for node in self.nodes if node.domain}
            graph = helper.make_graph(self.nodes, self.path.stem, self.inputs, self.outputs, self.initializers)
            opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
            oldest = helper.find_min_ir_version_for(opsets, ignore_unknown=True)  # so that older runtimes read it, too
            onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=oldest), self.path)

    def node(
        self, op: str, inputs: Sequence[str], output: str | Sequence[str], *, domain: str = "", **attributes: object
    ) -> str:
        """Add a node, named after its first output, which is what comes back."""
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        """A small constant, kept in the graph itself; one of a name already there must be the same."""
        if name not in self._constants:
            self._constants.add(name)
            self.initializers.append(onnx.numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, values: np.ndarray) -> str:
        """A weight, kept in the data file in its own type."""
        array = np.ascontiguousarray(values)
        self._data.write(b"\0" * (-self._data.tell() % ALIGNMENT))
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        location = {"location": Path(self._data.name).name, "offset": self._data.tell(), "length": array.nbytes}
        for key, value in location.items():
            tensor.external_data.add(key=key, value=str(value))
        array.tofile(self._data)
        self.initializers.append(tensor)
        return name
