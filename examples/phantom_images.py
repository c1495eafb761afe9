"""Drawings that the phantom checkpoint has not seen, with tables of what they show: to try classification, maps and
outliers without a patient's image.

Run: python examples/phantom_images.py FOLDER [SEEDS]

Leaves in FOLDER: images/ with SEEDS (20) drawings of each caption; labels.txt, the captions; truth.csv, what each
drawing shows; images.csv, the same with the exam, to be embedded; reference.csv and reference/, half as many of chest
X-rays again.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from medimage_export.phantoms import CAPTIONS, TEST_SEEDS, phantom
from medimage_export.phantoms.generator import EXAMS

USUAL = "x-ray chest anteroposterior"  # the exam of the reference
REFERENCE_SEED = 3_000  # the first, far from those of training and test


def main(folder: Path, n_seeds: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(TEST_SEEDS.start, TEST_SEEDS.start + n_seeds)
    files = {caption: draw(folder / "images", caption, seeds) for caption in CAPTIONS}
    (folder / "labels.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    write(folder / "truth.csv", ["id", "label"], [[f.name, caption] for caption in CAPTIONS for f in files[caption]])
    rows = [[relative(file), caption, exam_of(caption)] for caption in CAPTIONS for file in files[caption]]
    write(folder / "images.csv", ["image", "label", "exam"], rows)
    usual = [
        file
        for caption in CAPTIONS
        if exam_of(caption) == USUAL
        for file in draw(folder / "reference", caption, range(REFERENCE_SEED, REFERENCE_SEED + n_seeds // 2))
    ]
    write(folder / "reference.csv", ["image"], [[relative(file)] for file in usual])
    print(f"{len(rows)} drawings of {len(CAPTIONS)} captions and {len(usual)} for reference in {folder}")


def draw(folder: Path, caption: str, seeds: Sequence[int]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    files = [folder / f"{caption.replace(' ', '_')}_{seed}.png" for seed in seeds]
    for file, seed in zip(files, seeds, strict=True):
        Image.fromarray(phantom(caption, seed).image).save(file)
    return files


def relative(file: Path) -> str:
    """To the folder that the tables are in."""
    return f"{file.parent.name}/{file.name}"


def exam_of(caption: str) -> str:
    return next(exam for exam, (_, conditions) in EXAMS.items() if caption.removeprefix(f"{exam} ") in conditions)


def write(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 20)
