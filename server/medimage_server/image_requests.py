"""What the preprocessing of every model does alike: bounds on what is decoded, and errors that name the row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medimage_server.errors import Cancelled, InvalidInput
from medimage_server.image_decoding import decode_image

Pixels = NDArray[np.uint8]
IsCancelled = Callable[[], bool]


def never() -> bool:
    """Of a request that nobody can cancel."""
    return False


class Run(Protocol):
    """Calls a function of one image, somewhere."""

    def __call__(
        self, data: bytes, arguments: tuple[object, ...] = (), is_cancelled: IsCancelled = never
    ) -> Pixels: ...


def run_here(preprocess: Callable[..., Pixels]) -> Run:
    """In this process, without limits; for files that are known."""

    def run(data: bytes, arguments: tuple[object, ...] = (), is_cancelled: IsCancelled = never) -> Pixels:
        return preprocess(data, *arguments)

    return run


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


def fill_rows(
    pixels: Pixels,
    images: Sequence[bytes],
    run: Run,
    arguments: tuple[object, ...] = (),
    is_cancelled: IsCancelled = never,
) -> None:
    """Put image i, preprocessed, into pixels[i].

    Raises:
        InvalidInput: an image cannot be used; names its row.
        Cancelled: the request was cancelled, before an image or in it.
    """
    for row, data in enumerate(images):
        if is_cancelled():
            raise Cancelled("the request was cancelled")
        try:
            pixels[row] = run(data, arguments, is_cancelled)
        except InvalidInput as error:
            raise InvalidInput(error.reason, row=row) from None
