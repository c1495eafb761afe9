"""Zero-shot accuracy of the shipped checkpoint on drawings it has not seen, by the client through the whole Triton."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medimage_client import MedImageInsight
from medimage_export.phantoms import CAPTIONS, TEST_SEEDS, phantom
from tests.amounts import amounts


def png(image):
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("drawings_per_caption", amounts(2, 10))
def test_zero_shot_finds_the_caption_of_unseen_phantoms(triton, drawings_per_caption):
    seeds = list(TEST_SEEDS)[:drawings_per_caption]
    drawings = [png(phantom(caption, seed=seed).image) for caption in CAPTIONS for seed in seeds]
    truth = np.repeat(np.arange(len(CAPTIONS)), len(seeds))
    with MedImageInsight(triton.server.url) as client:
        scores = client.classify(drawings, labels=CAPTIONS)
    assert len(CAPTIONS) >= 16
    assert (scores.argmax(axis=1) == truth).mean() >= 0.90
    one_versus_rest = [roc_auc_score(truth == column, scores[:, column]) for column in range(len(CAPTIONS))]
    assert np.mean(one_versus_rest) >= 0.98
