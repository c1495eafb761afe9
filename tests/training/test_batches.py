"""Which images a step gets, what they are put through, and the scores of an evaluation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medimage_client.errors import InvalidInput
from medimage_client.labels.predictions import predictions_of
from medimage_client.labels.scores import evaluate
from medimage_training.augmentation import CHANGES, GREY, augment
from medimage_training.batches import Order
from medimage_training.config import Augmentation
from medimage_training.evaluation import scores_of

ORDER = Order(examples=50, total=12, each=3, processes=2, process=0, epochs=2, seed=1, shuffle=True)
PLAIN = Augmentation(scale=(1, 1), ratio=(1, 1), trivial_augment=False, erasing=0)
NOISE = np.random.default_rng(0).integers(40, 200, (12, 12, 3), dtype=np.uint8)  # colours, and no black nor white
DRAWING = Image.fromarray(NOISE).resize((96, 96), Image.Resampling.BILINEAR)


def test_processes_together_get_what_one_gets():
    alone = [*Order(**{**vars(ORDER), "each": 6, "processes": 1})]
    first, second = [*ORDER], [*replace(ORDER, process=1)]
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    epochs = {epoch: [place for batch in alone for place in batch if place[0] == epoch] for epoch in (0, 1)}
    assert all(len({index for _, index in places}) == 48 for places in epochs.values())  # none twice
    assert [index for _, index in epochs[0]] != [index for _, index in epochs[1]]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_order_goes_on_where_a_run_stopped(step):
    assert [*replace(ORDER, first_step=step)] == [*itertools.islice(ORDER, step * ORDER.accumulation, None)]


def test_batch_that_does_not_suit_is_refused():
    with pytest.raises(InvalidInput, match="BATCH_SIZE_TOTAL is 12; expected a multiple of 15"):
        replace(ORDER, processes=5)
    with pytest.raises(InvalidInput, match=r"9 training images are fewer than TRAIN.BATCH_SIZE_TOTAL, 12"):
        replace(ORDER, examples=9)


def test_without_augmentation_an_image_is_resized_alone():
    resized = np.asarray(DRAWING.resize((64, 48), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(augment(DRAWING, (48, 64), PLAIN, np.random.default_rng(0)), resized)


def test_flips_and_erasing_do_what_they_are_called():
    pixels = np.asarray(DRAWING)
    flipped = augment(DRAWING, (96, 96), replace(PLAIN, horizontal_flip=1, vertical_flip=1), np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, pixels[::-1, ::-1])
    for seed in range(20):
        erased = augment(DRAWING, (96, 96), replace(PLAIN, erasing=1), np.random.default_rng(seed))
        rows, columns = np.nonzero((erased != pixels).any(axis=2))
        rectangle = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (rectangle == GREY).all() and 0.015 < rectangle.size / erased.size < 0.35


@pytest.mark.parametrize("seed", range(5))
def test_crop_has_the_area_and_shape_that_were_asked_for(seed):
    """Told from where in a ramp the corners were taken."""
    x, y = np.meshgrid(np.arange(200, dtype=np.uint8), np.arange(200, dtype=np.uint8))
    ramp = Image.fromarray(np.dstack([x, y, x]))
    options = replace(PLAIN, scale=(0.25, 0.25), ratio=(0.5, 0.5))
    pixels = augment(ramp, (100, 100), options, np.random.default_rng(seed)).astype(int)
    width, height = pixels[50, -1, 0] - pixels[50, 0, 0], pixels[-1, 50, 1] - pixels[0, 50, 1]
    assert width == pytest.approx(200 * 0.5 * 0.5**0.5, abs=3) and height == pytest.approx(100 * 2**0.5, abs=3)


@pytest.mark.parametrize("number", range(1, len(CHANGES)))
def test_each_change_grows_with_its_strength_and_keeps_the_size(number):
    weak, strong = (np.asarray(CHANGES[number](DRAWING, s, 1.0)).astype(int) for s in (0.1, 1.0))
    assert weak.shape == strong.shape == (96, 96, 3)
    away = [np.abs(pixels - np.asarray(DRAWING)).mean() for pixels in (weak, strong)]
    assert away[1] >= away[0] and away[1] > 0


def test_scores_are_those_of_the_clients_evaluation():
    rng = np.random.default_rng(0)
    similarities, truth = rng.standard_normal((60, 4)), np.arange(60) % 4
    expected = evaluate(predictions_of([*map(str, range(60))], [*"abcd"], similarities), truth.tolist(), samples=0)
    found = scores_of(similarities, truth)
    assert found.accuracy == pytest.approx(expected.overall["accuracy"].value)
    assert found.balanced_accuracy == pytest.approx(expected.overall["balanced_accuracy"].value)
    assert found.mauc == pytest.approx(expected.overall["mauc"].value)
    np.testing.assert_array_equal(found.confusion, expected.confusion)


def test_label_without_an_image_is_a_wrong_answer_and_no_more():
    found = scores_of(np.array([[0.9, 0.1, 0.0], [0.0, 0.1, 0.9]]), np.array([0, 1]))
    assert (found.accuracy, found.balanced_accuracy, found.mauc) == (0.5, 0.5, pytest.approx(0.75))
