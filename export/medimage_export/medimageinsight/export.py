"""MedImageInsight: checkpoint folder -> what Triton serves, checked before it is put in place."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from tokenizers import Tokenizer

from medimage_export.errors import ExportError
from medimage_export.medimageinsight.checkpoint import CheckpointFiles, find_checkpoint, load_model, random_model
from medimage_export.medimageinsight.config import DaViTConfig, MedImageInsightConfig
from medimage_export.medimageinsight.graphs import ImageEncoderGraph, TextEncoderGraph
from medimage_export.medimageinsight.tokenizer import build_tokenizer, write_byte_vocabulary
from medimage_export.medimageinsight.unicl import MedImageInsight
from medimage_export.parity import Bound, Feed, ParityRow, check_parity, compare
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.repository import check_configs, check_is_repository, put_in_place, staging_folder, write_json
from medimage_export.to_onnx import to_onnx

MODELS = ("image_encoder", "image_preprocessing", "medimageinsight", "text_encoder", "text_tokenizer")
# Largest difference allowed to one number of a unit vector, and the least cosine; full-size weights measured 1e-7.
FP32_BOUND = Bound(max_abs=1e-5, min_cosine=0.999999)


def export_medimageinsight(
    checkpoint: Path | None, repository: Path, *, images: Sequence[Path] = ()
) -> list[ParityRow]:
    """Export both encoders, the tokenizer and the preprocessing settings into the model repository.

    Nothing in the repository changes unless the parity check passes. `checkpoint=None` exports the published
    architecture at full size with random weights and a vocabulary of bytes, for benchmarks. `images` are files to add
    to the parity check.

    Raises:
        CheckpointError, ConfigError: the checkpoint is not exactly what its config says.
        RepositoryError: not this project's model repository, or its configs do not fit the checkpoint.
        ParityError: ONNX Runtime does not give PyTorch's numbers.
        ExportError: one of `images` cannot be read.
    """
    check_is_repository(repository, MODELS)
    model, tokenizer, source = _full_size_random() if checkpoint is None else _loaded(find_checkpoint(checkpoint))
    config = model.config
    check_configs(repository, _dims(config))
    encoders = (
        ("image_encoder", ImageEncoderGraph(model).eval(), image_feeds(config.image, images)),
        ("text_encoder", TextEncoderGraph(model).eval(), text_feeds(tokenizer)),
    )
    with staging_folder(repository, MODELS) as staging:
        parity = []
        for name, graph, feeds in encoders:
            path = staging / name / "model.onnx"
            to_onnx(graph, path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            parity += compare(name, graph, session, feeds)
        check_parity(parity, FP32_BOUND)

        tokenizer.save(str(staging / "text_tokenizer" / "tokenizer.json"))
        preprocessing = {"image_size": list(config.image.image_size), "interpolation": config.image.interpolation}
        write_json(staging / "image_preprocessing" / "preprocessing.json", preprocessing)
        manifest = {
            "checkpoint": source,
            "format": "onnx",
            "precision": "fp32",
            "versions": {module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)},
            "parity": [asdict(row) for row in parity],
        }
        write_json(staging / "medimageinsight" / "manifest.json", manifest)
        put_in_place(staging, repository)
    return parity


def _dims(config: MedImageInsightConfig) -> dict[tuple[str, str], Sequence[int]]:
    height, width = config.image.image_size
    return {
        ("image_preprocessing", "pixels"): [height, width, 3],
        ("image_encoder", "pixels"): [height, width, 3],
        ("image_encoder", "image_features"): [config.projection_dim],
        ("text_tokenizer", "input_ids"): [config.text.context_length],
        ("text_encoder", "input_ids"): [config.text.context_length],
        ("text_encoder", "text_features"): [config.projection_dim],
    }


def _loaded(files: CheckpointFiles) -> tuple[MedImageInsight, Tokenizer, dict[str, str]]:
    model = load_model(files)
    with files.weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tokenizer = build_tokenizer(files.tokenizer, model.config.text.context_length)
    return model, tokenizer, {"weights": files.weights.name, "sha256": sha256}


def _full_size_random() -> tuple[MedImageInsight, Tokenizer, dict[str, str]]:
    config = MedImageInsightConfig()
    with tempfile.TemporaryDirectory() as folder:
        write_byte_vocabulary(Path(folder), config.text.vocab_size)
        tokenizer = build_tokenizer(Path(folder), config.text.context_length)
    return random_model(config), tokenizer, {"weights": "random"}


def image_feeds(config: DaViTConfig, images: Sequence[Path]) -> dict[str, Feed]:
    """Batches of noise, of phantoms and of each given file, as pixels of the encoder's size.

    Raises:
        ExportError: a file is no image that Pillow can read.
    """
    height, width = config.image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    drawings = [Image.fromarray(phantom(caption, seed=0).image) for caption in (CAPTIONS[0], CAPTIONS[-1])]
    feeds = {"noise": noise, "phantoms": np.stack([_resized(drawing, config) for drawing in drawings])}
    for number, path in enumerate(images, start=1):  # not by name: a file's name may be a patient's
        try:
            with Image.open(path) as image:
                feeds[f"image {number}"] = _resized(image, config)[None]
        except Exception as exc:  # of almost any type for a damaged file
            raise ExportError(f"{path} is not an image that Pillow can read: {type(exc).__name__}") from exc
    return {name: {"pixels": pixels} for name, pixels in feeds.items()}


def text_feeds(tokenizer: Tokenizer) -> dict[str, Feed]:
    """Token ids of captions, of an empty text and of one that is too long."""
    return {
        "captions": _encoded(tokenizer, list(CAPTIONS)),
        "edge cases": _encoded(tokenizer, ["", "word " * 200]),
        "one text": _encoded(tokenizer, ["x-ray chest anteroposterior Pneumonia"]),
    }


def _resized(image: Image.Image, config: DaViTConfig) -> np.ndarray:
    height, width = config.image_size
    return np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Feed:
    encodings = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
    }
