"""Strict, streamed reading of a CXRReportGen / MAIRA-2 checkpoint folder.

Published layout of MAIRA-2 (huggingface.co/microsoft/maira-2):

    config.json  preprocessor_config.json  generation_config.json  chat_template.json  tokenizer.json
    model.safetensors.index.json  model-0000n-of-0000m.safetensors       522 tensors

Or one `model.safetensors`. An MLflow package that holds such a folder is searched for it. Tensors are named as
transformers 4.51 wrote them; three other namings are translated, see `rename_key`. No tensor is in memory before it is
asked for.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from medimage_export.cxrreportgen.config import CXRReportGenConfig, DecoderConfig, read_config
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.errors import CheckpointError
from medimage_export.random_weights import random_tensor
from medimage_export.state_dict import check_finite, check_shapes

BLOCK_BYTES = 2**20
DECODER = "language_model."  # prefix of the decoder's tensors, before transformers' own names
UNUSED = {"vision_tower.embeddings.mask_token"}  # published, and of use in training alone

# transformers 5 -> 4.51, and the timm trunk of BiomedCLIP-CXR-518 -> transformers' Dinov2; applied in this order.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(?=vision_tower\.|multi_modal_projector\.)", ""),
        (r"^(?:module\.)?(?:vision_tower\.|visual\.)+trunk\.", "trunk."),
        (r"^trunk\.cls_token$", "vision_tower.embeddings.cls_token"),
        (r"^trunk\.pos_embed$", "vision_tower.embeddings.position_embeddings"),
        (r"^trunk\.patch_embed\.proj\.", "vision_tower.embeddings.patch_embeddings.projection."),
        (r"^trunk\.norm\.", "vision_tower.layernorm."),
        (r"^trunk\.blocks\.", "vision_tower.encoder.layer."),
        (r"^(vision_tower\.encoder\.layer\.\d+)\.attn\.proj\.", r"\1.attention.output.dense."),
        (r"^(vision_tower\.encoder\.layer\.\d+)\.ls([12])\.gamma$", r"\1.layer_scale\2.lambda1"),
    )
)
FUSED_QKV = re.compile(r"^(vision_tower\.encoder\.layer\.\d+\.)attn\.qkv\.(weight|bias)$")  # of timm; rows q, k, v


class Tensors(Protocol):
    """Tensors by their published (4.51) names, each read when it is asked for."""

    shapes: Mapping[str, torch.Size]

    def read(self, name: str) -> Tensor:
        """The tensor in the type that the checkpoint has it in."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: all of `key`, or the third of its rows with that number."""

    file: Path
    key: str
    third: int | None = None


