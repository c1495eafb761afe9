"""The first step of Azure's image standardization, done by the client with `resize="client"`, so that less is sent.

The server's profile `azure` makes a square of every image, by Pillow and in the file's own mode, before it goes on
(`medimage_server/image_preprocessing.py`). Here that very step is done before sending. The server takes a square of the
right size as it is, so the vectors are the same to the bit, given the same version of Pillow on both sides.

A file goes as it is, for the server to decode or refuse, when it is not of `FORMATS`, is damaged, or has more than 8
bits a channel, but for 16-bit grey PNG. So it does when it has no more pixels than the square, or no more bytes than
the square's PNG. Pixels, of arrays and DICOM files, are made a square when they are more than it holds.
"""

from io import BytesIO
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFile

from medimage_client.constants import STANDARD_IMAGE_SIZE_PX
from medimage_client.errors import InvalidInput
from medimage_client.images.windowing import apply_bit_range

Resize = Literal["server", "client"]

# Tells the server that the squares are ours, which a server with another profile has to refuse.
RESIZED_BY_CLIENT = "resized_by_client"

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "JPEG2000", "WEBP")  # the usual ones of those that the server takes
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DEEP_LAYOUT = ";16"  # of 16 bits a channel, in Pillow's name for how a file holds its pixels


def square_size(resize: Resize, image_size_px: int) -> int | None:
    """Side of the square that the client makes; None if it makes none.

    Args:
        image_size_px: Azure's image_standardization_image_size, 0 for the server's own.

    Raises:
        InvalidInput: `resize` is neither of the two.
    """
    if resize not in get_args(Resize):
        raise InvalidInput(f"resize is not one of {list(get_args(Resize))}")
    return (image_size_px or STANDARD_IMAGE_SIZE_PX) if resize == "client" else None


def has_more_pixels(image: Image.Image, size_px: int) -> bool:
    return image.width * image.height > size_px**2


def square(image: Image.Image, size_px: int) -> Image.Image:
    """size_px x size_px in grey or RGB, as the server makes it of an image."""
    if image.mode == "I;16":
        image = Image.fromarray(apply_bit_range(np.asarray(image)))
    # Before grey or RGB, as the server does it: palette and 1-bit images get nearest, others bicubic.
    resized = image.resize((size_px, size_px))
    resized.info.clear()  # no pixels in it; Pillow would carry comments and transparency into the PNG
    return without_equal_channels(resized)


def without_equal_channels(image: Image.Image) -> Image.Image:
    """RGB, or grey in place of three equal channels."""
    if image.mode in GREY_MODES:
        return image.convert("L")
    rgb = image.convert("RGB")
    red, green, blue = rgb.split()
    return red if red == green == blue else rgb


def decode_large(file: bytes, size_px: int) -> Image.Image | None:
    """The image in a file, decoded as the server does it; None for one that has to go as it is, see above."""
    try:
        image = Image.open(BytesIO(file), formats=FORMATS)
        layout = repr(image.tile)  # Pillow forgets it when the pixels are loaded
        if not has_more_pixels(image, size_px):
            return None
        image.load()
    except Exception:  # almost any type, for damaged files; the server says what is wrong
        return None
    return image if is_plain(image, layout) else None


def is_plain(image: ImageFile.ImageFile, layout: str) -> bool:
    """Whether the pixels, as Pillow decodes them, are what the server works on; it has rules for other 16-bit files."""
    if image.mode == "I;16":
        return image.format == "PNG"
    return image.mode in (*GREY_MODES, *COLOUR_MODES) and DEEP_LAYOUT not in layout
