"""Synthetic, clearly artificial studies and the small checkpoint trained on them."""

from medimage_export.phantoms.generator import CAPTIONS, CHEST_CONDITIONS, TEST_SEEDS, Phantom, phantom

__all__ = ["CAPTIONS", "CHEST_CONDITIONS", "TEST_SEEDS", "Phantom", "phantom"]
