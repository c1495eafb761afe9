"""Drawn studies in memory, as the models are trained on them."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medimage_export.phantoms.chest_study import SENTENCES, ChestStudy, chest_study

LABEL_STEP = 7  # pixels from one label that is kept to the next; divides 518
CHUNK = 8  # studies that a process draws at a time


@dataclass(frozen=True)
class StudyExamples:
    """n studies; S is the size of an image in pixels."""

    frontal: Tensor  # (n, S, S) uint8
    lateral: Tensor  # (n, S, S) uint8
    labels: Tensor  # (n, S / LABEL_STEP, S / LABEL_STEP) uint8, see ChestStudy.labels
    boxes: Tensor  # (n, len(SENTENCES), 4) float32, NaN for what is not there
    studies: list[ChestStudy]  # texts and boxes; their images are empty

    def __len__(self) -> int:
        return len(self.studies)


def draw_examples(seeds: Iterable[int], size: int, *, visit: int = 0, processes: int = 2) -> StudyExamples:
    """Draw in several processes, in the order of the seeds."""
    jobs = [(seed, size, visit) for seed in seeds]
    processes = min(processes, -(-len(jobs) // CHUNK))  # each of which imports torch
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:  # torch has threads
        studies = list(pool.map(_drawn, *zip(*jobs, strict=True), chunksize=CHUNK))
    empty = np.empty((0, 0), dtype=np.uint8)
    return StudyExamples(
        frontal=torch.from_numpy(np.stack([study.frontal for study in studies])),
        lateral=torch.from_numpy(np.stack([study.lateral for study in studies])),
        labels=torch.from_numpy(np.stack([study.labels for study in studies])),
        boxes=torch.from_numpy(np.stack([_boxes(study) for study in studies])),
        studies=[replace(study, frontal=empty, lateral=empty, labels=empty) for study in studies],
    )


def stretched(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image as the served image encoder gets it: its grey values fill 0 .. 255, truncated to whole ones."""
    shifted = image.astype(np.float64) - image.min()
    return (shifted / shifted.max() * 255).astype(np.uint8)


def _drawn(seed: int, size: int, visit: int) -> ChestStudy:
    study = chest_study(seed, size=size, visit=visit)
    return replace(
        study,
        frontal=stretched(study.frontal),
        lateral=stretched(study.lateral),
        labels=study.labels[LABEL_STEP // 2 :: LABEL_STEP, LABEL_STEP // 2 :: LABEL_STEP],
    )


def _boxes(study: ChestStudy) -> NDArray[np.float32]:
    boxes = {finding.sentence: finding.boxes[0] for finding in study.findings if finding.boxes}
    nowhere = (float("nan"),) * 4
    return np.array([boxes.get(sentence, nowhere) for sentence in SENTENCES.values()], dtype=np.float32)
