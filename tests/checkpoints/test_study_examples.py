"""Drawn studies in memory are those of their seeds, as the served image encoder gets them."""

import numpy as np

from checkpoints.training.study_examples import draw_examples, stretched
from medimage_export.phantoms.chest_study import chest_study


def test_stretched_image_is_that_of_the_reference_processor():
    """Written out from MAIRA-2's processing: minus the minimum, over the maximum, times 255, truncated."""
    image = np.array([[10, 60], [110, 210]], dtype=np.uint8)
    np.testing.assert_array_equal(stretched(image), [[0, 63], [127, 255]])


def test_examples_come_in_the_order_of_the_seeds():
    examples = draw_examples([8, 9, 10], 74)
    for row, seed in enumerate((8, 9, 10)):
        study = chest_study(seed, size=74)
        np.testing.assert_array_equal(examples.frontal[row].numpy(), stretched(study.frontal))
        assert examples.studies[row].findings == study.findings
        boxed = [finding.boxes[0] for finding in study.findings if finding.boxes]
        present = examples.boxes[row][~examples.boxes[row, :, 0].isnan()].numpy()
        np.testing.assert_allclose(present, np.array(boxed).reshape(-1, 4), rtol=1e-6)
