"""CXRReportGen / MAIRA-2: checkpoint folder -> what Triton serves, checked before it is put in place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer

from medimage_export.cxrreportgen.checkpoint import (
    DECODER,
    RandomTensors,
    Tensors,
    expected_shapes,
    find_checkpoint,
    load_image_encoder,
    load_reference_decoder,
    open_checkpoint,
    weights_sha256,
)
from medimage_export.cxrreportgen.config import PHI3_MINI, CXRReportGenConfig
from medimage_export.cxrreportgen.decoder_graph import Precision, write_decoder
from medimage_export.cxrreportgen.decoder_parity import (
    Array,
    CachedDecoder,
    DecoderParityRow,
    References,
    answer_batches,
    check_decoder_parity,
    compare_decoder,
)
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.cxrreportgen.image_graph import write_vision_encoder
from medimage_export.cxrreportgen.int4 import QuantizedTensors
from medimage_export.cxrreportgen.next_token_loss import next_token_loss
from medimage_export.cxrreportgen.tokenizer import byte_tokenizer, read_tokenizer
from medimage_export.parity import Bound, Feed, ParityRow, check_parity, compare, truths
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.repository import check_configs, check_is_repository, put_in_place, staging_folder, write_json
from medimage_export.served_config import config_change

MODELS = ("cxr_image_encoder", "cxr_image_preprocessing", "cxrreportgen_stream")
MAX_IMAGES = 3  # current frontal, current lateral, prior frontal

# Of one image token, beside PyTorch's own rounding: see `parity`. int4 is the decoder's: the image encoder stays fp32,
# since it runs once a study.
IMAGE_BOUNDS = {
    "fp32": Bound(max_abs=1e-6),
    "fp16": Bound(min_cosine=0.999),
    "int4": Bound(max_abs=1e-6),
}
CHECKED_TOKENS = 8  # generated for each batch of the parity check
SHORT_PROMPTS = (5, 40, 17)  # tokens; unequal, because a batch is padded
TEXT_TOKENS = 200  # about those of MAIRA-2's prompt without its images


def export_cxrreportgen(
    checkpoint: Path | None,
    repository: Path,
    *,
    precision: Precision = "fp32",
    progress: Callable[[str], None] = lambda line: None,
) -> list[DecoderParityRow]:
    """Export image encoder, decoder, token embeddings, tokenizer and settings into the model repository.

    Nothing in the repository changes unless the parity checks pass. Weights are read one at a time. `checkpoint=None`
    exports CXRReportGen's size with random weights and a vocabulary of bytes, for benchmarks; its decoder is checked on
    short prompts alone.

    Raises:
        CheckpointError, ConfigError: the checkpoint is not exactly what its config says.
        RepositoryError: not this project's model repository, or its configs do not fit the checkpoint.
        ParityError: ONNX Runtime is further from the reference in float64 than the precision allows.
    """
    check_is_repository(repository, MODELS)
    config, tensors, tokenizer = _full_size_random() if checkpoint is None else _opened(find_checkpoint(checkpoint))
    size = config.vision.image_size
    check_configs(
        repository,
        {("cxr_image_preprocessing", "pixels"): [size, size], ("cxr_image_encoder", "pixels"): [size, size]},
    )
    changes = [
        config_change(repository, "cxrreportgen_stream", "onnx", precision=precision),
        config_change(repository, "cxr_image_encoder", "onnx", precision="fp32" if precision == "int4" else precision),
    ]
    with staging_folder(repository, MODELS) as staging:
        progress("image encoder")
        encoder = load_image_encoder(config, tensors)
        image_parity = _export_image_encoder(encoder, staging / "cxr_image_encoder" / "model.onnx", precision)
        images = _image_tokens(encoder)
        del encoder

        folder = staging / "cxrreportgen_stream"
        write_decoder(
            config.decoder, tensors, folder / "decoder.onnx", precision, lambda line: progress(f"decoder: {line}")
        )
        table = tensors.read(f"{DECODER}model.embed_tokens.weight").float().numpy()
        np.save(folder / "embed_tokens.npy", table.astype(np.float32 if precision == "fp32" else np.float16))
        progress("decoder: parity check")
        # int4's own kernel works on packed weights alone, and its weights are small
        decoder = CachedDecoder(folder / "decoder.onnx", config.decoder, prepack=precision == "int4")
        # what four bits cost is not the question here, but whether the graph computes with them as it should
        weights = QuantizedTensors(tensors) if precision == "int4" else tensors
        references = References(
            *(load_reference_decoder(config.decoder, weights, dtype) for dtype in (torch.float64, torch.float32))
        )
        batches = parity_prompts(config, table, images, with_images=checkpoint is not None)
        answers = answer_batches(decoder, batches, table, CHECKED_TOKENS)
        decoder_parity = compare_decoder(decoder, references, answers, table)
        check_decoder_parity(decoder_parity, precision)
        loss = None
        if precision != "fp32":
            progress("decoder: what the precision costs")
            loss = next_token_loss(load_reference_decoder(config.decoder, tensors), config.decoder, answers, table)
            print(loss)

        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "generation.json", generation_settings(config))
        write_json(
            staging / "cxr_image_preprocessing" / "preprocessing.json",
            {"image_size": size, "stretch": config.vision.stretch},
        )
        manifest = {
            "checkpoint": {"weights": "random"} if checkpoint is None else _source(checkpoint),
            "format": "onnx",
            "precision": precision,
            "kv_bytes_per_token": decoder.kv_bytes_per_token,
            "versions": {module.__name__: module.__version__ for module in (torch, onnx, onnxruntime, transformers)},
            "parity": [asdict(row) for row in (*image_parity, *decoder_parity)],
            "next_token_loss": None if loss is None else asdict(loss),
        }
        write_json(folder / "manifest.json", manifest)
        put_in_place(staging, repository, changes)
    return decoder_parity


def generation_settings(config: CXRReportGenConfig) -> dict[str, object]:
    """What the server has to know to ask the decoder: `generation.json`."""
    decoder = config.decoder
    long_rope = {"after": decoder.original_max_position_embeddings, "first_row": decoder.max_length}
    return {
        "tokens_per_image": config.vision.tokens_per_image,
        "max_length": decoder.max_length,
        "eos_token_ids": list(config.eos_token_ids),
        "long_rope": long_rope if decoder.rope_type == "longrope" else None,
        "tokens": asdict(config.tokens),
        "prompt": asdict(config.prompt),
    }


def parity_prompts(
    config: CXRReportGenConfig, table: Array, images: Array, *, with_images: bool = True
) -> Mapping[str, Sequence[Array]]:
    """Batches of prompts, as embeddings: unequal short ones, and one, two and three images with text around them.

    Left out is what is longer than the model allows.
    """
    generator = np.random.default_rng(0)

    def text(tokens: int) -> Array:
        return table[generator.integers(0, len(table), tokens)]

    batches = {"unequal lengths": [text(tokens) for tokens in SHORT_PROMPTS]}
    for count in range(1, MAX_IMAGES + 1 if with_images else 1):
        around = [text(TEXT_TOKENS // (count + 1)) for _ in range(count + 1)]
        prompt = np.vstack([part for pair in zip(around, images[:count], strict=False) for part in pair] + [around[-1]])
        if len(prompt) + CHECKED_TOKENS <= config.decoder.max_length:
            batches[f"{count} image{'s' * (count > 1)}"] = [prompt]
    return batches


def _export_image_encoder(encoder: ImageEncoder, path: Path, precision: Precision) -> list[ParityRow]:
    truth = truths(encoder, encoder.OUTPUTS, _image_feeds(encoder.config))
    written = "fp16" if precision == "fp16" else "fp32"
    write_vision_encoder(encoder, path, precision=written)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = compare("cxr_image_encoder", truth, session)
    check_parity(rows, written, IMAGE_BOUNDS[precision])
    return rows


def _image_feeds(config: CXRReportGenConfig) -> dict[str, Feed]:
    size = config.vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, size, size), dtype=np.uint8)
    return {"noise": {"pixels": noise}, "phantoms": {"pixels": np.stack(_drawings(size)[:2])}}


def _image_tokens(encoder: ImageEncoder) -> Array:
    """Of MAX_IMAGES drawings: (MAX_IMAGES, tokens_per_image, H) float32."""
    with torch.inference_mode():
        return encoder(torch.from_numpy(np.stack(_drawings(encoder.config.vision.image_size)))).numpy()


def _drawings(size: int) -> list[np.ndarray]:
    drawn = (phantom(caption, seed=0).image for caption in CAPTIONS[:MAX_IMAGES])
    return [np.asarray(Image.fromarray(image).convert("L").resize((size, size))) for image in drawn]


def _opened(folder: Path) -> tuple[CXRReportGenConfig, Tensors, Tokenizer]:
    config, tensors = open_checkpoint(folder)
    return config, tensors, read_tokenizer(folder / "tokenizer.json", config)


def _source(checkpoint: Path) -> dict[str, str]:
    return {"weights": checkpoint.resolve().name, "sha256": weights_sha256(find_checkpoint(checkpoint))}


def _full_size_random() -> tuple[CXRReportGenConfig, Tensors, Tokenizer]:
    config = CXRReportGenConfig(decoder=PHI3_MINI)
    return config, RandomTensors(expected_shapes(config)), byte_tokenizer(config)
