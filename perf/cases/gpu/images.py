"""The image encoder beside PyTorch's ways to run it, and an image's whole path."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from medimage_export.medimageinsight.davit import WindowAttention
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.repository import copy_unexported, write_json
from perf.cases.gpu.setting import Setting
from perf.cases.suite import whole_path as suite_path
from perf.cases.suite.baselines import Encode, ImageEncoder, NotMeasured, bound, compiled, eager, in_dtype
from perf.cases.suite.device import SHORT, runtime_of
from perf.cases.suite.encoders import images
from perf.cases.suite.floor import IMAGE_GFLOP
from perf.cases.suite.rounds import compare
from perf.cases.suite.sessions import session
from perf.servers import MODEL_REPOSITORY

BATCHES = (1, 8, 16, 32)
AUTOTUNE = "max-autotune"


class FusedWindowAttention(WindowAttention):
    """The same by PyTorch's fused attention. That of channels is no case for it: its heads are as wide as an image."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def fused(model: UniCL) -> UniCL:
    """A copy whose windows are attended to by PyTorch's fused kernels."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.__class__ = FusedWindowAttention
    return model


def side_by_side(setting: Setting, batch: int) -> Mapping[str, object]:
    """Eager, channels last, compiled, and ours; fp32 first, with which vectors are compared."""
    encoders = pytorch(setting)
    short, inputs, device = SHORT[setting.dtype], (images(batch),), setting.device.torch
    last = copy.deepcopy(encoders[short]).to(memory_format=torch.channels_last)
    calls = {
        "PyTorch eager fp32": eager(encoders["fp32"], device),
        f"PyTorch SDPA {short}": eager(encoders[short], device),
        f"PyTorch SDPA {short}, channels last": eager(last, device),
        runtime_of(setting.precision): session(repository(setting), "image_encoder", setting.device),
    }
    return timings(setting, calls, {f"torch.compile {short}": None}, encoders[short], inputs)


def autotuned(setting: Setting, batch: int) -> Mapping[str, object]:
    """torch.compile's slowest mode, whose search takes minutes and outlives a run in its cache; and ours beside it."""
    encoders = pytorch(setting)
    short, inputs = SHORT[setting.dtype], (images(batch),)
    calls = {
        "PyTorch eager fp32": eager(encoders["fp32"], setting.device.torch),
        runtime_of(setting.precision): session(repository(setting), "image_encoder", setting.device),
    }
    return timings(setting, calls, {f"torch.compile {short}, {AUTOTUNE}": AUTOTUNE}, encoders[short], inputs)


def timings(
    setting: Setting, calls: dict[str, Encode], modes: Mapping[str, str | None], encoder: ImageEncoder, inputs: tuple
) -> Mapping[str, object]:
    not_measured = {}
    for name, mode in modes.items():
        try:
            if setting.quick:
                raise NotMeasured("compilation takes minutes")
            calls[name] = compiled(encoder, setting.device.torch, inputs, mode=mode)
        except NotMeasured as reason:
            not_measured[name] = str(reason)
    batch = len(inputs[0])
    found = compare({name: bound(call, inputs) for name, call in calls.items()}, setting.device.encoder_rounds)
    return {"batch": batch, "gflop": batch * IMAGE_GFLOP, "runtimes": found, "not_measured": not_measured}


def pytorch(setting: Setting) -> dict[str, ImageEncoder]:
    """By dtype; fp32 as the checkpoint's module has it."""
    model, device = setting.image_model(), setting.device.torch
    return {
        SHORT[setting.dtype]: ImageEncoder(in_dtype(fused(model), setting.dtype, device)).eval(),
        "fp32": ImageEncoder(in_dtype(model, "float32", device)).eval(),
    }


def repository(setting: Setting) -> Path:
    """With the image encoder in the precision of the device; written once."""
    folder = setting.folder / "models"
    if not folder.exists():
        with TemporaryDirectory(dir=setting.folder) as scratch:
            partial_folder = copy_unexported(MODEL_REPOSITORY, Path(scratch) / "models")
            model = setting.image_model()
            path = partial_folder / "image_encoder" / "1" / "model.onnx"
            write_image_encoder(model, path, precision=setting.precision)
            preprocessing = {
                "image_size": list(model.config.image.image_size),
                "interpolation": model.config.image.interpolation,
            }
            write_json(partial_folder / "image_preprocessing" / "1" / "preprocessing.json", preprocessing)
            partial_folder.rename(folder)
    return folder


def whole_path(setting: Setting) -> Mapping[str, object]:
    """From a PNG to its vector, in fp32's pipeline of Pillow and PyTorch, and served."""
    models = repository(setting)
    profile = suite_path.served_profile(models)
    reference = suite_path.reference_pipeline(
        eager(pytorch(setting)[SHORT[setting.dtype]], setting.device.torch), profile
    )
    cases = {}
    with (
        TemporaryDirectory() as scratch,
        suite_path.served({setting.precision: models}, setting.device, Path(scratch)) as (through, embeds),
    ):
        for width, height in suite_path.SIZES[:1] if setting.quick else suite_path.SIZES:
            file = suite_path.film_file(width, height)
            calls = {
                f"PyTorch SDPA {SHORT[setting.dtype]}": reference,
                runtime_of(setting.precision): embeds[setting.precision],
            }
            cases[f"{width} x {height}"] = compare(
                {name: partial(call, file) for name, call in calls.items()}, setting.device.path_rounds
            )
    return {"through": through, "profile": profile, "cases": cases}
