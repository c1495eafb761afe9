"""Train the phantom checkpoint: UniCL at 0.2 % of its size, on drawings.

    python -m checkpoints.training.medimageinsight --output checkpoints/medimageinsight-phantom

Seeded, on the CPU with two threads; 16 minutes on two busy cores. The checkpoint's README has its scores.
"""

import io
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoints.training.clip_vocabulary import write_vocabulary
from medimage_export.medimageinsight.config import MedImageInsightConfig, read_config
from medimage_export.medimageinsight.reference import ImageEncoderReference, UniCL
from medimage_export.medimageinsight.tokenizer import build_tokenizer
from medimage_export.phantoms.generator import CAPTIONS, TRAIN_SEEDS, VALIDATION_SEEDS, phantom

THREADS = 2
EPOCHS = 24
BATCH = 24
LEARNING_RATE = 2e-3
WARMUP_STEPS = 30
SEPARATION_STEPS = 30  # after them no two captions have a cosine above about 0.25
MAX_LOGIT_SCALE = float(np.log(100))  # the bound of CLIP's training

# The keys of the published 2024.09.27/config.yaml that describe the model. Smaller are the widths, the depths, and the
# first grid (stride 16, not 4: 30 x 30 tokens), which makes training at 480 x 480 a matter of minutes.
CONFIG_YAML = """\
IMAGE_ENCODER:
  NAME: davit_v1
  NUM_CLASSES: 0
  IMAGE_SIZE: [480, 480]
  IMAGE_MEAN: [0.485, 0.456, 0.406]
  IMAGE_STD: [0.229, 0.224, 0.225]
  SPEC:
    DROP_RATE: 0.0
    DROP_PATH_RATE: 0.0
    PATCH_SIZE: [19, 3, 3, 3]
    PATCH_STRIDE: [16, 2, 2, 2]
    PATCH_PADDING: [9, 1, 1, 1]
    PATCH_PRENORM: [false, true, true, true]
    DIM_EMBED: [32, 64, 64, 96]
    NUM_HEADS: [1, 2, 2, 3]
    NUM_GROUPS: [1, 2, 2, 3]
    DEPTHS: [1, 1, 1, 1]
    WINDOW_SIZE: 12
    ENABLE_CHECKPOINT: false

LANG_ENCODER:
  NAME: transformer
  TOKENIZER: clip
  CONTEXT_LENGTH: 77
  WIDTH: 96
  HEADS: 6
  LAYERS: 2
  AUTOGRESSIVE: false

UNICL_MODEL:
  DIM_PROJECTION: 1024

AUG:
  INTERPOLATION: bicubic

TEST:
  CENTER_CROP: false
"""


@dataclass(frozen=True)
class Examples:
    pixels: Tensor  # (n, 480, 480, 3) uint8
    labels: Tensor  # (n,) int64, index into CAPTIONS


@dataclass(frozen=True)
class Tokens:
    """CAPTIONS, tokenized; both (captions, 77) int64."""

    input_ids: Tensor
    attention_mask: Tensor


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the checkpoint to write.")
def main(output: Path) -> None:
    """Train the phantom checkpoint and write it in the published layout."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    tokenizer_folder = output / "language_model" / "clip_tokenizer_4.16.2"
    vocab_size = write_vocabulary(tokenizer_folder, CAPTIONS)
    (output / "config.yaml").write_text(CONFIG_YAML, encoding="utf-8")
    config = read_config(output / "config.yaml", vocab_size=vocab_size)

    tokens = tokenize(CAPTIONS, tokenizer_folder, config.text.context_length)
    training, validation = (draw_examples(seeds, config.image.image_size) for seeds in (TRAIN_SEEDS, VALIDATION_SEEDS))
    model = train(config, training, validation, tokens)

    weights = output / "vision_model" / "medimageinsigt-v1.0.0.pt"  # the published name, typing error and all
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), weights)


def tokenize(captions: Sequence[str], folder: Path, context_length: int) -> Tokens:
    encodings = build_tokenizer(folder, context_length).encode_batch(list(captions))
    return Tokens(torch.tensor([e.ids for e in encodings]), torch.tensor([e.attention_mask for e in encodings]))


def draw_examples(seeds: Iterable[int], image_size: tuple[int, int]) -> Examples:
    """Every caption with every seed, seed by seed."""
    jobs = [(caption, seed, image_size) for seed in seeds for caption in CAPTIONS]
    with ProcessPoolExecutor(THREADS, mp_context=multiprocessing.get_context("spawn")) as pool:  # torch has threads
        pixels = np.stack(list(pool.map(served_pixels, *zip(*jobs, strict=True), chunksize=21)))
    return Examples(torch.from_numpy(pixels), torch.arange(len(CAPTIONS)).repeat(len(jobs) // len(CAPTIONS)))


def served_pixels(caption: str, seed: int, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """A phantom as the served image encoder gets it: 512 x 512, JPEG at quality 75, the model's size; (H, W, 3)."""
    standardised = io.BytesIO()
    Image.fromarray(phantom(caption, seed, size=512).image).convert("RGB").save(standardised, "JPEG", quality=75)
    height, width = image_size
    return np.asarray(Image.open(standardised).resize((width, height), Image.Resampling.BICUBIC))


