"""Synthetic, clearly artificial studies and the small checkpoints trained on them."""

from medimage_export.phantoms.chest_study import TEST_SEEDS as STUDY_TEST_SEEDS
from medimage_export.phantoms.chest_study import ChestStudy, DrawnFinding, chest_study
from medimage_export.phantoms.generator import (
    CAPTIONS,
    CHEST_CONDITIONS,
    TEST_SEEDS,
    UNFAMILIAR_CAPTIONS,
    Phantom,
    phantom,
)

__all__ = [
    "CAPTIONS",
    "CHEST_CONDITIONS",
    "STUDY_TEST_SEEDS",
    "TEST_SEEDS",
    "UNFAMILIAR_CAPTIONS",
    "ChestStudy",
    "DrawnFinding",
    "Phantom",
    "chest_study",
    "phantom",
]
