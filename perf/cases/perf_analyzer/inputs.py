"""What perf_analyzer sends: encoded phantoms and captions, or what the steps before an encoder make of them.

An encoder's input comes from the served preprocessing and tokenizer, so it is real for whatever checkpoint is served.
No `validation_data`: perf_analyzer compares bytes, and the last bits of a vector depend on the batch it was in.
"""

from base64 import b64encode
from collections.abc import Iterable

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from medimage_export.phantoms import CAPTIONS, phantom
from perf.pictures import png

Tensors = dict[str, np.ndarray]
STEPS_BEFORE = {  # encoder -> the model that makes its input, and the tensors that it takes and gives
    "image_encoder": ("image_preprocessing", ("image",), ("pixels",)),
    "text_encoder": ("text_tokenizer", ("text",), ("input_ids", "attention_mask")),
}
PUBLIC = {"medimageinsight": ("image", "text"), "medimageinsight_image": ("image",), "medimageinsight_text": ("text",)}


def make_input(model: str, url: str, image_size: int) -> dict[str, list[dict[str, object]]]:
    """What --input-data takes for a model of the server at `url`, with square PNG files of so many pixels."""
    rows = {
        "image": strings(png(phantom(caption, seed=0, size=image_size).image) for caption in CAPTIONS),
        "text": strings(map(str.encode, CAPTIONS)),
    }
    if model in PUBLIC:
        return input_data({name: rows[name] for name in PUBLIC[model]})
    step, inputs, outputs = STEPS_BEFORE[model]
    return input_data(infer(url, step, {name: rows[name] for name in inputs}, outputs))


def input_data(tensors: Tensors) -> dict[str, list[dict[str, object]]]:
    """Rows of tensors, (n, …) each, as n requests of batch 1."""
    rows = len(next(iter(tensors.values())))
    return {"data": [{name: content(values[row]) for name, values in tensors.items()} for row in range(rows)]}


def content(values: np.ndarray) -> dict[str, object]:
    """One tensor without its batch axis, its bytes as they travel: a string has its length before it, in 4 bytes."""
    raw = serialize_byte_tensor(values).item() if values.dtype == object else values.tobytes()
    return {"content": {"b64": b64encode(raw).decode()}, "shape": list(values.shape)}


def infer(url: str, model: str, inputs: Tensors, outputs: Iterable[str]) -> Tensors:
    """What a served model makes of the rows, sent one by one: (n, …) for each of its outputs."""
    scheme, _, address = url.partition("://")
    triton, answers = {"grpc": grpc, "http": http}[scheme], []
    with triton.InferenceServerClient(address) as client:
        for row in range(len(next(iter(inputs.values())))):
            request = []
            for name, values in inputs.items():
                request.append(triton.InferInput(name, [1, *values.shape[1:]], np_to_triton_dtype(values.dtype)))
                request[-1].set_data_from_numpy(values[row : row + 1])
            answers.append(client.infer(model, request))
    return {name: np.concatenate([answer.as_numpy(name) for answer in answers]) for name in outputs}


def strings(values: Iterable[bytes]) -> np.ndarray:
    """(n, 1) of bytes."""
    return np.array(list(values), dtype=object)[:, None]
