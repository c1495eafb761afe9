"""Run an ONNX graph one node at a time, so that float16 is rounded as often as on a GPU.

onnxruntime has no float16 arithmetic on a CPU: it computes in float32, and between two nodes it drops the two casts
that would round (https://github.com/NVIDIA/TensorRT/issues/4355). Run alone, a node must give its result in the type
that the graph says. Inside a node sums stay float32, as in the matrix units of a GPU.
"""

from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


class NodeByNode:
    """A graph as `onnxruntime.InferenceSession` would run it, slowly."""

    def __init__(self, path: Path) -> None:
        self._model = onnx.load(path)
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in self._model.graph.initializer}

    def run(self, output_names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of the graph for one batch, in the order of their names."""
        tensors = dict(feed)
        known = ChainMap(tensors, self._weights)
        reads = Counter(name for node in self._model.graph.node for name in node.input)
        for node in self._model.graph.node:
            tensors |= self._run_node(node, {name: known[name] for name in node.input if name})
            for name in node.input:
                reads[name] -= 1
                if not reads[name] and name in tensors and name not in output_names:
                    del tensors[name]  # the last reader is done
        return [tensors[name] for name in output_names]

    def _run_node(self, node: onnx.NodeProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        model = helper.make_model(
            helper.make_graph([node], "node", values, outputs),
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
        )
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), _one_run(), providers=["CPUExecutionProvider"]
        )
        return dict(zip(node.output, session.run(None, dict(inputs)), strict=True))


def _one_run() -> onnxruntime.SessionOptions:
    """For one node and one run, where it takes longest to wait busily for work and to look for nodes to fuse."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