def untrained(config: MedImageInsightConfig) -> UniCL:
    """The model with random weights, also where its modules leave them to a checkpoint."""
    model = UniCL(config)
    nn.init.normal_(model.lang_encoder.token_embedding.weight)
    nn.init.normal_(model.lang_encoder.positional_embedding, std=0.01)
    return model


def train(config: MedImageInsightConfig, training: Examples, validation: Examples, tokens: Tokens) -> UniCL:
    model = untrained(config)
    separate_captions(model, tokens)
    steps = EPOCHS * (len(training.labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=WARMUP_STEPS / steps, cycle_momentum=False
    )
    for epoch in range(EPOCHS):
        losses = []
        for pixels, labels in _batches(training):
            loss = unicl_loss(model, _re_exposed(pixels), labels, tokens)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
            losses.append(loss.item())
        accuracy = top1(model, validation, tokens)
        click.echo(f"epoch {epoch + 1:>2}/{EPOCHS}  loss {np.mean(losses):.3f}  validation top-1 {accuracy:.3f}")
    return model


def separate_captions(model: UniCL, tokens: Tokens) -> None:
    """Pull the captions' vectors apart before any image is shown.

    Captions of one exam start with cosines of 0.95 and more. Trained on both sides at once, images and texts wait for
    each other: while two texts are one, no gradient tells their images apart, and the reverse.
    """
    torch.nn.init.normal_(model.lang_encoder.token_embedding.weight, std=0.02)  # as CLIP: the attention counts more
    optimizer = torch.optim.AdamW(model.lang_encoder.parameters(), lr=1e-3)
    for _ in range(SEPARATION_STEPS):
        texts = model.encode_text(tokens.input_ids, tokens.attention_mask)
        loss = F.cross_entropy(10 * texts @ texts.T, torch.arange(len(texts)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def unicl_loss(model: UniCL, pixels: Tensor, labels: Tensor, tokens: Tokens) -> Tensor:
    """Contrast images with texts, both ways; pairs of the same caption are all positives.

    Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", https://arxiv.org/abs/2204.03610.
    """
    images, _ = ImageEncoderReference(model)(pixels)
    texts = model.encode_text(tokens.input_ids, tokens.attention_mask)[labels]  # each caption is encoded once
    logits = model.logit_scale.exp() * images @ texts.T  # (B, B)
    positives = (labels[:, None] == labels[None, :]).float()
    targets = positives / positives.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@torch.no_grad()
def top1(model: UniCL, examples: Examples, tokens: Tokens) -> float:
    """Share of images whose nearest caption is their own."""
    texts = model.encode_text(tokens.input_ids, tokens.attention_mask)
    batches = zip(examples.pixels.split(BATCH), examples.labels.split(BATCH), strict=True)
    encode = ImageEncoderReference(model)
    hits = [(encode(pixels)[0] @ texts.T).argmax(dim=1) == labels for pixels, labels in batches]
    return torch.cat(hits).float().mean().item()


def _batches(examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    """Bodies in random order, the captions of a body side by side: alike but for the finding, they teach most."""
    bodies = torch.randperm(len(examples.labels) // len(CAPTIONS))
    order = (bodies[:, None] * len(CAPTIONS) + torch.arange(len(CAPTIONS))).flatten()
    for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
        yield examples.pixels[chosen], examples.labels[chosen]


def _re_exposed(pixels: Tensor) -> Tensor:
    """Change contrast and brightness a little, image by image; pixels in 0 .. 255, now float."""
    gain, offset = torch.empty(2, len(pixels), 1, 1, 1).uniform_(-1, 1)
    return (pixels * (1 + 0.15 * gain) + 10 * offset).clamp(0, 255)


if __name__ == "__main__":
    main()
