"""The drawings agree with what their captions and boxes say."""

import numpy as np
import pytest

from medimage_export.phantoms import CAPTIONS, CHEST_CONDITIONS, TEST_SEEDS, UNFAMILIAR_CAPTIONS, phantom
from medimage_export.phantoms.generator import TRAIN_SEEDS, VALIDATION_SEEDS

CHEST = "x-ray chest anteroposterior"
CHEST_FINDINGS = [condition for condition in CHEST_CONDITIONS if condition != "No Finding"]
SEEDS = (1, 2, 3)


def change(caption: str, baseline: str, seed: int, size: int = 256) -> np.ndarray:
    """Grey levels that the finding of a caption adds to the same body without it; (size, size) float."""
    with_finding, without = (phantom(c, seed, size=size).image.astype(float) for c in (caption, baseline))
    return with_finding - without


def test_captions_are_unique_and_enough():
    assert len(CAPTIONS) == len(set(CAPTIONS)) >= 16
    assert len(UNFAMILIAR_CAPTIONS) == len({*UNFAMILIAR_CAPTIONS} - {*CAPTIONS}) == 6


@pytest.mark.parametrize("caption", [*CAPTIONS, *UNFAMILIAR_CAPTIONS])
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


@pytest.mark.parametrize("caption", [*CAPTIONS, *UNFAMILIAR_CAPTIONS])
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
