"""MedImageInsight: checkpoint folder -> what Triton serves, checked before it is put in place."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import nn

from medimage_export.errors import ExportError
from medimage_export.medimageinsight.calibration import activation_ranges
from medimage_export.medimageinsight.checkpoint import CheckpointFiles, find_checkpoint, load_model, random_model
from medimage_export.medimageinsight.config import DaViTConfig, MedImageInsightConfig
from medimage_export.medimageinsight.encoder_writer import Precision
from medimage_export.medimageinsight.graphs import ImageEncoderGraph, TextEncoderGraph
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.medimageinsight.tokenizer import build_tokenizer, write_byte_vocabulary
from medimage_export.medimageinsight.unicl import MedImageInsight
from medimage_export.node_by_node import NodeByNode
from medimage_export.parity import Bound, Feed, ParityRow, Session, check_parity, compare, cpu_session
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_export.repository import check_configs, check_is_repository, put_in_place, staging_folder, write_json
from medimage_export.served_config import Format, config_change, max_batch_size
from medimage_export.tensorrt_plan import Toolkit, build_plan, find_toolkit, timing_cache_of, with_largest_profile

MODELS = ("image_encoder", "image_preprocessing", "medimageinsight", "text_encoder", "text_tokenizer")

CUDA = "CUDAExecutionProvider"

# Largest difference allowed to one number of a unit vector, and the least cosine. Measured at full size with random
# weights and on the phantom checkpoint, the worse of both: fp32 1e-7, fp16 2e-4 and 0.999998, int8 3e-3 and 0.9996.
BOUNDS: dict[Precision, Bound] = {
    "fp32": Bound(max_abs=1e-5, min_cosine=0.999999),
    "fp16": Bound(max_abs=1e-2, min_cosine=0.9999),
    "int8": Bound(max_abs=5e-2, min_cosine=0.995),
}
CALIBRATION_DRAWINGS = 12  # at full size one takes about five seconds on two cores
CALIBRATION_SEED = 10_000  # far from the parity check's and from TEST_SEEDS


@dataclass(frozen=True)
class Encoder:
    """One of the two, and what its export needs."""

    name: str  # of its model in the repository
    reference: ImageEncoderGraph | TextEncoderGraph
    layers: nn.Module  # those that int8 calibrates
    write: Callable[..., None]  # see `write_image_encoder`
    parity_feeds: Mapping[str, Feed]
    calibration_feeds: Callable[[], Iterable[Feed]]


def export_medimageinsight(
    checkpoint: Path | None,
    repository: Path,
    *,
    precision: Precision = "fp32",
    format: Format = "onnx",
    images: Sequence[Path] = (),
    calibration: Sequence[Path] = (),
) -> list[ParityRow]:
    """Export both encoders, the tokenizer and the preprocessing settings into the model repository.

    Nothing in the repository changes unless the parity check passes. `checkpoint=None` exports the published
    architecture at full size with random weights and a vocabulary of bytes, for benchmarks. `images` are files to add
    to the parity check. int8 takes the ranges of its activations from the image files of `calibration`, or else from
    drawings; those of the text encoder from captions.

    Raises:
        CheckpointError, ConfigError: the checkpoint is not exactly what its config says.
        RepositoryError: not this project's model repository, or its configs do not fit the checkpoint or the format.
        ParityError: the exported model does not give PyTorch's numbers.
        ExportError: the options exclude each other, or an image file cannot be read.
        TensorRTMissing, UnsupportedByTensorRT, PlanError: see `tensorrt_plan`.
    """
    if precision == "int8" and format == "tensorrt":
        raise ExportError("int8 is for CPUs; TensorRT takes --precision fp16 or fp32")
    if calibration and precision != "int8":
        raise ExportError(f"{precision} needs no calibration images; only --precision int8 takes them")
    toolkit = find_toolkit() if format == "tensorrt" else None
    check_is_repository(repository, MODELS)
    model, tokenizer, source = _full_size_random() if checkpoint is None else _loaded(find_checkpoint(checkpoint))
    check_configs(repository, _dims(model.config))
    encoders = (
        Encoder(
            "image_encoder",
            ImageEncoderGraph(model).eval(),
            model.image_encoder,
            partial(write_image_encoder, model),
            image_feeds(model.config.image, images),
            lambda: calibration_images(model.config.image, calibration),
        ),
        Encoder(
            "text_encoder",
            TextEncoderGraph(model).eval(),
            model.lang_encoder,
            partial(write_text_encoder, model),
            text_feeds(tokenizer),
            lambda: text_feeds(tokenizer).values(),
        ),
    )
    changes = [config_change(repository, encoder.name, format) for encoder in encoders]
    with staging_folder(repository, MODELS) as staging:
        parity = []
        for encoder in encoders:
            folder = staging / encoder.name
            feeds = encoder.parity_feeds
            if toolkit is None:
                session = _write_onnx(encoder, folder / "model.onnx", precision)
            else:
                session = _write_plan(encoder, folder / "model.plan", precision, toolkit, repository)
                feeds = with_largest_profile(feeds)
            parity += compare(encoder.name, encoder.reference, session, encoder.reference.OUTPUTS, feeds)
            del session
        check_parity(parity, BOUNDS[precision])

        tokenizer.save(str(staging / "text_tokenizer" / "tokenizer.json"))
        preprocessing = {
            "image_size": list(model.config.image.image_size),
            "interpolation": model.config.image.interpolation,
        }
        write_json(staging / "image_preprocessing" / "preprocessing.json", preprocessing)
        versions = {module.__name__: module.__version__ for module in (torch, onnx, onnxruntime)}
        if toolkit is not None:
            versions["tensorrt"] = toolkit.version
        manifest = {
            "checkpoint": source,
            "format": format,
            "precision": precision,
            "versions": versions,
            "parity": [asdict(row) for row in parity],
        }
        write_json(staging / "medimageinsight" / "manifest.json", manifest)
        put_in_place(staging, repository, changes)
    return parity


def _write_onnx(encoder: Encoder, path: Path, precision: Precision) -> Session:
    ranges = None
    if precision == "int8":
        ranges = activation_ranges(encoder.layers, encoder.reference, encoder.calibration_feeds())
    encoder.write(path, precision=precision, ranges=ranges)
    if precision == "fp16":
        return _open_on_gpu(path) or NodeByNode(path)
    return cpu_session(path)


def _open_on_gpu(path: Path) -> Session | None:
    """A session that computes float32 in float32, as the served configs ask for; None where there is no GPU."""
    if CUDA not in onnxruntime.get_available_providers():
        return None
    session = onnxruntime.InferenceSession(path, providers=[(CUDA, {"use_tf32": "0"}), "CPUExecutionProvider"])
    return session if CUDA in session.get_providers() else None  # it falls back to the CPU with a warning alone


def _write_plan(encoder: Encoder, plan: Path, precision: Precision, toolkit: Toolkit, repository: Path) -> Session:
    with tempfile.TemporaryDirectory(dir=plan.parent) as scratch:  # gone before the plan is put in place
        path = Path(scratch) / "model.onnx"
        encoder.write(path, precision=precision, operators="standard")
        return build_plan(
            toolkit,
            path,
            plan,
            max_batch_size=max_batch_size(repository, encoder.name),
            timing_cache=timing_cache_of(repository),
        )


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
    drawings = [_drawing(caption, 0, config) for caption in (CAPTIONS[0], CAPTIONS[-1])]
    feeds = {"noise": noise, "phantoms": np.concatenate(drawings)}
    for number, path in enumerate(images, start=1):  # not by name: a file's name may be a patient's
        feeds[f"image {number}"] = _file(path, config)
    return {name: {"pixels": pixels} for name, pixels in feeds.items()}


def calibration_images(config: DaViTConfig, files: Sequence[Path]) -> Iterator[Feed]:
    """The given files, or else drawings of different captions, one at a time.

    Raises:
        ExportError: a file is no image that Pillow can read.
    """
    if files:
        yield from ({"pixels": _file(path, config)} for path in files)
        return
    captions = CAPTIONS[:: -(-len(CAPTIONS) // CALIBRATION_DRAWINGS)]
    yield from ({"pixels": _drawing(caption, CALIBRATION_SEED, config)} for caption in captions)


def text_feeds(tokenizer: Tokenizer) -> dict[str, Feed]:
    """Token ids of captions, of an empty text and of one that is too long."""
    return {
        "captions": _encoded(tokenizer, list(CAPTIONS)),
        "edge cases": _encoded(tokenizer, ["", "word " * 200]),
        "one text": _encoded(tokenizer, ["x-ray chest anteroposterior Pneumonia"]),
    }


def _drawing(caption: str, seed: int, config: DaViTConfig) -> np.ndarray:
    return _resized(Image.fromarray(phantom(caption, seed=seed).image), config)


def _file(path: Path, config: DaViTConfig) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return _resized(image, config)
    except Exception as exc:  # of almost any type for a damaged file
        raise ExportError(f"{path} is not an image that Pillow can read: {type(exc).__name__}") from exc


def _resized(image: Image.Image, config: DaViTConfig) -> np.ndarray:
    """(1, height, width, 3) uint8."""
    height, width = config.image_size
    return np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))[None]


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Feed:
    encodings = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
    }
