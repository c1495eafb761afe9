"""What the preprocessing of every model does alike: bounds on what is decoded, and errors that name the row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medimage_server.errors import InvalidInput
from medimage_server.image_decoding import decode_image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ImageBounds:
    """How large an image may be; parameters of the same name in config.pbtxt."""

    max_encoded_bytes: int  # of one image file, after base64
    max_pixels: int  # width x height of one image; Pillow's own bound of 179 million stays

    def decode(self, data: bytes) -> Image.Image:
        """As medimage_server.image_decoding.decode_image, within these bounds."""
        return decode_image(data, max_encoded_bytes=self.max_encoded_bytes, max_pixels=self.max_pixels)


def positive(parameters: Mapping[str, str], name: str) -> int:
    """A parameter of config.pbtxt.

    Raises:
        ValueError: it is missing or no positive integer.
    """
    value = parameters.get(name, "")
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"parameter {name} is {value!r}; expected a positive integer")
    return int(value)


def fill_rows(pixels: Pixels, images: Sequence[bytes], preprocess: Callable[[bytes], Pixels]) -> None:
    """Put image i, preprocessed, into pixels[i].

    Raises:
        InvalidInput: an image cannot be used; names its row.
    """
    for row, data in enumerate(images):
        try:
            pixels[row] = preprocess(data)
        except InvalidInput as error:
            raise InvalidInput(f"row {row}: {error}") from None
