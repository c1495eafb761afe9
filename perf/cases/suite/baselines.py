"""What the exports are compared with: the PyTorch model, eager and compiled, and OpenVINO.

Every call takes arrays in host memory and gives the vectors there, as the exported encoders do: pixels (B, H, W, 3)
uint8, or input_ids and attention_mask (B, T) int64, to unit vectors (B, E) float32.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from medimage_export.errors import OpenVINOMissing
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.openvino_session import load_openvino
from perf.cases.suite.device import Dtype
from perf.cases.suite.rounds import Call

Encode = Callable[..., np.ndarray]


class NotMeasured(Exception):
    """A baseline that this machine cannot run; str() is the reason."""


class ImageEncoder(nn.Module):
    """Pixels to vectors, the model computing in the dtype of its weights."""

    def __init__(self, model: UniCL) -> None:
        super().__init__()
        self.model = model
        self.mean = torch.tensor(model.config.image.image_mean, device=model.logit_scale.device)
        self.std = torch.tensor(model.config.image.image_std, device=model.logit_scale.device)

    def forward(self, pixels: Tensor) -> Tensor:
        pixel_values = (pixels.float() / 255 - self.mean) / self.std
        return self.model.encode_image(pixel_values.permute(0, 3, 1, 2).to(self.model.logit_scale.dtype)).float()


class TextEncoder(nn.Module):
    """Token ids to vectors, the model computing in the dtype of its weights."""

    def __init__(self, model: UniCL) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask).float()


def in_dtype(model: UniCL, dtype: Dtype, device: str) -> UniCL:
    """The model's weights in that dtype on that device; the model itself where they are so already."""
    wanted = getattr(torch, dtype)
    if model.logit_scale.dtype == wanted and model.logit_scale.device.type == device:
        return model
    return copy.deepcopy(model).to(device, wanted)


def eager(encoder: nn.Module, device: str) -> Encode:
    """The module as PyTorch runs it, op by op."""

    def encode(*arrays: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return encoder(*(torch.from_numpy(array).to(device) for array in arrays)).cpu().numpy()

    return encode


def compiled(encoder: nn.Module, device: str, inputs: tuple[np.ndarray, ...], mode: str | None = None) -> Encode:
    """The module compiled by TorchInductor for these inputs, with its defaults or in another mode.

    Raises:
        NotMeasured: there is no C++ compiler, or the module cannot be compiled.
    """
    encode = eager(torch.compile(encoder, dynamic=False, mode=mode), device)
    try:
        encode(*inputs)
    except Exception as error:  # of almost any type, from a missing compiler to a bug of the backend
        raise NotMeasured(f"torch.compile failed: {_first_line(error)}") from error
    return encode


def openvino(encoder: nn.Module, inputs: tuple[np.ndarray, ...]) -> Encode:
    """The module as OpenVINO converts it, in fp32: left to itself it takes bf16 on a CPU that has it.

    Raises:
        NotMeasured: OpenVINO is not installed, or cannot convert the module.
    """
    try:
        ov = load_openvino()
    except OpenVINOMissing as error:
        raise NotMeasured("OpenVINO is not installed: `make perf` installs it") from error
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's tracer: about shapes that are fixed here
            converted = ov.convert_model(encoder, example_input=tuple(torch.from_numpy(array) for array in inputs))
        model = ov.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except Exception as error:  # OpenVINO's share no base class, and torch's tracer raises its own
        raise NotMeasured(f"OpenVINO failed: {_first_line(error)}") from error
    return lambda *arrays: model(list(arrays))[0]


def bound(encode: Encode, inputs: tuple[np.ndarray, ...]) -> Call:
    """The call that is timed: nothing left to choose."""
    return lambda: encode(*inputs)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
