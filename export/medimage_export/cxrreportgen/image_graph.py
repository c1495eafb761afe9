"""The image encoder as an ONNX graph: a trace of its PyTorch module, since it runs once a study."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from medimage_export.cxrreportgen.image_encoder import ImageEncoder

OPSET = 20  # 17 brought LayerNormalization, 20 Gelu: both then stay one node for every runtime to fuse


def trace_image_encoder(encoder: ImageEncoder, path: Path) -> None:
    """Write `path`, with the weights beside it in `<path>.data`; the batch is the one dynamic axis."""
    size = encoder.config.vision.image_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing that a user could act on
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            encoder,
            (torch.zeros((2, size, size), dtype=torch.uint8),),  # two, because a batch of one would become a constant
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=list(encoder.OUTPUTS),
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces of the export: larger than the graph, with this machine's paths
    program.save(path, external_data=True)
    _hide_output_shape(path)
    onnx.checker.check_model(path)


def _hide_output_shape(path: Path) -> None:
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
