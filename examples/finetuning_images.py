"""Drawings to fine-tune the phantom checkpoint with: six captions that it does not know, and the 21 that it knows.

Run: python examples/finetuning_images.py FOLDER [SEEDS]

Leaves in FOLDER: images/; train.csv, SEEDS (12) drawings of each new caption and a quarter as many of each old one, so
that these are not forgotten; new.csv and old.csv, drawings of other seeds to evaluate with; train.yaml, for `medimage
finetune`; and the new captions once more as Azure's files: train_images.tsv, train_text.tsv and labels.txt.
"""

import base64
import csv
import json
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from medimage_export.phantoms import CAPTIONS, UNFAMILIAR_CAPTIONS, phantom

TRAIN_SEED, EVALUATION_SEED = 10_000, 20_000  # the first of each, far from those of the checkpoint
CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "medimageinsight-phantom"
# The rates are those of a small model; docs/finetuning.md has those of Microsoft's for the published one.
CONFIG = """\
SAVE_DIR: finetuned
UNICL_MODEL: {{PRETRAINED: {checkpoint}}}
INPUTS: {{table: train.csv}}
EVALDATASET_NEW: {{EVAL_TABLE: new.csv}}
EVALDATASET_OLD: {{EVAL_TABLE: old.csv}}

MAX_NUM_EPOCHS: 10
TRAIN: {{BATCH_SIZE_TOTAL: 12, BATCH_SIZE_PER_GPU: 12}}
START_LEARNING_RATE: 0.001
LR_SCHEDULER_PARAMS: {{warmup_steps: 5}}
OPTIMIZER_PARAMS: {{weight_decay: 0.05}}
GRAD_CLIPPING: 1.0
WEIGHT_SMOOTHING: {{decay: 0.9}}
CUSTOMIZED_PARAMS_CONF:
  NO_WEIGHT_DECAY_MODULES: [dw, norm]
  WEIGHT_DECAY_PATTERNS: {{"\\\\.bias$": 0.0, logit_scale: 0.0, positional_embedding: 0.0, token_embedding: 0.0}}
AUG:
  SCALE: [0.9, 1.0]
  TORCHVISION_AUG: {{AUTO_AUGMENT: "", RE_PROB: 0.0}} # a small model learns little of strongly changed drawings
EVAL_PER_OPTIM_STEPS: 55
SAVE_PER_OPTIM_STEPS: 55
WORKERS: 0
"""


def main(folder: Path, n_seeds: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    seeds, fewer = (range(TRAIN_SEED, TRAIN_SEED + n) for n in (n_seeds, max(n_seeds // 4, 1)))
    unseen = range(EVALUATION_SEED, EVALUATION_SEED + max(n_seeds // 4, 1))
    of_new = rows(folder, UNFAMILIAR_CAPTIONS, seeds)
    write(folder / "train.csv", [*of_new, *rows(folder, CAPTIONS, fewer)])
    write(folder / "new.csv", rows(folder, UNFAMILIAR_CAPTIONS, unseen))
    write(folder / "old.csv", rows(folder, CAPTIONS, unseen))
    (folder / "train.yaml").write_text(CONFIG.format(checkpoint=CHECKPOINT))
    write_tsv(folder, of_new)
    print(f"{len(list((folder / 'images').iterdir()))} drawings in {folder}")


def rows(folder: Path, captions: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Draw each caption with each seed; returns the path of each drawing, in the folder, and its caption."""
    found = []
    for caption in captions:
        for seed in seeds:
            found.append((f"images/{caption.replace(' ', '_')}_{seed}.png", caption))
            Image.fromarray(phantom(caption, seed).image).save(folder / found[-1][0], compress_level=1)
    return found


def write(path: Path, content: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "label"), *content])


def write_tsv(folder: Path, content: Sequence[tuple[str, str]]) -> None:
    """As Microsoft's notebook writes them: JPEG of 512 x 512 at quality 95, and JSON."""
    with (folder / "train_images.tsv").open("w") as images, (folder / "train_text.tsv").open("w") as texts:
        for name, caption in content:
            jpeg = BytesIO()
            Image.open(folder / name).resize((512, 512)).convert("RGB").save(jpeg, "JPEG", quality=95)
            images.write(f"{name}\t{base64.b64encode(jpeg.getvalue()).decode()}\n")
            said = {"class_id": UNFAMILIAR_CAPTIONS.index(caption), "class_name": caption}
            texts.write(f"{name}\t{json.dumps(said | {'source': 'phantoms', 'task': 'classification'})}\n")
    (folder / "labels.txt").write_text("".join(f"{caption}\n" for caption in UNFAMILIAR_CAPTIONS))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 12)
