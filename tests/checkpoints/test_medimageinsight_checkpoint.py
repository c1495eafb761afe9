"""The shipped checkpoint has the published layout and knows drawings that it has never seen."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from transformers import CLIPTokenizer

from checkpoints.training.medimageinsight import served_pixels, tokenize
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.phantoms import CAPTIONS, TEST_SEEDS
from tests.amounts import amounts
from tests.paths import PHANTOM_CHECKPOINT


@pytest.fixture(scope="module")
def model():
    return load_model(find_checkpoint(PHANTOM_CHECKPOINT))


def test_checkpoint_loads_strictly_and_is_small(model):
    assert model.config.image.image_size == (480, 480) and model.config.projection_dim == 1024
    assert sum(path.stat().st_size for path in PHANTOM_CHECKPOINT.rglob("*") if path.is_file()) < 5_000_000


def test_checkpoint_has_tensor_names_of_the_published_one(shared_data):
    rows = (shared_data / "medimageinsight_state_dict.tsv").read_text().splitlines()
    published = {row.split("\t")[0] for row in rows}
    assert load_file(find_checkpoint(PHANTOM_CHECKPOINT).weights).keys() < published


def test_vocabulary_ends_with_the_special_tokens_and_holds_every_caption_word():
    vocabulary = json.loads((find_checkpoint(PHANTOM_CHECKPOINT).tokenizer / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert [vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]] == [len(vocabulary) - 2, len(vocabulary) - 1]
    words = {word for caption in CAPTIONS for word in caption.lower().replace("-", " ").split() if word.isalpha()}
    assert {f"{word}</w>" for word in words} <= vocabulary.keys()


def test_tokenizer_files_give_the_ids_of_the_transformers_clip_tokenizer():
    folder = find_checkpoint(PHANTOM_CHECKPOINT).tokenizer
    reference = CLIPTokenizer.from_pretrained(folder)
    expected = reference(list(CAPTIONS), padding="max_length", max_length=77)["input_ids"]
    assert tokenize(CAPTIONS, folder, 77).input_ids.tolist() == expected


@pytest.mark.parametrize("n_each", amounts(1, 3))
def test_checkpoint_classifies_unseen_phantoms(model, n_each):
    """On two more of each the precisions are compared with one another."""
    config = model.config
    tokens = tokenize(CAPTIONS, find_checkpoint(PHANTOM_CHECKPOINT).tokenizer, config.text.context_length)
    mean, std = torch.tensor(config.image.image_mean), torch.tensor(config.image.image_std)
    labels = np.tile(np.arange(len(CAPTIONS)), n_each)
    probabilities = []
    with torch.no_grad():
        texts = model.encode_text(tokens.input_ids, tokens.attention_mask)
        for seed in TEST_SEEDS[:n_each]:
            pixels = np.stack([served_pixels(caption, seed, config.image.image_size) for caption in CAPTIONS])
            images = model.encode_image(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2))
            probabilities += (model.logit_scale.exp() * images @ texts.T).softmax(dim=1).tolist()
    assert (np.argmax(probabilities, axis=1) == labels).mean() >= 0.90
    assert roc_auc_score(labels, probabilities, average="macro", multi_class="ovr") >= 0.98
