"""Encoded chest X-rays to the grey squares that the vision tower of CXRReportGen takes.

As MAIRA-2's own processor does it: grey, stretched from its darkest and lightest value to 0 and 255; then the shortest
edge to the model's size, bicubic, and the square in the middle. There the three channels of an RGB image hold the same
grey, so one channel travels and the exported graph repeats it, and scales and normalises it.

One thing is done better: of 16-bit grey that processor (PIL's `convert("L")`) clips all above 255 to white. Here the
decoder brings it to 8 bits over its actual bit range first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medimage_server.errors import InvalidInput
from medimage_server.exported import exported_json
from medimage_server.image_requests import ImageBounds, IsCancelled, Pixels, Run, fill_rows, never, positive, run_here

# The long edge grows with the ratio: without a bound, a line of 32768 x 1 pixels would be resized to 9 GB.
MAX_ASPECT_RATIO = 16


@dataclass(frozen=True, kw_only=True)
class ChestXraySettings(ImageBounds):
    """What the model was exported with and what its operator chose."""

    image_size: int  # height and width that the vision tower takes
    stretch: bool  # of the grey values to the full range

    @classmethod
    def read(cls, parameters: Mapping[str, str], preprocessing: Path) -> "ChestXraySettings":
        """From the parameters of config.pbtxt and the exported preprocessing.json.

        Raises:
            FileNotFoundError: the model was not exported yet.
            ValueError: a parameter or key is missing or has a value that is not allowed.
        """
        with exported_json(preprocessing, "cxrreportgen") as exported:
            image_size, stretch = exported["image_size"], exported["stretch"]
            if type(image_size) is not int or image_size < 1:
                raise ValueError("image_size must be a positive integer")
            if type(stretch) is not bool:
                raise ValueError("stretch must be true or false")
        return cls(
            max_encoded_bytes=positive(parameters, "max_encoded_bytes"),
            max_pixels=positive(parameters, "max_pixels"),
            image_size=image_size,
            stretch=stretch,
        )


@dataclass(frozen=True)
class OneChestXray:
    """An encoded image to the input of the vision tower."""

    settings: ChestXraySettings

    @property
    def shape(self) -> tuple[int, int]:
        """Of what comes of each image."""
        return (self.settings.image_size, self.settings.image_size)

    def __call__(self, data: bytes) -> Pixels:
        """An encoded file or base64 text -> (image_size, image_size) uint8 grey. Raises InvalidInput."""
        image = self.settings.decode(data)
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            width, height = image.size
            raise InvalidInput(
                f"image has {width} x {height} pixels; at most {MAX_ASPECT_RATIO} times as long as wide is allowed"
            )
        grey = image.convert("L")
        if self.settings.stretch:
            grey = stretch_grey(grey)
        return resize_and_crop(grey, self.settings.image_size)


class ChestXrayPreprocessor:
    """Images of one request to the input of the vision tower.

    Args:
        run: calls OneChestXray(settings) elsewhere.
    """

    def __init__(self, settings: ChestXraySettings, run: Run | None = None) -> None:
        self._one = OneChestXray(settings)
        self._run = run or run_here(self._one)

    def __call__(self, images: Sequence[bytes], is_cancelled: IsCancelled = never) -> Pixels:
        """n encoded files or base64 texts -> (n, image_size, image_size) uint8 grey.

        Raises:
            InvalidInput: an image that cannot be used, named by its row.
            Cancelled: `is_cancelled` says so.
        """
        pixels = np.empty((len(images), *self._one.shape), dtype=np.uint8)
        fill_rows(pixels, images, self._run, is_cancelled=is_cancelled)
        return pixels


def stretch_grey(image: Image.Image) -> Image.Image:
    """8-bit grey, its least value to 0 and its greatest to 255, truncated. An image of one shade becomes black."""
    values = np.asarray(image)
    darkest, lightest = int(values.min()), int(values.max())
    # The order of operations decides what is truncated: (shifted / range) * 255.
    shades = np.arange(lightest - darkest + 1) / max(lightest - darkest, 1) * 255
    return Image.fromarray(shades.astype(np.uint8)[values - np.uint8(darkest)])


def resize_and_crop(image: Image.Image, size: int) -> Pixels:
    """The shortest edge to `size`, then the square in the middle: (size, size) uint8."""
    shortest = min(image.size)
    width, height = (int(size * edge / shortest) for edge in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))
