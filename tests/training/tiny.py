"""A model of 64 x 64 pixels, a few drawings, and a configuration: all that a run needs, in a second of a CPU."""

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from safetensors.torch import save_file

from medimage_export.medimageinsight.checkpoint import find_checkpoint, random_model
from medimage_export.medimageinsight.config import read_config
from medimage_export.phantoms import UNFAMILIAR_CAPTIONS, phantom
from tests.paths import PHANTOM_CHECKPOINT

LABELS = UNFAMILIAR_CAPTIONS[1:5]
SPEC = {
    "PATCH_SIZE": [7, 3],
    "PATCH_STRIDE": [4, 2],
    "PATCH_PADDING": [3, 1],
    "PATCH_PRENORM": [False, True],
    "DIM_EMBED": [16, 32],
    "NUM_HEADS": [1, 2],
    "NUM_GROUPS": [1, 2],
    "DEPTHS": [1, 1],
    "WINDOW_SIZE": 12,
}


def write_tiny_checkpoint(folder: Path) -> Path:
    """In the published layout, with random weights and the phantom checkpoint's tokenizer."""
    source = find_checkpoint(PHANTOM_CHECKPOINT)
    document = yaml.safe_load(source.config.read_text())
    document["IMAGE_ENCODER"] |= {"IMAGE_SIZE": [64, 64], "SPEC": SPEC}
    document["LANG_ENCODER"] |= {"WIDTH": 32, "HEADS": 2, "LAYERS": 1}
    shutil.copytree(source.tokenizer, folder / "language_model" / source.tokenizer.name)
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    vocabulary = len(yaml.safe_load((source.tokenizer / "vocab.json").read_text()))
    model = random_model(read_config(folder / "config.yaml", vocab_size=vocabulary))
    (folder / "vision_model").mkdir()
    save_file(model.state_dict(), folder / "vision_model" / "medimageinsigt-v1.0.0.pt")
    return folder


def write_drawings(folder: Path, name: str, seeds: range) -> Path:
    """A table and its images, each label once with each seed."""
    rows = []
    for seed in seeds:
        for label in LABELS:
            rows.append({"image": f"{name}_{label.replace(' ', '_')}_{seed}.png", "label": label})
            Image.fromarray(phantom(label, seed, size=64).image).save(folder / rows[-1]["image"])
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / f"{name}.csv"


def write_config(path: Path, checkpoint: Path, **changes: Any) -> Path:
    """A short run of 6 steps with everything that has dice in it."""
    document: Mapping[str, Any] = {
        "UNICL_MODEL": {"PRETRAINED": str(checkpoint)},
        "INPUTS": {"table": "train.csv", "eval_table": "new.csv"},
        "EVALDATASET_PROMPTS": {},
        "EVALDATASET_NEAREST": {"KNN": 3},
        "IMAGE_ENCODER": {"SPEC": {"DROP_PATH_RATE": 0.2, "ENABLE_CHECKPOINT": True}},
        "MAX_NUM_EPOCHS": 3,
        "TRAIN": {"BATCH_SIZE_TOTAL": 4, "BATCH_SIZE_PER_GPU": 4},
        "START_LEARNING_RATE": 1e-3,
        "GRAD_CLIPPING": 1.0,
        "LR_SCHEDULER_PARAMS": {"warmup_steps": 1},
        "WEIGHT_SMOOTHING": {"decay": 0.5},
        "SAVE_PER_OPTIM_STEPS": 1,
        "EVAL_PER_OPTIM_STEPS": 4,
        "LOG_EVERY": 1,
        "WORKERS": 0,
    }
    path.write_text(yaml.safe_dump({**document, **changes}, sort_keys=False))
    return path
