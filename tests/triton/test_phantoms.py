"""Zero-shot accuracy of the shipped checkpoint on drawings it has not seen, by the client through the whole Triton."""

from io import BytesIO

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from medimage_client import MedImageInsight
from medimage_export.phantoms import CAPTIONS, TEST_SEEDS, phantom

DRAWINGS_PER_CAPTION = 10


def png(image):
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_zero_shot_finds_the_caption_of_unseen_phantoms(triton):
    seeds = list(TEST_SEEDS)[:DRAWINGS_PER_CAPTION]
    drawings = [png(phantom(caption, seed=seed).image) for caption in CAPTIONS for seed in seeds]
    truth = np.repeat(np.arange(len(CAPTIONS)), len(seeds))
    with MedImageInsight(triton.server.url) as client:
        scores = client.classify(drawings, labels=CAPTIONS)
    assert len(CAPTIONS) >= 16
    assert (scores.argmax(axis=1) == truth).mean() >= 0.90
    one_versus_rest = [roc_auc_score(truth == column, scores[:, column]) for column in range(len(CAPTIONS))]
    assert np.mean(one_versus_rest) >= 0.98
