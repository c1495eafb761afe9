"""Training of the phantom checkpoint, on a model small enough to train in a test."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.training import medimageinsight as training
from checkpoints.training.clip_vocabulary import write_vocabulary
from checkpoints.training.medimageinsight import (
    CONFIG_YAML,
    Examples,
    separate_captions,
    served_pixels,
    tokenize,
    train,
)
from medimage_export.medimageinsight.checkpoint import find_checkpoint, random_model
from medimage_export.medimageinsight.config import DaViTConfig, MedImageInsightConfig, TextConfig
from medimage_export.medimageinsight.reference import ImageEncoderReference, UniCL
from medimage_export.phantoms import CAPTIONS, phantom
from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings
from tests.paths import PHANTOM_CHECKPOINT

TOKENIZER = find_checkpoint(PHANTOM_CHECKPOINT).tokenizer
TOKENS = tokenize(CAPTIONS, TOKENIZER, 77)
TINY = MedImageInsightConfig(
    DaViTConfig(
        image_size=(64, 64),
        patch_size=(7, 3),
        patch_stride=(4, 2),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        embed_dims=(16, 32),
        num_heads=(1, 2),
        num_groups=(1, 2),
        depths=(1, 1),
    ),
    TextConfig(width=32, heads=2, layers=1, vocab_size=int(TOKENS.input_ids.max()) + 1),  # the end token is the last
    projection_dim=32,
)


def drawn(seed: int) -> Examples:
    """Each caption once, in the tiny model's size."""
    images = [Image.fromarray(phantom(caption, seed, size=64).image).convert("RGB") for caption in CAPTIONS]
    return Examples(torch.from_numpy(np.stack(images)), torch.arange(len(CAPTIONS)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def largest_cosine(model: UniCL) -> float:
    """Between two different captions."""
    with torch.no_grad():
        texts = model.encode_text(TOKENS.input_ids, TOKENS.attention_mask)
    return (texts @ texts.T).fill_diagonal_(-1).max().item()


def test_unicl_loss_equals_the_published_formula_when_a_caption_comes_twice():
    """Written out from https://arxiv.org/abs/2204.03610: all pairs of one label are positives; mean of both ways."""
    model = random_model(TINY)
    labels = [4, 0, 4, 7]
    pixels = drawn(seed=0).pixels[[4, 0, 11, 7]]
    with torch.no_grad():
        loss = training.unicl_loss(model, pixels, torch.tensor(labels), TOKENS).item()
        images = ImageEncoderReference(model)(pixels)[0].double().numpy()
        texts = model.encode_text(TOKENS.input_ids, TOKENS.attention_mask).double().numpy()[labels]

    cosines = np.array([[image @ text for text in texts] for image in images])
    image_to_text, text_to_image = (
        log_softmax(math.exp(4.513362407684326) * scores)
        for scores in (cosines, cosines.T)  # the published scale
    )
    expected = 0.0
    for i, label in enumerate(labels):
        positives = [k for k, other in enumerate(labels) if other == label]
        expected -= sum(image_to_text[i, k] + text_to_image[i, k] for k in positives) / len(positives)
    assert loss == pytest.approx(expected / len(labels) / 2, rel=1e-4)


def test_separate_captions_lowers_the_largest_cosine():
    torch.manual_seed(0)
    model = training.untrained(TINY)
    before = largest_cosine(model)
    separate_captions(model, TOKENS)
    assert before > 0.9
    assert largest_cosine(model) < 0.5


def test_training_brings_the_loss_below_that_of_guessing(monkeypatch):
    """Equal logits, which tell nothing, cost log(batch)."""
    monkeypatch.setattr(training, "EPOCHS", 10)
    monkeypatch.setattr(training, "BATCH", len(CAPTIONS))
    monkeypatch.setattr(training, "WARMUP_STEPS", 2)
    torch.manual_seed(0)
    examples = drawn(seed=0)
    model = train(TINY, examples, drawn(seed=1), TOKENS)
    with torch.no_grad():
        loss = training.unicl_loss(model, examples.pixels, examples.labels, TOKENS).item()
    assert loss < np.log(len(CAPTIONS))


def test_config_written_by_training_is_that_of_the_shipped_checkpoint():
    assert (PHANTOM_CHECKPOINT / "config.yaml").read_text(encoding="utf-8") == CONFIG_YAML


def test_vocabulary_written_by_training_is_that_of_the_shipped_checkpoint(tmp_path):
    write_vocabulary(tmp_path, CAPTIONS)
    written, shipped = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path, TOKENIZER))
    assert written == shipped


@pytest.mark.parametrize("caption", [CAPTIONS[0], CAPTIONS[-1]], ids=["grey", "colour"])
def test_training_pixels_are_those_of_the_served_preprocessing(caption):
    png = io.BytesIO()
    Image.fromarray(phantom(caption, seed=3, size=512).image).save(png, "PNG")
    serve = ImagePreprocessor(
        ImageSettings(
            profile="azure",
            max_encoded_bytes=2**20,
            max_pixels=512 * 512,
            image_size=(480, 480),
            interpolation=Image.Resampling.BICUBIC,
        )
    )
    np.testing.assert_array_equal(served_pixels(caption, 3, (480, 480)), serve([png.getvalue()], {})[0])
