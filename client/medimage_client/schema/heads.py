"""The JSON of a fine-tuned deployment of Azure's: images in, for each a list of labels with their scores.

    [[{"label": "Mass", "score": 0.91}, {"label": "Normal", "score": 0.09}], …]

Requests have the one column `image`; see `table.py` for the rest of their form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimage_client.errors import InvalidInput
from medimage_client.schema.embeddings import RequestParams, read_params
from medimage_client.schema.table import read_image, read_table

COLUMNS = ("image",)


@dataclass(frozen=True, slots=True)
class HeadRequest:
    images: tuple[bytes, ...] = field(repr=False)  # encoded image files
    params: RequestParams


@dataclass(frozen=True, slots=True)
class HeadScores:
    """What a head answers.

    Labels are in the order of the head, from a scoring URI by name; scores are (n, labels) float32, from 0 to 1.
    """

    labels: list[str]
    scores: NDArray[np.float32]

    def ranked(self) -> list[list[dict[str, Any]]]:
        """Of each image its labels with their scores, the highest first, as Azure answers."""
        order = np.argsort(-self.scores, axis=1, kind="stable")
        return [
            [{"label": self.labels[i], "score": float(row[i])} for i in places]
            for row, places in zip(self.scores, order, strict=True)
        ]


def read_head_request(request: Mapping[str, Any]) -> HeadRequest:
    """A request that `table.read_json` has decoded.

    Raises:
        InvalidInput: not the schema above; has row and column where it is one cell's.
    """
    table = read_table(request, COLUMNS)
    images = [read_image(n, row, "image") for n, row in enumerate(table.rows)]
    for n, image in enumerate(images):
        if image is None:
            raise InvalidInput("is empty; expected an image file as base64", row=n, column="image")
    return HeadRequest(tuple(image for image in images if image is not None), read_params(table.params))


def read_ranked(rows: Sequence[Sequence[Mapping[str, Any]]]) -> HeadScores:
    """The scores in an answer, with the labels by name.

    Raises:
        ValueError: rows have other labels, or an entry is not a label with a number.
    """
    found: list[dict[str, float]] = []
    for row in rows:
        try:
            by_label = {entry["label"]: float(entry["score"]) for entry in row}
        except (KeyError, TypeError) as error:
            raise ValueError("an entry has no label or no score") from error
        if not all(isinstance(label, str) for label in by_label) or (found and by_label.keys() != found[0].keys()):
            raise ValueError("rows have other labels")
        found.append(by_label)
    labels = sorted(found[0]) if found else []
    scores = np.array([[one[label] for label in labels] for one in found], np.float32).reshape(len(found), len(labels))
    return HeadScores(labels, scores)
