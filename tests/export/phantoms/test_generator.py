"""The drawings agree with what their captions and boxes say, and the shipped checkpoint knows them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from transformers import CLIPTokenizer

from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_export.phantoms import CAPTIONS, CHEST_CONDITIONS, TEST_SEEDS, phantom
from medimage_export.phantoms.generator import TRAIN_SEEDS, VALIDATION_SEEDS
from medimage_export.phantoms.medimageinsight_training import served_pixels, tokenize
from tests.paths import PHANTOM_CHECKPOINT

CHEST = "x-ray chest anteroposterior"
CHEST_FINDINGS = [condition for condition in CHEST_CONDITIONS if condition != "No Finding"]
SEEDS = (1, 2, 3)


def change(caption: str, baseline: str, seed: int, size: int = 256) -> np.ndarray:
    """Grey levels that the finding of a caption adds to the same body without it; (size, size) float."""
    with_finding, without = (phantom(c, seed, size=size).image.astype(float) for c in (caption, baseline))
    return with_finding - without


def test_captions_are_unique_and_enough():
    assert len(CAPTIONS) == len(set(CAPTIONS)) >= 16


@pytest.mark.parametrize("caption", CAPTIONS)
def test_phantom_of_the_same_seed_is_the_same_and_of_another_is_not(caption):
    first, again, other = (phantom(caption, seed, size=96) for seed in (5, 5, 6))
    assert first.image.tobytes() == again.image.tobytes() and first.boxes == again.boxes
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize("size", [64, 333, 1024])
@pytest.mark.parametrize("exam", ["x-ray chest anteroposterior Nodule", "dermoscopy skin polarized Nevus"])
def test_phantom_has_the_size_asked_for(exam, size):
    image = phantom(exam, 0, size=size).image
    assert image.shape[:2] == (size, size) and image.dtype == np.uint8


def test_phantom_at_another_size_shows_the_same_body():
    small, large = (phantom(f"{CHEST} Opacity", 3, size=size) for size in (128, 512))
    np.testing.assert_allclose(small.boxes, large.boxes, atol=2 / 128)
    averaged = large.image.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.corrcoef(averaged.ravel(), small.image.ravel().astype(float))[0, 1] > 0.98


def test_phantom_refuses_an_unknown_caption():
    with pytest.raises(ValueError, match="'x-ray chest' is unknown; expected one of"):
        phantom("x-ray chest", 0)


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_lie_inside_the_picture(caption, seed):
    for x0, y0, x1, y1 in phantom(caption, seed, size=128).boxes:
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@pytest.mark.parametrize("condition", CHEST_FINDINGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_chest_box_covers_the_finding_and_little_else(condition, seed):
    difference = np.abs(change(f"{CHEST} {condition}", f"{CHEST} No Finding", seed)) > 2
    ((x0, y0, x1, y1),) = (np.array(box) * 256 for box in phantom(f"{CHEST} {condition}", seed, size=256).boxes)
    inside = difference[round(y0) : round(y1), round(x0) : round(x1)]
    assert inside.sum() == difference.sum() > 100
    if condition != "Cardiomegaly":  # whose box also holds the heart that was there before
        rows, columns = np.nonzero(difference)
        np.testing.assert_allclose([x0, y0, x1, y1], [columns.min(), rows.min(), columns.max(), rows.max()], atol=8)


def test_chest_without_finding_has_no_box():
    assert phantom(f"{CHEST} No Finding", 0, size=64).boxes == ()


@pytest.mark.parametrize(("side", "image_half"), [("left", slice(128, 256)), ("right", slice(0, 128))])
@pytest.mark.parametrize("seed", SEEDS)
def test_effusion_brightens_the_lower_half_of_the_patients_side(side, image_half, seed):
    added = change(f"{CHEST} Pleural Effusion {side}", f"{CHEST} No Finding", seed)
    lower_on_side = added[96:, image_half].sum()
    assert lower_on_side > 0.95 * np.abs(added).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_pneumothorax_darkens_and_nodule_brightens(seed):
    assert change(f"{CHEST} Pneumothorax", f"{CHEST} No Finding", seed).sum() < 0
    assert change(f"{CHEST} Nodule", f"{CHEST} No Finding", seed).min() >= 0


def test_seeds_of_training_validation_and_test_are_disjoint():
    seeds = [*TRAIN_SEEDS, *VALIDATION_SEEDS, *TEST_SEEDS]
    assert len(seeds) == len(set(seeds))


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


def test_checkpoint_classifies_unseen_phantoms(model):
    config = model.config
    tokens = tokenize(CAPTIONS, find_checkpoint(PHANTOM_CHECKPOINT).tokenizer, config.text.context_length)
    mean, std = torch.tensor(config.image.image_mean), torch.tensor(config.image.image_std)
    labels = np.tile(np.arange(len(CAPTIONS)), 3)
    probabilities = []
    with torch.no_grad():
        texts = model.encode_text(tokens.input_ids, tokens.attention_mask)
        for seed in TEST_SEEDS[:3]:
            pixels = np.stack([served_pixels(caption, seed, config.image.image_size) for caption in CAPTIONS])
            images = model.encode_image(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2))
            probabilities += (model.logit_scale.exp() * images @ texts.T).softmax(dim=1).tolist()
    assert (np.argmax(probabilities, axis=1) == labels).mean() >= 0.90
    assert roc_auc_score(labels, probabilities, average="macro", multi_class="ovr") >= 0.98
