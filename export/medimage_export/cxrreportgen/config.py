"""Typed configuration of CXRReportGen / MAIRA-2, read from the files of a Hugging Face folder.

What MAIRA-2 publishes is in `config.json`, `preprocessor_config.json`, `generation_config.json` and
`chat_template.json`. What is not public of CXRReportGen can be said in one more file, `cxrreportgen.json`:

    {"vision": {field of VisionConfig: value, …}, "decoder": {field of DecoderConfig: value, …},
     "projector_layers": n, "prompt": {field of PromptStrings: value, …}, "tokens": {field of TokenStrings: value, …},
     "eos_token_ids": […]}

It wins over every other file. Defaults are MAIRA-2's, revision 795a2b1 of huggingface.co/microsoft/maira-2, but for
`text_config`, where a key that is absent has the default of transformers, as transformers itself writes and reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import jinja2.sandbox
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig

from medimage_export.errors import ConfigError

T = TypeVar("T")
SETTINGS_FILE = "cxrreportgen.json"
# Tokens that a prompt and its answer may have in all: three images of 1369 tokens with long texts and 450 new ones.
# Beyond it rope tables would only take memory (Phi-3-mini-128k allows 131,072).
MAX_LENGTH = 8192


@dataclass(frozen=True)
class VisionConfig:
    """Image encoder: DINOv2-shaped ViT; defaults are RAD-DINO-MAIRA-2's."""

    image_size: int = 518  # pixels: shortest edge after the resize, both edges after the crop
    patch_size: int = 14
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-6
    layer_scale: bool = True
    feature_layer: int = -1  # index into [embeddings, block 1, block 2, …], as LlavaConfig's vision_feature_layer
    final_norm: bool = True  # LayerNorm on the features; LLaVA-Rad's use of BiomedCLIP-CXR-518 has none
    drop_cls: bool = True  # vision_feature_select_strategy "default"; "full" keeps the CLS token
    image_mean: tuple[float, ...] = (0.5307, 0.5307, 0.5307)  # of pixels scaled to 0..1
    image_std: tuple[float, ...] = (0.2583, 0.2583, 0.2583)
    stretch: bool = True  # min-max stretch of the grey values before the resize

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_image(self) -> int:
        return self.grid**2 + (not self.drop_cls)

    @property
    def blocks_used(self) -> int:
        """Blocks that the features have passed."""
        return self.feature_layer if self.feature_layer >= 0 else self.num_layers + 1 + self.feature_layer


@dataclass(frozen=True)
class DecoderConfig:
    """Text decoder; defaults are MAIRA-2's (Vicuna-7B shape with linear RoPE scaling)."""

    model_type: Literal["llama", "phi3"] = "llama"
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    vocab_size: int = 32207
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4096
    rope_theta: float = 10_000.0
    rope_type: Literal["default", "linear", "longrope"] = "linear"
    rope_factor: float = 1.5  # of linear scaling: positions are divided by it
    short_factor: tuple[float, ...] = ()  # of longrope, one per pair of head dimensions
    long_factor: tuple[float, ...] = ()
    original_max_position_embeddings: int = 4096  # of longrope: a longer sequence takes the long factors
    sliding_window: int | None = None  # tokens that a token attends to, itself included

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_length(self) -> int:
        """Tokens that a prompt and its answer may have in all."""
        stretch = self.rope_factor if self.rope_type == "linear" else 1.0
        return min(int(self.max_position_embeddings * stretch), MAX_LENGTH)