class CheckpointTensors:
    """Tensors of the safetensors files of a folder.

    Raises:
        CheckpointError: no files, one is damaged or missing, or two tensors have the same published name.
    """

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, StoredTensor] = {}
        self.shapes: dict[str, torch.Size] = {}
        for path in _weight_files(folder):
            with _opened(path) as file:
                for key in file.keys():  # noqa: SIM118  # a safetensors file, not a dict
                    self._add(path, key, torch.Size(file.get_slice(key).get_shape()))

    def _add(self, path: Path, key: str, shape: torch.Size) -> None:
        name = rename_key(key)
        fused = FUSED_QKV.match(name)
        if fused is None:
            parts = {name: (StoredTensor(path, key), shape)}
        else:
            rows = torch.Size((shape[0] // 3, *shape[1:]))
            parts = {
                f"{fused[1]}attention.attention.{part}.{fused[2]}": (StoredTensor(path, key, third), rows)
                for third, part in enumerate(("query", "key", "value"))
            }
        for part, (entry, part_shape) in parts.items():
            if part in self._entries:
                raise CheckpointError(f"{path.name}: {key} and {self._entries[part].key} are both {part}")
            self._entries[part], self.shapes[part] = entry, part_shape

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        # Opened anew and copied out: the pages of a file that stays mapped would count as this process's memory.
        with _opened(entry.file) as file:
            tensor = file.get_tensor(entry.key)
            return (tensor if entry.third is None else tensor.chunk(3)[entry.third]).clone()


class RandomTensors:
    """Seeded random weights of any size that carry signal (see `random_weights`), made when they are asked for."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = shapes

    def read(self, name: str) -> Tensor:
        shape = self.shapes[name]
        generator = torch.Generator().manual_seed(sorted(self.shapes).index(name))
        return random_tensor(name, shape, generator)


def find_checkpoint(folder: Path) -> Path:
    """The folder with config.json and tokenizer.json: itself, or the one inside an MLflow package.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if (folder / "config.json").is_file():
        found = [folder]
    else:
        found = [
            path.parent for path in sorted(folder.glob("**/config.json")) if (path.parent / "tokenizer.json").exists()
        ]
    if len(found) != 1:
        raise CheckpointError(f"{folder}: expected one folder with config.json and tokenizer.json, found {len(found)}")
    if not (found[0] / "tokenizer.json").is_file():
        raise CheckpointError(f"{found[0]}: tokenizer.json is missing")
    return found[0]


def rename_key(key: str) -> str:
    """The published name of a tensor in another naming; a published name comes back unchanged."""
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key


def open_checkpoint(folder: Path) -> tuple[CXRReportGenConfig, CheckpointTensors]:
    """Config and tensors of a checkpoint folder, compared name by name and shape by shape, and looked through once.

    Raises:
        ConfigError: see `read_config`.
        CheckpointError: see `CheckpointTensors`; or tensors are missing, unexpected, mis-shaped or not finite, and all
            are named.
    """
    config, tensors = read_config(folder), CheckpointTensors(folder)
    found = {name: shape for name, shape in tensors.shapes.items() if name not in UNUSED}
    check_shapes(expected_shapes(config), found, folder)
    check_finite(((name, tensors.read(name)) for name in found), folder)
    return config, tensors


def expected_shapes(config: CXRReportGenConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of the model, by published name."""
    with torch.device("meta"):
        encoder, decoder = ImageEncoder(config), reference_decoder(config.decoder)
    return {
        **{name: tensor.shape for name, tensor in encoder.state_dict().items()},
        **{DECODER + name: tensor.shape for name, tensor in decoder.state_dict().items()},
    }


def load_image_encoder(config: CXRReportGenConfig, tensors: Tensors) -> ImageEncoder:
    """The image encoder with its weights, in eval mode, fp32."""
    with torch.device("meta"):
        encoder = ImageEncoder(config)
    encoder.load_state_dict({name: tensors.read(name).float() for name in encoder.state_dict()}, assign=True)
    return encoder.eval().requires_grad_(False)


def reference_decoder(config: DecoderConfig) -> PreTrainedModel:
    """transformers' own decoder, the reference of the parity check, with random weights."""
    common = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": _rope_parameters(config),
        "tie_word_embeddings": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # of no use here
        "attn_implementation": "sdpa",
    }
    if config.model_type == "llama":
        return LlamaForCausalLM(LlamaConfig(**common))
    original = (
        config.original_max_position_embeddings if config.rope_type == "longrope" else config.max_position_embeddings
    )
    return Phi3ForCausalLM(
        Phi3Config(**common, sliding_window=config.sliding_window, original_max_position_embeddings=original)
    )


def load_reference_decoder(
    config: DecoderConfig, tensors: Tensors, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """`reference_decoder` with the checkpoint's weights, in eval mode, holding one layer in memory at a time.

    Layers are read as a forward pass reaches them and dropped after it: a pass over 27.5 GB of weights needs the
    memory of its largest layer, the embeddings and the head. `dtype` is float32 or float64.
    """
    with torch.device("meta"):
        model = reference_decoder(config).eval().requires_grad_(False).to(dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # computed, not loaded
    if dtype == torch.float64:
        _compute_norms_and_angles_in_float64(model)

    def stream(module: nn.Module, prefix: str) -> None:
        empty = dict(module.state_dict())

        def load(*_: object) -> None:
            weights = {name: tensors.read(f"{DECODER}{prefix}{name}").to(dtype) for name in empty}
            module.load_state_dict(weights, assign=True)

        def drop(*_: object) -> None:
            module.load_state_dict(empty, assign=True)

        module.register_forward_pre_hook(load)
        module.register_forward_hook(drop)

    for number, layer in enumerate(model.model.layers):
        stream(layer, f"model.layers.{number}.")
    stream(model.model.norm, "model.norm.")
    stream(model.lm_head, "lm_head.")
    return model


def _compute_norms_and_angles_in_float64(model: PreTrainedModel) -> None:
    """transformers casts to float32 in both, whatever the model's type."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if "RMSNorm" in type(norm).__name__:
                setattr(module, name, nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, device="meta"))
    rotary = model.model.rotary_emb
    published = rotary.forward

    def forward(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        published(x, position_ids)  # chooses the frequencies, which depend on the length with longrope
        angles = (position_ids[..., None].double() * rotary.inv_freq.double()).repeat(1, 1, 2)
        return angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling

    rotary.forward = forward


def _rope_parameters(config: DecoderConfig) -> dict[str, object]:
    rope: dict[str, object] = {"rope_type": config.rope_type, "rope_theta": config.rope_theta}
    if config.rope_type == "linear":
        rope["factor"] = config.rope_factor
    if config.rope_type == "longrope":
        rope |= {
            "factor": config.max_position_embeddings / config.original_max_position_embeddings,
            "short_factor": list(config.short_factor),
            "long_factor": list(config.long_factor),
            "original_max_position_embeddings": config.original_max_position_embeddings,
        }
    return rope


def weights_sha256(folder: Path) -> str:
    """Of the bytes of all weight files, one after the other in the order of their names."""
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise CheckpointError(f"{folder}: neither {index.name} nor {single.name} is there")
        return [single]
    try:
        files = sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{index}: not a safetensors index") from exc
    if missing := [path.name for path in files if not path.is_file()]:
        raise CheckpointError(f"{folder}: {index.name} names files that are not there: {', '.join(missing)}")
    return files


def _opened(path: Path) -> "safe_open":
    try:
        return safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError) as exc:
        raise CheckpointError(f"{path}: not readable as safetensors: {exc}") from exc
