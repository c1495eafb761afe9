"""Strict loading of a MedImageInsight checkpoint folder.

Published layout (Azure catalog, MLflow package; the same without the package on Hugging Face):

    [artifacts/checkpoints/]config.yaml
    [artifacts/checkpoints/]vision_model/medimageinsigt-v1.0.0.pt      both encoders; safetensors in spite of its name
    [artifacts/checkpoints/]language_model/clip_tokenizer_4.16.2/      vocab.json, merges.txt
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from medimage_export.errors import CheckpointError
from medimage_export.medimageinsight.config import MedImageInsightConfig, read_config
from medimage_export.medimageinsight.reference import UniCL
from medimage_export.random_weights import GAIN, random_tensor
from medimage_export.state_dict import check_finite, check_shapes

LOGIT_SCALE = 4.513362407684326  # the published one, of which exp() is 91.2

# Names of older checkpoints -> published names, applied in this order; the reference loader accepts the same.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^visual\.", "image_encoder."),
        (r"^text\.", "lang_encoder."),
        (r"^vision_projection$", "image_projection"),
        (r"^text_projection$", "lang_projection"),
        (r"^image_encoder\.conv_embeds\.", "image_encoder.convs."),
        (r"^image_encoder\.main_blocks\.", "image_encoder.blocks."),
        (r"(\.blocks\.\d+\.\d+)\.0\.(?=cpe|norm|attn|mlp)", r"\1.spatial_block."),
        (r"(\.blocks\.\d+\.\d+)\.1\.(?=cpe|norm|attn|mlp)", r"\1.channel_block."),
        (r"\.cpe\.0\.proj\.", ".conv1.fn.dw."),
        (r"\.cpe\.1\.proj\.", ".conv2.fn.dw."),
        (r"spatial_block\.attn\.", "spatial_block.window_attn.fn."),
        (r"channel_block\.attn\.", "channel_block.channel_attn.fn."),
        (r"spatial_block\.norm1\.", "spatial_block.window_attn.norm."),
        (r"channel_block\.norm1\.", "channel_block.channel_attn.norm."),
        (r"_block\.norm2\.", "_block.ffn.norm."),
        (r"_block\.mlp\.", "_block.ffn.fn.net."),
    )
)


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the parts of a checkpoint lie."""

    config: Path
    weights: Path
    tokenizer: Path  # folder with vocab.json and merges.txt


def find_checkpoint(folder: Path) -> CheckpointFiles:
    """Locate the parts of a published folder, or of an MLflow package that holds one.

    Raises:
        CheckpointError: a part is missing, or there is more than one candidate for it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    packaged = folder / "artifacts" / "checkpoints"
    root = packaged if packaged.is_dir() else folder
    config = root / "config.yaml"
    if not config.is_file():
        raise CheckpointError(f"{root}: config.yaml is missing; expected config.yaml, vision_model/, language_model/")
    weights = [p for p in sorted(root.glob("vision_model/*")) if p.suffix in (".pt", ".safetensors")]
    tokenizers = [p.parent for p in sorted(root.glob("language_model/*/vocab.json"))]
    for found, what in ((weights, "vision_model/*.pt"), (tokenizers, "language_model/*/vocab.json")):
        if len(found) != 1:
            raise CheckpointError(f"{root}: expected one {what}, found {len(found)}")
    if not (tokenizers[0] / "merges.txt").is_file():
        raise CheckpointError(f"{tokenizers[0]}: merges.txt is missing")
    return CheckpointFiles(config, weights[0], tokenizers[0])


def rename_key(key: str) -> str:
    """The published name of a tensor in an older checkpoint; a published name comes back unchanged."""
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key


def load_model(files: CheckpointFiles) -> UniCL:
    """The model with every tensor of the checkpoint in it, in eval mode, fp32.

    Tensors stay memory-mapped from the file: loading needs no second copy.

    Raises:
        ConfigError: see `read_config`.
        CheckpointError: not a safetensors file, or tensors are missing, unexpected mis-shaped or not finite; all
            are named.
    """
    try:
        vocabulary = json.loads((files.tokenizer / "vocab.json").read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"{files.tokenizer / 'vocab.json'}: not JSON: {exc}") from exc
    config = read_config(files.config, vocab_size=len(vocabulary))
    try:
        state_dict = load_file(files.weights)
    except (OSError, safetensors.SafetensorError) as exc:
        raise CheckpointError(f"{files.weights}: not readable as safetensors: {exc}") from exc

    renamed = {rename_key(key): tensor.float() for key, tensor in state_dict.items()}
    if len(renamed) != len(state_dict):
        raise CheckpointError(f"{files.weights}: two tensors have the same published name")
    with torch.device("meta"):  # allocates nothing: assign=True below puts the checkpoint's own tensors in
        model = UniCL(config)
    check_shapes(_shapes(model.state_dict()), _shapes(renamed), files.weights)
    check_finite(renamed.items(), files.weights)
    model.load_state_dict(renamed, assign=True)
    return model.eval().requires_grad_(False)


def random_model(config: MedImageInsightConfig, *, seed: int = 0, gain: float = GAIN) -> UniCL:
    """A model with seeded random weights that carry signal (see `random_weights`), in eval mode, fp32."""
    with torch.device("meta"):
        model = UniCL(config)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: random_tensor(name, shape, generator, gain=gain) for name, shape in _shapes(model.state_dict()).items()
    }
    weights["logit_scale"] = torch.tensor(LOGIT_SCALE)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state_dict.items()}