@dataclass(frozen=True)
class PromptStrings:
    """MAIRA-2's prompt, `processing_maira2.py` and `chat_template.json`, to the character."""

    template: str = (
        "You are an expert radiology assistant tasked with interpreting a chest X-ray study.  "
        "USER:  {content}  ASSISTANT: "
    )
    frontal_only: str = "Given the current frontal image only"
    frontal: str = "Given the current frontal image"
    lateral: str = " and the current lateral image"
    lateral_with_prior: str = " the current lateral image"
    prior: str = " and the prior frontal image"
    prior_report: str = " PRIOR_REPORT: {prior_report}"
    describe: str = (
        " Provide a structured description of the findings in the radiology study in comparison to the prior frontal "
        "image."
    )
    ground: str = (
        " Each finding should be described as a self-contained plain-text sentence. If the finding is groundable, "
        "locate the finding in the current frontal chest X-ray image, with bounding boxes indicating all locations "
        "where it can be seen in the current frontal image. Otherwise, generate just the ungrounded finding without "
        "bounding boxes."
    )
    sections: str = " INDICATION: {indication} TECHNIQUE: {technique} COMPARISON: {comparison}"
    phrase_before: str = "Given the current frontal image"
    phrase_after: str = (
        " Repeat the following finding as a grounded phrase with bounding boxes indicating all locations where it can "
        "be seen in the given chest X-ray image. Finding: {phrase}"
    )
    missing: str = "N/A"


@dataclass(frozen=True)
class TokenStrings:
    """How the added tokens are written; their ids are looked up in `tokenizer.json`."""

    image: str = "<image>"
    obj_start: str = "<obj>"
    obj_end: str = "</obj>"
    box_start: str = "<box>"
    box_end: str = "</box>"
    x: str = "<x{}>"
    y: str = "<y{}>"


@dataclass(frozen=True)
class CXRReportGenConfig:
    """The whole model, and how it is asked."""

    vision: VisionConfig = VisionConfig()
    projector_layers: int = 4
    decoder: DecoderConfig = DecoderConfig()
    prompt: PromptStrings = PromptStrings()
    tokens: TokenStrings = TokenStrings()
    eos_token_ids: tuple[int, ...] = (2,)


# CXRReportGen by its card ("BiomedCLIP image encoder with a Phi-3-Mini text encoder") and its size: Phi-3-mini-4k,
# ViT-B/14 at 518 and a 4-layer projector; see docs/cxrreportgen.md.
PHI3_MINI = DecoderConfig(
    model_type="phi3",
    hidden_size=3072,
    intermediate_size=8192,
    vocab_size=32218,
    rope_type="default",
    rope_factor=1.0,
    sliding_window=2047,
)


class _Section:
    """One JSON object of a file, read with types; every error names file and key."""

    def __init__(self, path: Path, content: Mapping[str, Any], name: str = "") -> None:
        self.path, self.content, self.name = path, content, name

    @classmethod
    def of(cls, path: Path) -> "_Section":
        """The file's object; an empty one if there is no such file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{path}: not readable as JSON: {exc}") from exc
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected a JSON object")
        return cls(path, content)

    def error(self, key: str, expected: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self.name}{key} is {self.content.get(key)!r}; expected {expected}")

    def section(self, key: str) -> "_Section":
        value = self.get(key, dict, {})
        return _Section(self.path, value, f"{self.name}{key}.")

    def get(self, key: str, kind: type[T], default: T) -> T:
        value = self.content.get(key)
        if value is None:
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(key, kind.__name__)
        return cast(T, value)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = self.content.get(key)
        if values is None:
            return default
        if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
            raise self.error(key, "a list of numbers")
        return tuple(float(value) for value in values)

    def require(self, key: str, *allowed: object) -> None:
        """A key that is absent means the first of `allowed`."""
        if self.content.get(key, allowed[0]) not in allowed:
            raise self.error(key, " or ".join(map(repr, allowed)) + ", the only one that is supported")


def read_config(folder: Path) -> CXRReportGenConfig:
    """Read the configuration of a checkpoint folder.

    Raises:
        ConfigError: a file is missing or not JSON, or a key is mistyped or asks for what is not implemented.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path} is missing")
    model, settings = _Section.of(path), _Section.of(folder / SETTINGS_FILE)
    model.require("projector_hidden_act", "gelu")
    model.require("multimodal_projector_bias", True)
    config = CXRReportGenConfig(
        vision=_changed(_vision(model, _Section.of(folder / "preprocessor_config.json")), settings.section("vision")),
        projector_layers=model.get("projector_n_layers", int, CXRReportGenConfig.projector_layers),
        decoder=_changed(_decoder(model.section("text_config")), settings.section("decoder")),
        prompt=_changed(_prompt(folder / "chat_template.json"), settings.section("prompt")),
        tokens=_changed(TokenStrings(), settings.section("tokens")),
        eos_token_ids=_eos(model.section("text_config"), _Section.of(folder / "generation_config.json")),
    )
    overall = {
        name: settings.content[name] for name in settings.content if name in ("projector_layers", "eos_token_ids")
    }
    if unknown := settings.content.keys() - {"vision", "decoder", "prompt", "tokens", *overall}:
        raise ConfigError(f"{settings.path}: unknown keys {sorted(unknown)}")
    config = _changed(config, _Section(settings.path, overall))
    _check(config, path)
    return config


