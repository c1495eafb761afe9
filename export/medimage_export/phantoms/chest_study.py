"""Chest studies: a frontal and a lateral view of one drawn body, with the report that describes them.

A report goes through the structures in a fixed order and says of each what is there, or that nothing is.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medimage_export.phantoms.canvas import Canvas, expose, stamp
from medimage_export.phantoms.chest import draw_enlargement, draw_finding, draw_heart, draw_lateral, draw_thorax
from medimage_export.phantoms.shapes import Array, Box, bounding_box

# (kind, patient's side) of what may be found -> its sentence, in the order of the report
SENTENCES: dict[tuple[str, str], str] = {
    ("Cardiomegaly", ""): "The heart is enlarged.",
    ("Pleural Effusion", "left"): "There is a left pleural effusion.",
    ("Pleural Effusion", "right"): "There is a right pleural effusion.",
    ("Pneumothorax", "left"): "There is a left pneumothorax.",
    ("Pneumothorax", "right"): "There is a right pneumothorax.",
    ("Nodule", "left"): "There is a nodule in the left lung.",
    ("Nodule", "right"): "There is a nodule in the right lung.",
    ("Opacity", "left"): "There is an opacity in the left lung.",
    ("Opacity", "right"): "There is an opacity in the right lung.",
}
STRUCTURES: tuple[tuple[str, tuple[str, ...]], ...] = (  # sentence of a normal structure, what may be found there
    ("The heart size is normal.", ("Cardiomegaly",)),
    ("There is no pleural effusion.", ("Pleural Effusion",)),
    ("There is no pneumothorax.", ("Pneumothorax",)),
    ("The lungs are clear.", ("Nodule", "Opacity")),
)
SEVERAL = (0.15, 0.30, 0.35, 0.20)  # share of studies with 0, 1, 2 and 3 findings

INDICATIONS = ("Cough.", "Fever.", "Shortness of breath.", "Chest pain.", "Pneumonia", "Preoperative evaluation.", "")
TECHNIQUES = ("One view chest.", "PA and lateral views of the chest.", "AP portable chest radiograph.", "")
COMPARISONS = ("None.", "None", "Chest radiograph of the previous week.", "")

# Seeds of the shipped checkpoint: it is trained on the first, watched on the second, and has never seen the third.
TRAIN_SEEDS = range(10_000, 13_000)
VALIDATION_SEEDS = range(20_000, 20_040)
TEST_SEEDS = range(30_000, 30_100)


class DrawnFinding(NamedTuple):
    sentence: str
    boxes: tuple[Box, ...]  # (x0, y0, x1, y1) as fractions of the frontal view's sides; () for a normal structure


@dataclass(frozen=True, slots=True)
class ChestStudy:
    frontal: NDArray[np.uint8]  # (size, size) grey
    lateral: NDArray[np.uint8]  # (size, size) grey
    labels: NDArray[np.uint8]  # (size, size): 0, or 1 + index into SENTENCES of the finding that a frontal pixel shows
    findings: tuple[DrawnFinding, ...]
    indication: str
    technique: str
    comparison: str


def chest_study(seed: int, *, size: int = 518, visit: int = 0) -> ChestStudy:
    """Draw one study; the same arguments give the same pixels and texts.

    A seed stands for a body and its pose, as in `phantom`. At another visit it has other findings and another exposure.
    """
    canvas, dice = Canvas.of(seed, size), np.random.default_rng([seed, 4, visit])
    masks: dict[tuple[str, str], Array] = {}
    found = _choose(dice)
    picture, lungs = draw_thorax(canvas.grid, canvas.anatomy)
    enlargement = draw_enlargement(dice) if ("Cardiomegaly", "") in found else 1.0
    heart = draw_heart(picture, canvas.grid, canvas.anatomy, lungs, enlargement)
    for kind, side in found:
        if kind == "Cardiomegaly":
            masks[kind, side] = heart
        else:
            masks[kind, side] = draw_finding(picture, canvas.grid, dice, lungs, kind, side)
    lateral = draw_lateral(canvas.grid, canvas.anatomy, enlargement, {kind: mask for (kind, _), mask in masks.items()})
    return ChestStudy(
        frontal=stamp(expose(picture, np.random.default_rng([seed, 5, visit]))),
        lateral=stamp(expose(lateral, np.random.default_rng([seed, 6, visit]))),
        labels=_label(masks, size),
        findings=_report({key: bounding_box(mask) for key, mask in masks.items()}),
        indication=str(dice.choice(INDICATIONS)),
        technique=str(dice.choice(TECHNIQUES)),
        comparison=str(dice.choice(COMPARISONS)),
    )


def _choose(dice: np.random.Generator) -> list[tuple[str, str]]:
    """What is found, in the order of the report.

    A kind comes once but for effusions, which may be on both sides. What would hide another stays away from it: a
    nodule and an opacity, or an effusion and a pneumothorax, are not on the same side.
    """
    candidates = list(SENTENCES)
    found: list[tuple[str, str]] = []
    for _ in range(dice.choice(len(SEVERAL), p=SEVERAL)):
        chosen = candidates[dice.integers(len(candidates))]
        found.append(chosen)
        candidates = [other for other in candidates if other != chosen and not _excluded(*chosen, *other)]
    return [key for key in SENTENCES if key in found]


def _excluded(kind: str, side: str, other_kind: str, other_side: str) -> bool:
    if kind == other_kind:
        return kind != "Pleural Effusion"
    hiding = ({"Nodule", "Opacity"}, {"Pleural Effusion", "Pneumothorax"})
    return side == other_side and {kind, other_kind} in hiding


def _label(masks: dict[tuple[str, str], Array], size: int) -> NDArray[np.uint8]:
    """The smallest finding has a pixel that several show."""
    labels = np.zeros((size, size), dtype=np.uint8)
    numbers = {key: number for number, key in enumerate(SENTENCES, start=1)}
    for key in sorted(masks, key=lambda key: -masks[key].sum()):
        labels[masks[key] > 0.3] = numbers[key]
    return labels


def _report(boxes: dict[tuple[str, str], Box]) -> tuple[DrawnFinding, ...]:
    findings: list[DrawnFinding] = []
    for normal, kinds in STRUCTURES:
        abnormal = [DrawnFinding(SENTENCES[key], (box,)) for key, box in boxes.items() if key[0] in kinds]
        findings += abnormal or [DrawnFinding(normal, ())]
    return tuple(findings)
