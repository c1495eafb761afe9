"""A small random report model: what an export writes for the server, and the same decoder in PyTorch."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medimage_export.cxrreportgen.checkpoint import load_reference_decoder, open_checkpoint
from medimage_export.cxrreportgen.decoder_graph import write_decoder
from medimage_export.cxrreportgen.export import generation_settings
from medimage_export.cxrreportgen.tokenizer import byte_tokenizer
from medimage_export.repository import write_json
from tests.export.cxrreportgen.small import LLAMA, PHI3, SIZES, VISION, write_checkpoint

FEW_IMAGE_TOKENS = replace(VISION, patch_size=259)  # 4 an image
CONFIGS = {
    "linear": replace(LLAMA, vision=FEW_IMAGE_TOKENS),
    "longrope": replace(
        PHI3,
        vision=FEW_IMAGE_TOKENS,
        decoder=replace(
            PHI3.decoder,
            rope_type="longrope",
            max_position_embeddings=128,
            original_max_position_embeddings=32,
            sliding_window=None,
            short_factor=tuple(np.linspace(1, 2, SIZES["hidden_size"] // SIZES["num_heads"] // 2).tolist()),
            long_factor=tuple(np.linspace(1, 4, SIZES["hidden_size"] // SIZES["num_heads"] // 2).tolist()),
        ),
    ),
}


@dataclass
class SmallModel:
    folder: Path  # as of cxrreportgen_stream/1
    config: object
    table: np.ndarray  # (V, H)
    reference: torch.nn.Module

    @torch.inference_mode()
    def logits(self, embeds):
        """(S, H) -> (V,) after the last token, by PyTorch in one pass without a cache."""
        return self.reference(inputs_embeds=torch.from_numpy(embeds)[None], use_cache=False).logits[0, -1].numpy()

    def greedy(self, embeds, n):
        """The n tokens that PyTorch chooses; each from a pass over all before it."""
        tokens = []
        for _ in range(n):
            tokens.append(int(self.logits(np.concatenate([embeds, self.table[tokens]])).argmax()))
        return tokens


def write_small_model(folder, kind, precision="fp32"):
    config = CONFIGS[kind]
    write_checkpoint(folder / "checkpoint", config)
    _, tensors = open_checkpoint(folder / "checkpoint")
    table = tensors.read("language_model.model.embed_tokens.weight").float().numpy()
    model = folder / "1"
    model.mkdir()
    write_decoder(config.decoder, tensors, model / "decoder.onnx", precision)
    write_json(model / "manifest.json", {"precision": precision})
    np.save(model / "embed_tokens.npy", table)
    byte_tokenizer(config).save(str(model / "tokenizer.json"))
    write_json(model / "generation.json", generation_settings(config))
    return SmallModel(model, config, table, load_reference_decoder(config.decoder, tensors))
