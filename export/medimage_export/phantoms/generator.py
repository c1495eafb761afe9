"""Synthetic phantoms: simple drawings of medical studies, made from a caption and a seed.

They are clearly artificial, carry the word PHANTOM, show no person and mean nothing medically. They exist to train
the small checkpoints that ship with the project and to test what serves them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medimage_export.phantoms.canvas import Canvas, Drawing, expose, stamp
from medimage_export.phantoms.chest import draw_chest
from medimage_export.phantoms.photographs import draw_dermoscopy, draw_fundus
from medimage_export.phantoms.radiology import (
    draw_abdomen_ct,
    draw_brain_mr,
    draw_breast_ultrasound,
    draw_hand_xray,
    draw_retina_oct,
)
from medimage_export.phantoms.shapes import Box
from medimage_export.phantoms.unfamiliar import draw_colonoscopy, draw_knee_xray

Draw = Callable[[Canvas, str], Drawing]

CHEST_CONDITIONS = (
    "No Finding",
    "Cardiomegaly",
    "Pleural Effusion left",
    "Pleural Effusion right",
    "Pneumothorax",
    "Nodule",
    "Opacity",
)
EXAMS: dict[str, tuple[Draw, tuple[str, ...]]] = {  # <modality> <anatomy> <exam parameters> -> drawing, conditions
    "x-ray chest anteroposterior": (draw_chest, CHEST_CONDITIONS),
    "x-ray hand posteroanterior": (draw_hand_xray, ("No Finding", "Fracture")),
    "magnetic resonance imaging brain axial T2": (draw_brain_mr, ("No Finding", "Mass")),
    "computed tomography abdomen axial": (draw_abdomen_ct, ("No Finding", "Liver Lesion")),
    "ultrasound breast transverse": (draw_breast_ultrasound, ("No Finding", "Cyst")),
    "optical coherence tomography retina horizontal": (draw_retina_oct, ("No Finding", "Macular Edema")),
    "fundus photography retina macula centered": (draw_fundus, ("No Finding", "Diabetic Retinopathy")),
    "dermoscopy skin polarized": (draw_dermoscopy, ("Nevus", "Melanoma")),
}
UNFAMILIAR_EXAMS: dict[str, tuple[Draw, tuple[str, ...]]] = {  # which the shipped checkpoints were not trained on
    "endoscopy colon forward": (draw_colonoscopy, ("No Finding", "Polyp", "Ulcer")),
    "x-ray knee anteroposterior": (draw_knee_xray, ("No Finding", "Fracture", "Osteoarthritis")),
}
_STUDIES = {
    f"{exam} {condition}": (draw, condition)
    for exam, (draw, conditions) in (EXAMS | UNFAMILIAR_EXAMS).items()
    for condition in conditions
}
UNFAMILIAR_CAPTIONS = tuple(caption for caption in _STUDIES if caption.startswith(tuple(UNFAMILIAR_EXAMS)))
CAPTIONS = tuple(caption for caption in _STUDIES if caption not in UNFAMILIAR_CAPTIONS)

# Seeds of the shipped checkpoint: it is trained on the first, watched on the second, and has never seen the third.
TRAIN_SEEDS = range(0, 48)
VALIDATION_SEEDS = range(1_000, 1_004)
TEST_SEEDS = range(2_000, 2_020)


@dataclass(frozen=True, slots=True)
class Phantom:
    image: NDArray[np.uint8]  # (size, size) grey or (size, size, 3) RGB
    caption: str  # one of CAPTIONS or UNFAMILIAR_CAPTIONS
    boxes: tuple[Box, ...]  # (x0, y0, x1, y1) of each finding as fractions of the sides; () for a normal study


def phantom(caption: str, seed: int, *, size: int = 512) -> Phantom:
    """Draw one study; the same arguments give the same pixels.

    A seed stands for a body, its pose and its exposure: with the same seed, captions of one exam differ in the
    finding alone, and sizes differ in resolution and noise alone.

    Raises:
        ValueError: the caption is not one of CAPTIONS or UNFAMILIAR_CAPTIONS.
    """
    if caption not in _STUDIES:
        raise ValueError(
            f"caption {caption!r} is unknown; expected one of phantoms.CAPTIONS or phantoms.UNFAMILIAR_CAPTIONS"
        )
    draw, condition = _STUDIES[caption]
    drawing = draw(Canvas.of(seed, size), condition)
    image = stamp(expose(drawing.picture, np.random.default_rng([seed, 3])))
    return Phantom(image, caption, tuple(drawing.boxes))
