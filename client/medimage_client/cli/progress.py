"""Images of a command through the client, with a progress bar; bad ones are left out and reported."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from medimage_client.archive.slices import Slice
from medimage_client.async_client import AsyncMedImageInsight
from medimage_client.constants import DEFAULT_CONCURRENCY, EMBEDDING_SIZE, IMAGES_PER_REQUEST
from medimage_client.embeddings import Embeddings
from medimage_client.errors import InvalidInput, MedImageError, NotFound
from medimage_client.images.encoding import ImageInput
from medimage_client.images.resize import Resize
from medimage_client.images.windowing import DicomWindow
from medimage_client.wire.connection import gather

Item = Path | Slice


@dataclass(frozen=True, slots=True)
class EmbeddedItems:
    items: list[Item]
    features: Embeddings  # (n, 1024), one row an item
    refused: list[str]  # of the other items, name and reason

    @property
    def names(self) -> list[str]:
        return [name_of(item) for item in self.items]

    def report_refused(self) -> None:
        """One line an item on standard error, and exit code 1 if there is any; call it when the rest is written."""
        for line in self.refused:
            click.echo(f"Error: {line}", err=True)
        if self.refused:
            n_items = len(self.refused) + len(self.items)
            raise click.ClickException(f"{len(self.refused)} of {n_items} images are left out")


def name_of(item: Item) -> str:
    return str(item) if isinstance(item, Path) else item.name


class Reading:
    """Reads slices, a few at once, and none any more after the archive has failed: what is done by then is kept."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(DEFAULT_CONCURRENCY)  # groups in memory
        self._failure: MedImageError | None = None

    async def read(self, items: Sequence[Item], dicom_window: DicomWindow, refused: list[str]) -> dict[int, ImageInput]:
        """Images by index; the others are refused."""
        images: dict[int, ImageInput] = {}
        for index, item in enumerate(items):
            if isinstance(item, Path):
                images[index] = item
                continue
            if self._failure is not None:
                refused.append(f"{item.name}: is not read, for the archive failed before")
                continue
            try:
                images[index] = await asyncio.to_thread(item.read, dicom_window)
            except MedImageError as error:
                refused.append(f"{item.name}: {error}")
                if not isinstance(error, InvalidInput | NotFound) and error.status != 200:
                    self._failure = error
        return images

    async def embed(
        self, client: AsyncMedImageInsight, items: Sequence[Item], resize: Resize, dicom_window: DicomWindow
    ) -> EmbeddedItems:
        async with self._slots:
            refused: list[str] = []
            images = await self.read(items, dicom_window, refused)
            kept = [items[index] for index in images]
            return await embed_group(client, kept, list(images.values()), resize, dicom_window, refused)


async def embed_items(
    client: AsyncMedImageInsight, items: Sequence[Item], resize: Resize, dicom_window: DicomWindow
) -> EmbeddedItems:
    """Embed images, in order; a bar goes to standard error if that is a terminal."""
    groups = [items[start : start + IMAGES_PER_REQUEST] for start in range(0, len(items), IMAGES_PER_REQUEST)]
    reading = Reading()
    with click.progressbar(length=len(items), label="Images", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        async def embed(group: Sequence[Item]) -> EmbeddedItems:
            embedded = await reading.embed(client, group, resize, dicom_window)
            bar.update(len(group))
            return embedded

        parts = await gather([embed(group) for group in groups])
    return EmbeddedItems(
        items=[item for part in parts for item in part.items],
        features=np.concatenate([np.empty((0, EMBEDDING_SIZE), np.float32), *(part.features for part in parts)]),
        refused=[line for part in parts for line in part.refused],
    )


async def embed_group(
    client: AsyncMedImageInsight,
    items: list[Item],
    images: list[ImageInput],
    resize: Resize,
    dicom_window: DicomWindow,
    refused: list[str],
) -> EmbeddedItems:
    """Embed the images of one request; again without the one at fault, as long as there is one."""
    while True:
        try:
            features = await client.embed_images(images, resize=resize, dicom_window=dicom_window)
            return EmbeddedItems(items, features, refused)
        except InvalidInput as error:
            if error.row is None:  # the request as a whole, not one image
                raise
            refused.append(f"{name_of(items.pop(error.row))}: {error.reason}")
            del images[error.row]
