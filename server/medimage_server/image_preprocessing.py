"""Encoded images to the pixels of the MedImageInsight image encoder.

Two profiles:

- `azure`, what the Azure endpoint does: resize to 512 x 512, RGB, JPEG of quality 75, then the model's own resize.
  The order is that of Azure/azureml-assets, MedImageInsight classifier wrappers, "image standardization". Pillow weighs
  colour by alpha when it resizes, so what is transparent turns black before alpha is dropped.
- `reference`, the model's own transform alone: RGB, bicubic resize to 480 x 480 (`IMAGE_SIZE` and `INTERPOLATION` of
  the checkpoint's config.yaml). No crop, and the aspect ratio is not kept. Alpha is dropped.

Scale and normalisation are in the exported graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from PIL import Image

from medimage_client.constants import MAX_IMAGE_SIZE_PX, MAX_JPEG_QUALITY, STANDARD_IMAGE_SIZE_PX
from medimage_client.images.resize import GREY_MODES, RESIZED_BY_CLIENT, square
from medimage_server.errors import InvalidInput
from medimage_server.exported import exported_json
from medimage_server.image_requests import ImageBounds, IsCancelled, Pixels, Run, fill_rows, never, positive, run_here

Profile = Literal["azure", "reference"]


@dataclass(frozen=True, kw_only=True)
class ImageSettings(ImageBounds):
    """What the model was exported with and what its operator chose."""

    profile: Profile
    image_size: tuple[int, int]  # (height, width) that the encoder takes
    interpolation: Image.Resampling

    @classmethod
    def read(cls, parameters: Mapping[str, str], preprocessing: Path) -> "ImageSettings":
        """From the parameters of config.pbtxt and the exported preprocessing.json.

        Raises:
            FileNotFoundError: the model was not exported yet.
            ValueError: a parameter or key is missing or has a value that is not allowed.
        """
        with exported_json(preprocessing, "medimageinsight") as exported:
            height, width = exported["image_size"]
            interpolation = Image.Resampling[exported["interpolation"].upper()]
        profile = parameters.get("profile")
        if profile not in get_args(Profile):
            raise ValueError(f"parameter profile is {profile!r}; expected one of {list(get_args(Profile))}")
        return cls(
            profile=cast(Profile, profile),
            max_encoded_bytes=positive(parameters, "max_encoded_bytes"),
            max_pixels=positive(parameters, "max_pixels"),
            image_size=(height, width),
            interpolation=interpolation,
        )


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """Azure's image standardization: a square of `size` pixels, then a JPEG of `quality`."""

    size: int = STANDARD_IMAGE_SIZE_PX
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
        """Any image -> RGB or grey of size x size, with the JPEG losses."""
        jpeg = BytesIO()
        square(image, self.size).save(jpeg, "JPEG", quality=self.quality)
        return Image.open(jpeg)


@dataclass(frozen=True)
class OneImage:
    """An encoded image to encoder input."""

    settings: ImageSettings

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what comes of each image."""
        return (*self.settings.image_size, 3)

    def __call__(self, data: bytes, standardization: Standardization) -> Pixels:
        """An encoded file or base64 text -> (height, width, 3) uint8 RGB. Raises InvalidInput."""
        image = self.settings.decode(data)
        if self.settings.profile == "azure":
            image = standardization.apply(image)
        height, width = self.settings.image_size
        image = image.convert("L" if image.mode in GREY_MODES else "RGB")
        resized = image.resize((width, height), self.settings.interpolation)
        return np.asarray(resized.convert("RGB"))


class ImagePreprocessor:
    """Images of one request to encoder input.

    Args:
        run: calls OneImage(settings) elsewhere.
    """

    def __init__(self, settings: ImageSettings, run: Run | None = None) -> None:
        self.settings = settings
        self._one = OneImage(settings)
        self._run = run or run_here(self._one)

    def __call__(
        self, images: Sequence[bytes], request_parameters: Mapping[str, object], is_cancelled: IsCancelled = never
    ) -> Pixels:
        """n encoded files or base64 texts -> (n, height, width, 3) uint8 RGB.

        Raises:
            InvalidInput: an image that cannot be used, named by its row, a request parameter out of range, or images
                that the client resized for another profile.
            Cancelled: `is_cancelled` says so.
        """
        if request_parameters.get(RESIZED_BY_CLIENT) and self.settings.profile != "azure":
            raise InvalidInput(
                "images resized by the client are for servers of the profile azure; this one's is "
                f"{self.settings.profile}, so leave resize at 'server'"
            )
        standardization = Standardization.from_request(request_parameters)
        pixels = np.empty((len(images), *self._one.shape), dtype=np.uint8)
        fill_rows(pixels, images, self._run, (standardization,), is_cancelled)
        return pixels


def _integer(parameters: Mapping[str, object], name: str, default: int, maximum: int) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        raise InvalidInput(f"parameter {name} must be an integer from 1 to {maximum}, or 0 for {default}")
    return value or default
