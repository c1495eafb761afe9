"""Images of a command through the client, with a progress bar."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from medimage_client.client import MedImageInsight
from medimage_client.constants import DEFAULT_CONCURRENCY, EMBEDDING_SIZE, IMAGES_PER_REQUEST
from medimage_client.embedder import Embeddings
from medimage_client.errors import InvalidInput

INDEX = re.compile(r"images\[(\d+)\]")  # how the client names an image
STEP = 4 * DEFAULT_CONCURRENCY * IMAGES_PER_REQUEST  # images between two moves of the bar; keeps the server busy


def embed_files(client: MedImageInsight, paths: Sequence[Path]) -> Embeddings:
    """Embeddings (n, 1024) of image files; a bar goes to standard error if that is a terminal.

    Raises:
        InvalidInput: names the file.
    """
    features = [np.empty((0, EMBEDDING_SIZE), dtype=np.float32)]
    with click.progressbar(length=len(paths), label="Images", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        for start in range(0, len(paths), STEP):
            step = paths[start : start + STEP]
            try:
                features.append(client.embed_images(step))
            except InvalidInput as error:
                raise name_file(error, step) from error
            bar.update(len(step))
    return np.concatenate(features)


def name_file(error: InvalidInput, paths: Sequence[Path]) -> InvalidInput:
    """The error with a file's name in the place of its index."""
    return InvalidInput(INDEX.sub(lambda match: str(paths[int(match[1])]), str(error), count=1))
