"""Labels of a zero-shot classification: each is one text, or several whose embeddings are averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.embeddings import Embeddings
from medimage_client.errors import InvalidInput
from medimage_client.schema.table import check_text

Labels = Sequence[str] | Mapping[str, Sequence[str]]  # texts, or by a label's name its prompts


@dataclass(frozen=True, slots=True)
class Prompts:
    """The texts of all labels, one after the other."""

    texts: list[str]
    places: list[str]  # of each text, for errors
    label_of: list[int]  # of each text, the index of its label

    def by_label(self, features: Embeddings) -> NDArray[np.floating[Any]]:
        """From embeddings of the texts (texts, 1024) to those of the labels (labels, 1024), L2-normalised.

        A label with several prompts has the direction of their mean, as CLIP's prompt ensembles do; one prompt's
        embedding stays as it is, to the last bit.
        """
        n_labels = self.label_of[-1] + 1
        if n_labels == len(self.texts):
            return features
        sums = np.zeros((n_labels, features.shape[1]))
        np.add.at(sums, self.label_of, features)
        directions: NDArray[np.floating[Any]] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return directions


def read_prompts(labels: Labels, template: str) -> Prompts:
    """The prompts of labels, each in the place of `{}` in the template.

    Raises:
        InvalidInput: labels or a label's prompts are empty or no list, one is no text, or the template has no `{}`.
    """
    if isinstance(labels, Mapping):
        for label, prompts in labels.items():
            check_list(prompts, f"labels[{label!r}]")
            if not prompts:
                raise InvalidInput(f"labels[{label!r}] is empty; expected at least one prompt")
        placed = [
            [(f"labels[{label!r}][{i}]", prompt) for i, prompt in enumerate(prompts)]
            for label, prompts in labels.items()
        ]
    else:
        check_list(labels, "labels")
        placed = [[(f"labels[{i}]", label)] for i, label in enumerate(labels)]
    if not placed:
        raise InvalidInput("labels is empty; expected at least one label")
    if "{}" not in template:
        raise InvalidInput("template has no {}; expected a text with {} in the place of the label")
    found = Prompts([], [], [])
    for index, group in enumerate(placed):
        for place, text in group:
            check_text(text, row=len(found.texts), column="text", place=place)
            found.texts.append(template.replace("{}", text))
            found.places.append(place)
            found.label_of.append(index)
    return found


def check_list(values: object, name: str) -> None:
    """Refuse the single input where a list belongs: a str is a sequence too, of characters."""
    if isinstance(values, str | bytes | np.ndarray) or not isinstance(values, Sequence):
        raise InvalidInput(f"{name} is of type {type(values).__name__}; expected a list, also for a single one")
