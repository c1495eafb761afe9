"""A serving graph as an ONNX file."""

import logging
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

OPSET = 20  # 17 brought LayerNormalization, 20 Gelu: both then stay one node for every runtime to fuse


class Graph(nn.Module, ABC):
    """What Triton serves of a model: the batch is the first axis of every tensor."""

    INPUTS: ClassVar[tuple[str, ...]]
    OUTPUTS: ClassVar[tuple[str, ...]]

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: two, because a batch of one would be traced as a constant."""


def to_onnx(graph: Graph, path: Path) -> None:
    """Write `path`, with the weights beside it in `<path>.data`; the batch is the one dynamic axis."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing that a user could act on
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph,
            graph.example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.INPUTS),
            output_names=list(graph.OUTPUTS),
            dynamic_shapes={name: {0: batch} for name in graph.INPUTS},
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces of the export: larger than the graph, with this machine's paths
    program.save(path, external_data=True)
    onnx.checker.check_model(path)


def hide_output_shape(path: Path) -> None:
    """Make every dim of the graph's one output dynamic.

    One committed config serves checkpoints of any size with -1, and Triton's onnxruntime backend takes -1 in a config
    only where the graph has it. So the output gets the shape that it has anyway from a sum with 0 * batch, which no
    shape inference sees through.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    (output,) = graph.output
    known = f"{output.name}.of_known_shape"
    for node in graph.node:
        node.output[:] = [known if name == output.name else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "zero"))
    graph.node.extend(
        [
            helper.make_node("Shape", [known], ["known_shape"]),
            helper.make_node("Shape", [graph.input[0].name], ["batch_size"], start=0, end=1),
            helper.make_node("Mul", ["batch_size", "zero"], ["nothing"]),
            helper.make_node("Add", ["known_shape", "nothing"], ["shape"]),
            helper.make_node("Reshape", [known, "shape"], [output.name]),
        ]
    )
    dims = output.type.tensor_type.shape.dim
    for axis in range(1, len(dims)):
        dims[axis].Clear()
        dims[axis].dim_param = f"{output.name}.{axis}"
    onnx.save(model, path)  # the weights stay in their file
    onnx.checker.check_model(path)
