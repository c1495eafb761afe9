"""A serving graph as an ONNX file."""

import logging
import warnings
from pathlib import Path
from typing import ClassVar

import onnx
import torch
from torch import Tensor, nn

OPSET = 20  # 17 brought LayerNormalization, 20 Gelu: both then stay one node for every runtime to fuse


class Graph(nn.Module):
    """What Triton serves of a model: the batch is the first axis of every tensor."""

    INPUTS: ClassVar[tuple[str, ...]]
    OUTPUTS: ClassVar[tuple[str, ...]]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: two, because a batch of one would be traced as a constant."""
        raise NotImplementedError


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
