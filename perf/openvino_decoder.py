"""The exported report decoder in OpenVINO: the same graph and the same weights, read and computed by another runtime.

OpenVINO keeps the KV cache in states of its own, as it does for models of optimum-intel, so that a step copies nothing.
optimum-intel itself needs transformers before 5.6, and NNCF refuses the graph, so OpenVINO's own int8 is left out.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from medimage_export.cxrreportgen.config import DecoderConfig
from medimage_export.openvino_session import load_openvino

Step = Callable[[np.ndarray, int], np.ndarray]


def openvino_decoder(path: Path, config: DecoderConfig) -> Step:
    """Reads new tokens (S, H) behind a past of so many, and gives the logits (V,) after the last; 0 begins anew.

    Raises:
        OpenVINOMissing: the extra `openvino` is not installed.
    """
    ov = load_openvino()
    transformations = import_module("openvino._offline_transformations")
    model = ov.Core().read_model(path)
    caches = [node.any_name for node in model.inputs if node.any_name.startswith("past_key_values.")]
    # one study: a batch that is not known would leave the states without a shape to begin with
    cache = [1, config.num_kv_heads, -1, config.head_dim]
    shapes = {"inputs_embeds": [1, -1, config.hidden_size], "position_ids": [1, -1], "seqlens_k": [1]}
    model.reshape({name: ov.PartialShape(shape) for name, shape in (shapes | dict.fromkeys(caches, cache)).items()})
    states = {name: name.replace("past_key_values", "present") for name in caches}
    transformations.apply_make_stateful_transformation(model, states)
    request = ov.Core().compile_model(model, "CPU").create_infer_request()

    def step(embeds: np.ndarray, past: int) -> np.ndarray:
        if not past:
            request.reset_state()
        total = past + len(embeds)
        outputs = request.infer(
            {
                "inputs_embeds": embeds[None],
                "position_ids": np.arange(past, total)[None],
                "seqlens_k": np.array([total - 1], np.int32),
                "total_sequence_length": np.array(total, np.int32),
            }
        )
        return np.array(outputs["logits"][0])

    return step
