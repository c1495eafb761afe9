"""Which images a step gets, in which process: decided by seed, epoch and step alone.

So a resumed run goes on with the batch that an undisturbed one would have had, and two processes see together what one
with twice the batch sees. An image is augmented by dice of its own, thrown anew in each epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medimage_client.errors import InvalidInput
from medimage_server.text_tokenizer import TextTokenizer
from medimage_training.augmentation import Pixels, augment
from medimage_training.config import Augmentation
from medimage_training.examples import Example
from medimage_training.images import ServedImages

Place = tuple[int, int]  # epoch, index of the example


@dataclass(frozen=True)
class TrainingBatch:
    """What one process shows at once; B is the batch of one process."""

    pixels: Tensor  # (B, height, width, 3) uint8
    input_ids: Tensor  # (B, T) int64, as the attention mask
    attention_mask: Tensor
    classes: Tensor  # (B,) int64; images and texts of one class are positives

    def to(self, device: torch.device) -> "TrainingBatch":
        return TrainingBatch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def pin_memory(self) -> "TrainingBatch":
        return TrainingBatch(*(tensor.pin_memory() for tensor in vars(self).values()))


@dataclass(frozen=True, kw_only=True)
class Order:
    """Batches of one process, from a step of the run to its end.

    A step takes `total` examples: `each` of every process, as often as it takes. What is left of an epoch is dropped;
    the next epoch mixes anew.
    """

    examples: int
    total: int
    each: int
    processes: int
    process: int
    epochs: int
    seed: int
    shuffle: bool
    first_step: int = 0

    def __post_init__(self) -> None:
        together = self.each * self.processes
        if self.total % together:
            raise InvalidInput(
                f"TRAIN.BATCH_SIZE_TOTAL is {self.total}; expected a multiple of {together}, TRAIN.BATCH_SIZE_PER_GPU "
                f"times {self.processes} processes"
            )
        if self.examples < self.total:
            raise InvalidInput(
                f"{self.examples} training images are fewer than TRAIN.BATCH_SIZE_TOTAL, {self.total}; lower it"
            )

    @property
    def accumulation(self) -> int:
        """Batches of a step in one process."""
        return self.total // (self.each * self.processes)

    @property
    def steps_of_epoch(self) -> int:
        return self.examples // self.total

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_of_epoch

    def __iter__(self) -> Iterator[list[Place]]:
        for step in range(self.first_step, self.steps):
            epoch, within = divmod(step, self.steps_of_epoch)
            if within == 0 or step == self.first_step:
                mixed = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
                order = mixed if self.shuffle else np.arange(self.examples)
            of_step = order[within * self.total : (within + 1) * self.total]
            for batch in of_step.reshape(self.accumulation, self.processes, self.each):
                yield [(epoch, int(index)) for index in batch[self.process]]


class TrainingSet(Dataset[TrainingBatch]):
    """Examples, augmented."""

    def __init__(
        self,
        examples: Sequence[Example],
        images: ServedImages,
        tokenizer: TextTokenizer,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self._examples, self._images, self._augmentation, self._seed = examples, images, augmentation, seed
        names = sorted({example.label for example in examples})
        self._classes = torch.tensor([names.index(example.label) for example in examples])
        self._tokens = tokens_of(tokenizer, [example.text for example in examples])

    def __getitem__(self, places: Sequence[Place]) -> TrainingBatch:
        pixels = np.stack([self._pixels(*place) for place in places])
        rows = torch.tensor([index for _, index in places])
        ids, mask = self._tokens
        return TrainingBatch(torch.from_numpy(pixels), ids[rows], mask[rows], self._classes[rows])

    def _pixels(self, epoch: int, index: int) -> Pixels:
        rng = np.random.default_rng([self._seed, 1, epoch, index])
        return augment(self._images.standardized(self._examples[index]), self._images.size, self._augmentation, rng)


def tokens_of(tokenizer: TextTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts, each (n, T) int64."""
    ids, mask = tokenizer([text.encode() for text in texts])
    return torch.from_numpy(ids), torch.from_numpy(mask)


def loader_of(dataset: TrainingSet, order: Order, *, workers: int, pin_memory: bool) -> DataLoader[TrainingBatch]:
    """Reads batches in processes of its own, some ahead."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if workers else None,  # PyTorch has threads by now, which a fork would lose
    )
