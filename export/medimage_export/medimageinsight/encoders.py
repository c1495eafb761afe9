"""The two encoders, and what the export of each needs: a reference, a writer, inputs for checks and calibration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from medimage_export.errors import ExportError
from medimage_export.medimageinsight.config import DaViTConfig
from medimage_export.medimageinsight.davit import DaViT
from medimage_export.medimageinsight.image_graph import write_image_encoder
from medimage_export.medimageinsight.reference import ImageEncoderReference, TextEncoderReference, UniCL
from medimage_export.medimageinsight.text_graph import write_text_encoder
from medimage_export.medimageinsight.text_transformer import TextTransformer
from medimage_export.parity import Feed
from medimage_export.phantoms import CAPTIONS, phantom

CALIBRATION_DRAWINGS = 12  # at full size one takes about five seconds on two cores
CALIBRATION_SEED = 10_000  # far from the parity check's and from TEST_SEEDS


@dataclass(frozen=True)
class EncoderExport:
    """What the export of one of the two encoders needs.

    Attributes:
        name: of its model in the repository.
        layers: those that int8 quantizes.
        write: see `write_image_encoder`.
        parity_feeds: by what they are.
        probe: the batch by which int8 finds the layers that hurt.
        calibration_feeds: for int8; an image file that cannot be read is an ExportError.
    """

    name: str
    reference: ImageEncoderReference | TextEncoderReference
    layers: DaViT | TextTransformer
    write: Callable[..., None]
    parity_feeds: Mapping[str, Feed]
    probe: Feed
    calibration_feeds: Callable[[], Sequence[Feed]]


def encoders_of(
    model: UniCL, tokenizer: Tokenizer, images: Sequence[Path], calibration: Sequence[Path]
) -> tuple[EncoderExport, EncoderExport]:
    """Image and text encoder; `images` and `calibration` are files, see `export_medimageinsight`."""
    pictures, texts = image_feeds(model.config.image, images), text_feeds(tokenizer)
    return (
        EncoderExport(
            "image_encoder",
            ImageEncoderReference(model).eval(),
            model.image_encoder,
            partial(write_image_encoder, model),
            pictures,
            {"pixels": pictures["phantoms"]["pixels"][-1:]},
            lambda: list(calibration_images(model.config.image, calibration)),
        ),
        EncoderExport(
            "text_encoder",
            TextEncoderReference(model).eval(),
            model.lang_encoder,
            partial(write_text_encoder, model),
            texts,
            texts["edge cases"],
            lambda: list(texts.values()),
        ),
    )


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
