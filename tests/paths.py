"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
PHANTOM_CHECKPOINT = ROOT / "checkpoints" / "medimageinsight-phantom"
REPORT_CHECKPOINT = ROOT / "checkpoints" / "cxrreportgen-phantom"
