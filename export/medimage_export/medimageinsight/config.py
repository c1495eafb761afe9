"""Typed configuration of MedImageInsight, read from the `config.yaml` beside a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medimage_export.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class DaViTConfig:
    """Image encoder; defaults are the published `2024.09.27/config.yaml`, block IMAGE_ENCODER.

    The tuples have one entry per stage.
    """

    image_size: tuple[int, int] = (480, 480)  # (height, width) in pixels
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # RGB, of pixels scaled to 0..1
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"  # of the resize to image_size, in training and serving
    patch_size: tuple[int, ...] = (7, 3, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2, 2)
    patch_padding: tuple[int, ...] = (3, 1, 1, 1)
    patch_prenorm: tuple[bool, ...] = (False, True, True, True)  # LayerNorm before the patch convolution, or after
    embed_dims: tuple[int, ...] = (256, 512, 1024, 2048)
    num_heads: tuple[int, ...] = (8, 16, 32, 64)  # of window attention
    num_groups: tuple[int, ...] = (8, 16, 32, 64)  # of channel attention
    depths: tuple[int, ...] = (1, 1, 9, 1)  # a step is one spatial and one channel block
    window_size: int = 12  # tokens along a side


@dataclass(frozen=True)
class TextConfig:
    """Text encoder; defaults are the published `2024.09.27/config.yaml`, block LANG_ENCODER."""

    context_length: int = 77
    width: int = 1024
    heads: int = 16
    layers: int = 16
    vocab_size: int = 49408  # not in config.yaml: the size of the tokenizer's vocabulary


@dataclass(frozen=True)
class MedImageInsightConfig:
    """Both encoders and the dimension of the space that they share."""

    image: DaViTConfig = DaViTConfig()
    text: TextConfig = TextConfig()
    projection_dim: int = 1024


def read_config(path: Path, *, vocab_size: int) -> MedImageInsightConfig:
    """Read `config.yaml`. Keys that only training uses are ignored.

    Raises:
        ConfigError: not YAML, a key is missing or mistyped, or the model differs from MedImageInsight's in kind.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(exc).split())}") from exc

    def at(*keys: str) -> Any:
        value = document
        for depth, key in enumerate(keys, start=1):
            if not isinstance(value, Mapping) or key not in value:
                raise ConfigError(f"{path}: {'.'.join(keys[:depth])} is missing")
            value = value[key]
        return value

    def scalar(kind: type[T], *keys: str) -> T:
        value = at(*keys)
        if type(value) is not kind:
            raise ConfigError(f"{path}: {'.'.join(keys)} is {value!r}; expected {kind.__name__}")
        return value

    def per(n: int, kind: type[T], *keys: str) -> tuple[T, ...]:
        values = at(*keys)
        if not isinstance(values, list) or len(values) != n or any(type(v) is not kind for v in values):
            raise ConfigError(f"{path}: {'.'.join(keys)} is {values!r}; expected {n} values of {kind.__name__}")
        return tuple(values)

    def require(expected: object, *keys: str) -> None:
        if at(*keys) != expected:
            raise ConfigError(f"{path}: {'.'.join(keys)} is {at(*keys)!r}; only {expected!r} is supported")

    require("davit_v1", "IMAGE_ENCODER", "NAME")
    require(0, "IMAGE_ENCODER", "NUM_CLASSES")
    require("transformer", "LANG_ENCODER", "NAME")
    require("clip", "LANG_ENCODER", "TOKENIZER")
    require(False, "LANG_ENCODER", "AUTOGRESSIVE")
    require(False, "TEST", "CENTER_CROP")
    require("bicubic", "AUG", "INTERPOLATION")

    depths = at("IMAGE_ENCODER", "SPEC", "DEPTHS")
    stages = len(depths) if isinstance(depths, list) else 1  # not a list is refused below, as every other
    height, width = per(2, int, "IMAGE_ENCODER", "IMAGE_SIZE")
    image = DaViTConfig(
        image_size=(height, width),
        image_mean=per(3, float, "IMAGE_ENCODER", "IMAGE_MEAN"),
        image_std=per(3, float, "IMAGE_ENCODER", "IMAGE_STD"),
        patch_size=per(stages, int, "IMAGE_ENCODER", "SPEC", "PATCH_SIZE"),
        patch_stride=per(stages, int, "IMAGE_ENCODER", "SPEC", "PATCH_STRIDE"),
        patch_padding=per(stages, int, "IMAGE_ENCODER", "SPEC", "PATCH_PADDING"),
        patch_prenorm=per(stages, bool, "IMAGE_ENCODER", "SPEC", "PATCH_PRENORM"),
        embed_dims=per(stages, int, "IMAGE_ENCODER", "SPEC", "DIM_EMBED"),
        num_heads=per(stages, int, "IMAGE_ENCODER", "SPEC", "NUM_HEADS"),
        num_groups=per(stages, int, "IMAGE_ENCODER", "SPEC", "NUM_GROUPS"),
        depths=per(stages, int, "IMAGE_ENCODER", "SPEC", "DEPTHS"),
        window_size=scalar(int, "IMAGE_ENCODER", "SPEC", "WINDOW_SIZE"),
    )
    text = TextConfig(
        context_length=scalar(int, "LANG_ENCODER", "CONTEXT_LENGTH"),
        width=scalar(int, "LANG_ENCODER", "WIDTH"),
        heads=scalar(int, "LANG_ENCODER", "HEADS"),
        layers=scalar(int, "LANG_ENCODER", "LAYERS"),
        vocab_size=vocab_size,
    )
    return MedImageInsightConfig(image, text, projection_dim=scalar(int, "UNICL_MODEL", "DIM_PROJECTION"))
