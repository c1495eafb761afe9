"""Bytes of an image file, or their base64 text, to a Pillow image of at most 8 bits a channel.

What is not decided by the file alone follows the Azure endpoint, which opens with Pillow and takes what that gives:
the first frame of an animated or multi-page file, no turning by the EXIF orientation of a JPEG, alpha ignored.
Pillow itself reduces 16-bit colour to its high bytes; 16-bit grey, which it would clip at 255, is scaled here.
"""

import re
import warnings
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from medimage_client.base64_text import decode_base64
from medimage_server.errors import InvalidInput

# Pillow's still formats that a signature tells apart. Not those without one, such as TGA, which would make an image of
# garbage; not EPS, for which Pillow would start Ghostscript on a caller's bytes; not text formats, nor films.
FORMATS = (
    *("PNG", "JPEG", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "WEBP"),
    *("AVIF", "DDS", "PCX", "QOI", "SGI"),
)
EXPECTED = "expected an encoded image file such as PNG or JPEG, or its base64 text"

DEEP_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
GREY_BITS = (8, 10, 12, 14, 16)  # what detectors and scanners deliver inside 16-bit files

MAX_SIDE_PX = 2**15  # a resize holds (source height x new width) pixels, however few the source has

# No format of FORMATS starts with this much printable text, except a plain PNM file.
TEXT = re.compile(rb"(?!P[1-6]\s)[\t-\r -~]*")
TEXT_HEAD_BYTES = 64
WHITE_IS_ZERO, PHOTOMETRIC_TAG = 0, 262  # TIFF 6.0, PhotometricInterpretation


def decode_image(data: bytes, *, max_encoded_bytes: int, max_pixels: int) -> Image.Image:
    """An encoded image file, or its base64 text (line breaks and a `data:` prefix allowed), to a decoded image.

    The mode is the file's own (palette, grey, colour, alpha, CMYK), except that deep grey is scaled to 8 bits.

    Raises:
        InvalidInput: not such an image, damaged, over a limit, or without a defined grey range.
    """
    file = read_base64(data) if TEXT.fullmatch(data[:TEXT_HEAD_BYTES]) else data
    if not file:
        raise InvalidInput(f"image is empty; {EXPECTED}")
    if len(file) > max_encoded_bytes:
        raise InvalidInput(f"image file has {len(file)} bytes; at most {max_encoded_bytes} are allowed")

    image = read_image(file, max_pixels)
    if image.mode in DEEP_GREY_MODES:
        return scale_grey(image)
    if image.mode not in EIGHT_BIT_MODES:  # floating point has no defined white, Lab no conversion in Pillow
        raise InvalidInput(f"pixels of mode {image.mode} are not supported; save the image as 8- or 16-bit grey or RGB")
    return image


def read_base64(text: bytes) -> bytes:
    if text.lstrip()[:8].lower().startswith((b"http://", b"https://")):
        raise InvalidInput(f"image URLs are not downloaded; {EXPECTED}")
    try:
        return decode_base64(text)
    except ValueError:
        raise InvalidInput(f"neither an image file nor valid base64 text; {EXPECTED}") from None


def read_image(file: bytes, max_pixels: int) -> Image.Image:
    """Open, check the size that the header states, and only then decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd metadata; our limits are what counts
        # Pillow raises almost any type for damaged files: OSError, SyntaxError, struct.error, KeyError, MemoryError...
        try:
            image = Image.open(BytesIO(file), formats=FORMATS)
        except Image.DecompressionBombError:
            raise InvalidInput(f"image has too many pixels; at most {max_pixels} are allowed") from None
        except Exception:
            raise InvalidInput(f"not an image Pillow can read; {EXPECTED}") from None
        check_size(*image.size, max_pixels)
        try:
            image.load()
        except Exception:
            raise InvalidInput(f"{image.format} file is damaged or truncated; send the complete file") from None

    if image.mode in DEEP_GREY_MODES and is_white_zero(image):
        raise InvalidInput("16-bit TIFF with white as zero is not supported; save it with black as zero")
    image.info.clear()  # no pixels in it; Pillow would carry comments and transparency into what it makes of the image
    return image


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidInput(f"image has {width} x {height} pixels; at most {max_pixels} in all are allowed")
    if max(width, height) > MAX_SIDE_PX:
        raise InvalidInput(f"image has {width} x {height} pixels; at most {MAX_SIDE_PX} a side are allowed")


def is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF says that 0 is white. Pillow inverts such files up to 8 bits and forgets to above."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO


def scale_grey(image: Image.Image) -> Image.Image:
    """Deep grey to 8-bit grey over its actual bit range: the fewest of 8, 10, 12, 14 or 16 bits that hold the maximum.

    A 12-bit film in a 16-bit file thus keeps its contrast, and white (4095) becomes 255; values are rounded.
    """
    values = np.asarray(image)  # (H, W) uint16, or int32 for mode I
    if values.min() < 0 or values.max() >= 2 ** GREY_BITS[-1]:
        raise InvalidInput("grey values are outside 0 to 65535; window the image to 8 or 16 bits")
    bits = next(bits for bits in GREY_BITS if values.max() < 2**bits)
    white = 2**bits - 1
    levels = (np.arange(white + 1) * 255 + white // 2) // white
    return Image.fromarray(levels.astype(np.uint8)[values])
