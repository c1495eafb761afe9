"""A head as an ONNX graph: image_features (B, d) -> scores (B, c) and labels (B, c).

The labels travel with the scores, so that a caller needs nothing else to read them. All is float32, of ONNX's own
operators.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto

from medimage_export.onnx_writer import OnnxWriter

OPSET = 20  # brought Gelu, one node
INPUT, SCORES, LABELS = "image_features", "scores", "labels"
LAYER_NORM_EPS = 1e-5

Tensors = Mapping[str, np.ndarray]


class HeadWriter(OnnxWriter):
    def product(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        """(B, in) -> (B, out); weight (out, in)."""
        inputs = [x, self.weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        return self.node("Gemm", inputs, f"{name}/out", transB=1)

    def layer(self, x: str, name: str, tensors: Tensors) -> str:
        """A linear layer, or a convolution of width 3 on a length of 1, of which the middle tap alone sees data."""
        weight = tensors[f"{name}.weight"]
        return self.product(x, name, weight[:, :, 1] if weight.ndim == 3 else weight, tensors[f"{name}.bias"])

    def gelu(self, x: str) -> str:
        return self.node("Gelu", [x], f"{x}/gelu")

    def adapter(self, x: str, tensors: Tensors) -> str:
        x = self.layer(self.gelu(self.layer(x, "vision_embd.0", tensors)), "vision_embd.2", tensors)
        scale, bias = (
            self.constant(f"vision_embd.3.{name}", tensors[f"vision_embd.3.{name}"]) for name in ("weight", "bias")
        )
        x = self.node("LayerNormalization", [x, scale, bias], "vision_embd.3", axis=-1, epsilon=LAYER_NORM_EPS)
        x = self.layer(self.gelu(self.layer(x, "retrieval_conv.0", tensors)), "retrieval_conv.2", tensors)
        return self.layer(x, "prediction_head.0", tensors)

    def zero_shot(self, x: str, tensors: Tensors) -> str:
        cosines = self.product(x, "label_features", tensors["label_features"])
        return self.node("Mul", [cosines, self.constant("scale", np.exp(tensors["scaling_factor"]))], "logits")

    def nearest(self, x: str, tensors: Tensors, *, multilabel: bool) -> None:
        cosines = self.product(x, "reference", tensors["reference"])
        k = self.constant("k", tensors["k"])
        self.node("TopK", [cosines, k], ["nearest_cosines", "nearest"], axis=1)
        votes = self.node("Gather", [self.weight("votes", tensors["votes"]), "nearest"], "votes_of_nearest", axis=0)
        axis = self.constant("axis", np.array([1]))
        found = self.node("ReduceSum", [votes, axis], "votes_by_label", keepdims=0)
        total = (
            self.constant("k_float", tensors["k"].astype(np.float32))
            if multilabel
            else self.node("ReduceSum", [found, axis], "votes_in_all", keepdims=1)
        )
        self.node("Div", [found, total], SCORES)

    def label_names(self, labels: Sequence[str], like: str) -> None:
        """The output labels (B, c), for each row of `like`."""
        names = self.constant("names", np.array([labels], object))
        batch = self.node("Shape", [like], "batch_size", start=0, end=1)
        shape = self.node("Concat", [batch, self.constant("n_labels", np.array([len(labels)]))], "labels_shape", axis=0)
        self.node("Expand", [names, shape], self.output(LABELS, TensorProto.STRING, ["batch", len(labels)]))


def write_head_graph(
    path: Path, kind: str, tensors: Tensors, labels: Sequence[str], *, multilabel: bool, width: int
) -> None:
    """Write the graph to `path`, and its weights beside it.

    Args:
        width: d, of the vectors.
    """
    with HeadWriter(path, opset=OPSET) as graph:
        x = graph.input(INPUT, TensorProto.FLOAT, ["batch", width])
        graph.output(SCORES, TensorProto.FLOAT, ["batch", len(labels)])
        graph.label_names(labels, x)
        if kind == "knn":
            graph.nearest(x, tensors, multilabel=multilabel)
            return
        if kind == "mlp":
            logits = graph.adapter(x, tensors)
        elif kind == "linear":
            logits = graph.product(x, "linear", tensors["weight"], tensors["bias"])
        else:
            logits = graph.zero_shot(x, tensors)
        if multilabel:
            graph.node("Sigmoid", [logits], SCORES)
        else:
            graph.node("Softmax", [logits], SCORES, axis=-1)
