"""Image files of a command through the client, with a progress bar; bad ones are left out and reported."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.constants import EMBEDDING_SIZE, IMAGES_PER_REQUEST
from medimage_client.embeddings import Embeddings
from medimage_client.errors import InvalidInput
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow
from medimage_client.wire.connection import gather


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    paths: list[Path]
    features: Embeddings  # (n, 1024), one row a path
    refused: list[str]  # of the other files, name and reason

    def report_refused(self) -> None:
        """One line a file on standard error, and exit code 1 if there is any; call it when the rest is written."""
        for line in self.refused:
            click.echo(f"Error: {line}", err=True)
        if self.refused:
            n_files = len(self.refused) + len(self.paths)
            raise click.ClickException(f"{len(self.refused)} of {n_files} images are left out")


async def embed_files(
    client: AsyncMedImageInsight, paths: Sequence[Path], resize: Resize, dicom_window: DicomWindow
) -> EmbeddedFiles:
    """Embed image files, in order; a bar goes to standard error if that is a terminal."""
    groups = [paths[start : start + IMAGES_PER_REQUEST] for start in range(0, len(paths), IMAGES_PER_REQUEST)]
    with click.progressbar(length=len(paths), label="Images", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        async def embed(group: Sequence[Path]) -> EmbeddedFiles:
            embedded = await embed_group(client, group, resize, dicom_window)
            bar.update(len(group))
            return embedded

        parts = await gather([embed(group) for group in groups])
    return EmbeddedFiles(
        paths=[path for part in parts for path in part.paths],
        features=np.concatenate([np.empty((0, EMBEDDING_SIZE), np.float32), *(part.features for part in parts)]),
        refused=[line for part in parts for line in part.refused],
    )


async def embed_group(
    client: AsyncMedImageInsight, paths: Sequence[Path], resize: Resize, dicom_window: DicomWindow
) -> EmbeddedFiles:
    """Embed the files of one request; again without the one at fault, as long as there is one."""
    paths = list(paths)
    refused: list[str] = []
    while True:
        try:
            return EmbeddedFiles(
                paths, await client.embed_images(paths, resize=resize, dicom_window=dicom_window), refused
            )
        except InvalidInput as error:
            if error.row is None:  # the request as a whole, not one image
                raise
            refused.append(f"{paths.pop(error.row)}: {error.reason}")