def _vision(model: _Section, preprocessor: _Section) -> VisionConfig:
    vision, default = model.section("vision_config"), VisionConfig()
    vision.require("model_type", "dinov2")
    vision.require("hidden_act", "gelu")
    vision.require("use_swiglu_ffn", False)
    vision.require("qkv_bias", True)
    model.require("vision_feature_select_strategy", "default", "full")
    return VisionConfig(
        image_size=vision.get("image_size", int, default.image_size),
        patch_size=vision.get("patch_size", int, default.patch_size),
        hidden_size=vision.get("hidden_size", int, default.hidden_size),
        num_layers=vision.get("num_hidden_layers", int, default.num_layers),
        num_heads=vision.get("num_attention_heads", int, default.num_heads),
        mlp_ratio=vision.get("mlp_ratio", int, default.mlp_ratio),
        layer_norm_eps=vision.get("layer_norm_eps", float, default.layer_norm_eps),
        feature_layer=model.get("vision_feature_layer", int, default.feature_layer),
        final_norm=vision.get("apply_layernorm", bool, default.final_norm),
        drop_cls=model.content.get("vision_feature_select_strategy") != "full",
        image_mean=preprocessor.numbers("image_mean", default.image_mean),
        image_std=preprocessor.numbers("image_std", default.image_std),
    )


def _decoder(text: _Section) -> DecoderConfig:
    text.require("model_type", "llama", "phi3")
    for key, value in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        text.require(key, value)
    text.require("tie_word_embeddings", False)
    text.require("partial_rotary_factor", 1.0, None)
    model_type = text.get("model_type", str, "llama")
    # transformers leaves out what is its class's default, which is not always MAIRA-2's
    default: Any = _class_of(model_type)()
    heads = text.get("num_attention_heads", int, default.num_attention_heads)
    # transformers 5 writes rope_parameters; before it were rope_scaling and rope_theta. "su" is longrope's old name.
    rope = text.section("rope_parameters" if text.content.get("rope_parameters") else "rope_scaling")
    rope_type = rope.get("rope_type", str, rope.get("type", str, "default"))
    if rope_type not in ("default", "linear", "longrope", "su"):
        raise rope.error("rope_type", "default, linear or longrope")
    max_positions = text.get("max_position_embeddings", int, default.max_position_embeddings)
    return DecoderConfig(
        model_type=cast(Literal["llama", "phi3"], model_type),
        hidden_size=text.get("hidden_size", int, default.hidden_size),
        intermediate_size=text.get("intermediate_size", int, default.intermediate_size),
        num_layers=text.get("num_hidden_layers", int, default.num_hidden_layers),
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads", int, heads),
        vocab_size=text.get("vocab_size", int, default.vocab_size),
        rms_norm_eps=text.get("rms_norm_eps", float, default.rms_norm_eps),
        max_position_embeddings=max_positions,
        rope_theta=rope.get("rope_theta", float, text.get("rope_theta", float, DecoderConfig.rope_theta)),
        rope_type=cast(Any, "longrope" if rope_type == "su" else rope_type),
        rope_factor=rope.get("factor", float, 1.0),
        short_factor=rope.numbers("short_factor", ()),
        long_factor=rope.numbers("long_factor", ()),
        original_max_position_embeddings=rope.get(
            "original_max_position_embeddings",
            int,
            text.get("original_max_position_embeddings", int, DecoderConfig.original_max_position_embeddings),
        ),
        # Llama has none, whatever its config says
        sliding_window=text.content.get("sliding_window") if model_type == "phi3" else None,
    )


