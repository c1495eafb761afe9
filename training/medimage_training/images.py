"""Images as the server makes them for the encoder, so that training sees what serving will show."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medimage_client.errors import InvalidInput
from medimage_server.errors import InvalidInput as Refused
from medimage_server.image_preprocessing import ImageSettings, OneImage, Standardization
from medimage_training.examples import Example

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB
MAX_ENCODED_BYTES = 2**28  # files of one's own: larger than the server takes from callers
MAX_PIXELS = 178_000_000  # Pillow's own bound


class ServedImages:
    """Reads examples with the preprocessing of the profile `azure`.

    Args:
        size: (height, width) that the image encoder takes.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._settings = ImageSettings(
            profile="azure",
            max_encoded_bytes=MAX_ENCODED_BYTES,
            max_pixels=MAX_PIXELS,
            image_size=size,
            interpolation=Image.Resampling.BICUBIC,
        )
        self._preprocess = OneImage(self._settings)

    def pixels(self, example: Example) -> Pixels:
        """What the served encoder gets of the image. Raises InvalidInput."""
        with named(example):
            return self._preprocess(example.read(), Standardization())

    def standardized(self, example: Example) -> Image.Image:
        """The RGB image before the last step, 512 x 512 with the losses of JPEG. Raises InvalidInput."""
        with named(example):
            return Standardization().apply(self._settings.decode(example.read())).convert("RGB")

    def digest(self, example: Example) -> bytes:
        """SHA-256 of an image's file, which was decoded to see whether it can be. Raises InvalidInput."""
        with named(example):
            content = example.read()
            self._settings.decode(content)
        return hashlib.sha256(content).digest()


class named:
    """What the server's preprocessing refuses, as an error that names the example."""

    def __init__(self, example: Example) -> None:
        self._example = example

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused):
            raise InvalidInput(error.reason, place=self._example.place) from None


def digests_of(images: ServedImages, examples: Sequence[Example]) -> list[bytes | InvalidInput]:
    """Of each example its digest, or why it cannot be used."""

    def look(example: Example) -> bytes | InvalidInput:
        try:
            return images.digest(example)
        except InvalidInput as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock
        return list(pool.map(look, examples))
