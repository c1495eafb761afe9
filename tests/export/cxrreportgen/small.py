"""Small checkpoints with every trap of the full-size ones, in the published layout: 1369 tokens an image, both kinds of
decoder, linear RoPE, a sliding window, longrope."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from medimage_export.cxrreportgen.checkpoint import expected_shapes
from medimage_export.cxrreportgen.config import PHI3_MINI, CXRReportGenConfig, DecoderConfig, VisionConfig
from medimage_export.cxrreportgen.tokenizer import byte_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "vocab_size": 500,
}
VISION = VisionConfig(hidden_size=32, num_layers=3, num_heads=2)
LLAMA = CXRReportGenConfig(VISION, 2, DecoderConfig(**SIZES))
PHI3 = CXRReportGenConfig(VISION, 4, replace(PHI3_MINI, **SIZES))
LONGROPE = replace(
    PHI3,
    decoder=replace(
        PHI3.decoder,
        rope_type="longrope",
        max_position_embeddings=131072,
        short_factor=tuple(np.linspace(1, 2, 8).tolist()),
        long_factor=tuple(np.linspace(1, 4, 8).tolist()),
    ),
)


def shorter(config: CXRReportGenConfig) -> CXRReportGenConfig:
    """The same with 196 tokens an image and limits that fit them: with text one image is within the sliding window, two
    are past it, and three past Phi-3's length and longrope's limit. Attention costs the square of the length.
    """
    decoder, ends = config.decoder, 700
    return replace(
        config,
        vision=replace(config.vision, patch_size=37),
        decoder=replace(
            decoder,
            max_position_embeddings=decoder.max_position_embeddings * ends // decoder.original_max_position_embeddings,
            original_max_position_embeddings=ends,
            sliding_window=decoder.sliding_window and 450,
        ),
    )


def random_state_dict(config: CXRReportGenConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights large enough for attention to matter: with initial ones it would be a mean, whatever the positions."""
    generator = torch.Generator().manual_seed(seed)

    def random(name: str, shape: torch.Size) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            return values * 0.1 + (not name.endswith("bias"))
        return values * (1.0 if "embed_tokens" in name else 1.2 * shape[1] ** -0.5)

    return {name: random(name, shape) for name, shape in expected_shapes(config).items()}


def write_checkpoint(folder: Path, config: CXRReportGenConfig) -> dict[str, Tensor]:
    """Write the folder of a random model; returns its tensors."""
    folder.mkdir(parents=True)
    state_dict = random_state_dict(config)
    save_file(state_dict, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    byte_tokenizer(config).save(str(folder / "tokenizer.json"))
    return state_dict


def config_json(config: CXRReportGenConfig) -> dict[str, object]:
    """`config.json` as transformers 4.51 writes it."""
    vision, decoder = config.vision, config.decoder
    rope = {
        "default": None,
        "linear": {"type": "linear", "factor": decoder.rope_factor},
        "longrope": {
            "type": "longrope",
            "short_factor": list(decoder.short_factor),
            "long_factor": list(decoder.long_factor),
        },
    }
    return {
        "model_type": "maira2",
        "projector_hidden_act": "gelu",
        "projector_n_layers": config.projector_layers,
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": "default" if vision.drop_cls else "full",
        "vision_config": {
            "model_type": "dinov2",
            "hidden_size": vision.hidden_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
            "apply_layernorm": vision.final_norm,
        },
        "text_config": {
            "model_type": decoder.model_type,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "vocab_size": decoder.vocab_size,
            "rms_norm_eps": decoder.rms_norm_eps,
            "rope_theta": decoder.rope_theta,
            "max_position_embeddings": decoder.max_position_embeddings,
            "original_max_position_embeddings": decoder.original_max_position_embeddings,
            "rope_scaling": rope[decoder.rope_type],
            "sliding_window": decoder.sliding_window,
            "eos_token_id": config.eos_token_ids[0],
        },
    }
