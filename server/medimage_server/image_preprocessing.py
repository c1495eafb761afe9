"""Encoded images to the pixels of the MedImageInsight image encoder.

Two profiles:

- `azure`, what the Azure endpoint does: resize to 512 x 512, RGB, JPEG of quality 75, then the model's own resize.
  The order is that of Azure/azureml-assets, MedImageInsight classifier wrappers, "image standardization". Pillow weighs
  colour by alpha when it resizes, so what is transparent turns black before alpha is dropped.
- `reference`, the model's own transform alone: RGB, bicubic resize to 480 x 480 (`IMAGE_SIZE` and `INTERPOLATION` of
  the checkpoint's config.yaml). No crop, and the aspect ratio is not kept. Alpha is dropped.

Scale and normalisation are in the exported graph.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medimage_client.constants import MAX_IMAGE_SIZE_PX, MAX_JPEG_QUALITY
from medimage_server.errors import InvalidInput
from medimage_server.image_decoding import decode_image

Pixels = NDArray[np.uint8]
Profile = Literal["azure", "reference"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the model was exported with and what its operator chose."""

    profile: Profile
    max_encoded_bytes: int  # of one image file, after base64
    max_pixels: int  # width x height of one image; Pillow's own bound of 179 million stays
    image_size: tuple[int, int]  # (height, width) that the encoder takes
    interpolation: Image.Resampling

    @classmethod
    def read(cls, parameters: Mapping[str, str], preprocessing: Path) -> "Settings":
        """From the parameters of config.pbtxt and the exported preprocessing.json.

        Raises:
            FileNotFoundError: the model was not exported yet.
            ValueError: a parameter or key is missing or has a value that is not allowed.
        """
        if not preprocessing.is_file():
            raise FileNotFoundError(f"{preprocessing}: not found; run `medimage export medimageinsight` to write it")
        try:
            exported = json.loads(preprocessing.read_text(encoding="utf-8"))
            height, width = exported["image_size"]
            interpolation = Image.Resampling[exported["interpolation"].upper()]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{preprocessing}: not what `medimage export medimageinsight` writes") from error
        profile = parameters.get("profile")
        if profile not in get_args(Profile):
            raise ValueError(f"parameter profile is {profile!r}; expected one of {list(get_args(Profile))}")
        return cls(
            profile=cast(Profile, profile),
            max_encoded_bytes=_positive(parameters, "max_encoded_bytes"),
            max_pixels=_positive(parameters, "max_pixels"),
            image_size=(height, width),
            interpolation=interpolation,
        )


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """Azure's image standardization: a square of `size` pixels, then a JPEG of `quality`."""

    size: int = 512
    quality: int = 75

    @classmethod
    def from_request(cls, parameters: Mapping[str, object]) -> "Standardization":
        """From the Azure parameters of a request; 0 or absent means the default, other parameters are not ours.

        Raises:
            InvalidInput: a parameter is no integer or out of range.
        """
        return cls(
            size=_integer(parameters, "image_standardization_image_size", cls.size, MAX_IMAGE_SIZE_PX),
            quality=_integer(parameters, "image_standardization_jpeg_compression_ratio", cls.quality, MAX_JPEG_QUALITY),
        )

    def apply(self, image: Image.Image) -> Image.Image:
        """Any image -> RGB of size x size, with the JPEG losses."""
        # Before RGB, as the endpoint does it: palette and 1-bit images get nearest, others bicubic.
        square = image.resize((self.size, self.size))
        jpeg = BytesIO()
        square.convert("RGB").save(jpeg, "JPEG", quality=self.quality)
        return Image.open(jpeg)


class ImagePreprocessor:
    """Images of one request to encoder input."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __call__(self, images: Sequence[bytes], request_parameters: Mapping[str, object]) -> Pixels:
        """n encoded files or base64 texts -> (n, height, width, 3) uint8 RGB.

        Raises:
            InvalidInput: an image that cannot be used, named by its row, or a request parameter out of range.
        """
        standardization = Standardization.from_request(request_parameters)
        pixels = np.empty((len(images), *self.settings.image_size, 3), dtype=np.uint8)
        for row, data in enumerate(images):
            try:
                pixels[row] = self._preprocess(data, standardization)
            except InvalidInput as error:
                raise InvalidInput(f"row {row}: {error}") from None
        return pixels

    def _preprocess(self, data: bytes, standardization: Standardization) -> Pixels:
        settings = self.settings
        image = decode_image(data, max_encoded_bytes=settings.max_encoded_bytes, max_pixels=settings.max_pixels)
        if settings.profile == "azure":
            image = standardization.apply(image)
        height, width = settings.image_size
        return np.asarray(image.convert("RGB").resize((width, height), settings.interpolation))


def _positive(parameters: Mapping[str, str], name: str) -> int:
    value = parameters.get(name, "")
    if not value.isdecimal() or int(value) == 0:
        raise ValueError(f"parameter {name} is {value!r}; expected a positive integer")
    return int(value)


def _integer(parameters: Mapping[str, object], name: str, default: int, maximum: int) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise InvalidInput(f"parameter {name} must be an integer from 1 to {maximum}, or 0 for {default}")
    return value or default