def _class_of(model_type: str) -> type[PreTrainedConfig]:
    return LlamaConfig if model_type == "llama" else Phi3Config


def _prompt(chat_template: Path) -> PromptStrings:
    """The default strings, with the turns of the checkpoint's chat template around them."""
    template = _Section.of(chat_template).get("chat_template", str, "")
    if not template:
        return PromptStrings()
    message = {"role": "user", "content": [{"type": "text", "text": "{content}", "index": None}]}
    try:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        rendered = environment.from_string(template).render(
            messages=[message], add_generation_prompt=True, bos_token="", eos_token=""
        )
    except jinja2.TemplateError as exc:
        raise ConfigError(f"{chat_template}: cannot be rendered: {exc}") from exc
    if rendered.count("{content}") != 1:
        raise ConfigError(
            f"{chat_template}: does not show a text of the user once; set prompt.template in {SETTINGS_FILE}"
        )
    return PromptStrings(template=rendered)


def _eos(text: _Section, generation: _Section) -> tuple[int, ...]:
    default = _class_of(text.get("model_type", str, "llama"))().eos_token_id
    value = generation.content.get("eos_token_id", text.content.get("eos_token_id", default))
    values = value if isinstance(value, list) else [value]
    if not values or any(type(v) is not int for v in values):
        raise generation.error("eos_token_id", "an integer or a list of them")
    return tuple(values)


def _changed(config: T, settings: _Section) -> T:
    """The dataclass with the settings in it; a setting has the type of what it replaces."""
    known = {field.name for field in fields(cast(Any, config))}
    changes: dict[str, Any] = {}
    for key, value in settings.content.items():
        if key not in known:
            raise ConfigError(f"{settings.path}: {settings.name}{key} is unknown; expected one of {sorted(known)}")
        old = getattr(config, key)
        if isinstance(old, tuple):
            numbers = settings.numbers(key, ())
            changes[key] = tuple(int(n) for n in numbers) if key == "eos_token_ids" else numbers
        elif old is None or value is None:  # sliding_window
            changes[key] = value
        else:
            changes[key] = settings.get(key, type(old), old)
    return replace(cast(Any, config), **changes) if changes else config


def _check(config: CXRReportGenConfig, path: Path) -> None:
    """Values that no single key shows to be wrong."""
    vision, decoder = config.vision, config.decoder
    pairs = decoder.head_dim // 2
    window = decoder.sliding_window
    for wrong, message in (
        (config.projector_layers < 1, f"projector_n_layers is {config.projector_layers}; expected 1 or more"),
        (vision.image_size % vision.patch_size, "vision_config.image_size is not a multiple of patch_size"),
        (
            not 0 <= vision.blocks_used <= vision.num_layers,
            f"vision_feature_layer {vision.feature_layer} does not exist",
        ),
        (len(vision.image_mean) != 3 or len(vision.image_std) != 3, "image_mean and image_std need three values each"),
        (decoder.hidden_size % decoder.num_heads, "text_config.hidden_size is not a multiple of num_attention_heads"),
        (decoder.num_heads % decoder.num_kv_heads, "num_attention_heads is not a multiple of num_key_value_heads"),
        (window is not None and (type(window) is not int or window < 1), f"sliding_window is {window!r}"),
        (
            decoder.rope_type == "longrope" and not len(decoder.short_factor) == len(decoder.long_factor) == pairs,
            f"longrope needs {pairs} short and {pairs} long factors",
        ),
    ):
        if wrong:
            raise ConfigError(f"{path}: {message}")
