"""Bytes of an image file, or their base64 text, to a Pillow image of at most 8 bits a channel.

What is not decided by the file alone follows the Azure endpoint, which opens with Pillow and takes what that gives:
the first frame of an animated or multi-page file, no turning by the EXIF orientation of a JPEG, alpha ignored.

16 bits a channel often hold fewer. 16-bit grey, with or without alpha, is scaled over its actual bit range. Of 16-bit
colour Pillow keeps the high bytes, which is right for the full range; what that would darken to near black is refused.
"""

import re
import warnings
from io import BytesIO

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from medimage_client.images.base64_text import decode_base64
from medimage_client.images.windowing import GREY_BITS, apply_bit_range
from medimage_server import raw_pnm
from medimage_server.errors import InvalidInput
from medimage_server.image_structure import MAX_SIDE_PX, check_structure

# What Pillow reads; raw PGM and PPM are read here. Of its still formats those that a signature tells apart and that
# hospitals send. Not those without one, such as TGA, which would make an image of garbage; not EPS, for which
# Pillow would start Ghostscript on a caller's bytes; not text formats, nor films.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "JPEG2000", "WEBP", "AVIF")
# Read once, and dropped rather than defended: nobody sends them, and Pillow reads some of them in Python.
DROPPED = {
    "plain or bitmap PNM": re.compile(rb"P[1-4]\s"),
    "PAM or PFM": re.compile(rb"P[7fF]\s"),
    "DDS": re.compile(rb"DDS "),
    "PCX": re.compile(rb"\x0a[\x00-\x05]\x01"),
    "QOI": re.compile(rb"qoif"),
    "SGI": re.compile(rb"\x01\xda[\x00\x01][\x01\x02]"),
}
Image.init()  # Pillow would import the rarer of them with the first file of one, which would take 50 ms longer
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # not one a core: the other cores have other images, and other models
OUT_OF_MEMORY = re.compile("out of memory|decoder error -9", re.IGNORECASE)
UNREADABLE = "not an image Pillow can read"
EXPECTED = "expected an encoded image file such as PNG or JPEG, or its base64 text"

DEEP_GREY_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

# Pillow's names for 16 bits a channel as the file has them; not BMP's "BGR;16", which is 16 bits a pixel.
DEEP_GREY_ALPHA_LAYOUT = "LA;16B"
DEEP_LAYOUT = re.compile(r";16[BLN]")
HIGH_BYTE_OF_FULL_RANGE = 2**14 >> 8  # from here on GREY_BITS has no fewer bits than 16

# No format starts with this much printable text, except plain PNM files and the comments of raw ones.
TEXT = re.compile(rb"(?!P[1-6]\s)[\t-\r -~]*")
TEXT_HEAD_BYTES = 64
WHITE_IS_ZERO, PHOTOMETRIC_TAG = 0, 262  # TIFF 6.0, PhotometricInterpretation


def decode_image(data: bytes, *, max_encoded_bytes: int, max_pixels: int) -> Image.Image:
    """An encoded image file, or its base64 text (line breaks and a `data:` prefix allowed), to a decoded image.

    The mode is the file's own (palette, grey, colour, alpha, CMYK), except that deep grey is scaled to 8 bits.

    Raises:
        InvalidInput: not such an image, damaged, over a limit, or without a defined grey range.
        MemoryError: there is not enough.
    """
    file = read_base64(data) if TEXT.fullmatch(data[:TEXT_HEAD_BYTES]) else data
    if not file:
        raise InvalidInput(f"image is empty; {EXPECTED}")
    if len(file) > max_encoded_bytes:
        raise InvalidInput(f"image file has {len(file)} bytes; at most {max_encoded_bytes} are allowed")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd metadata; our limits are what counts
        check_structure(file)
        if file.startswith(raw_pnm.SIGNATURES):
            return decode_raw_pnm(file, max_pixels)
        source = open_image(file, max_pixels)
        layout = repr(source.tile[:1])  # how the file holds its pixels; Pillow forgets it when they are loaded
        if DEEP_GREY_ALPHA_LAYOUT in layout:
            return read_deep_grey_alpha(source)
        image = load(source)

    if image.mode in DEEP_GREY_MODES:
        return scale_grey(image)
    if image.mode not in EIGHT_BIT_MODES:  # floating point has no defined white, Lab no conversion in Pillow
        raise InvalidInput(f"pixels of mode {image.mode} are not supported; save the image as 8- or 16-bit grey or RGB")
    if DEEP_LAYOUT.search(layout) and not has_full_range(image):
        raise InvalidInput(
            "16-bit values all under 16384 would turn nearly black; save as 16-bit grey PNG or 8-bit RGB"
        )
    return image


def read_base64(text: bytes) -> bytes:
    if text.lstrip()[:8].lower().startswith((b"http://", b"https://")):
        raise InvalidInput(f"image URLs are not downloaded; {EXPECTED}")
    try:
        return decode_base64(text)
    except ValueError:
        raise InvalidInput(f"neither an image file nor valid base64 text; {EXPECTED}") from None


def decode_raw_pnm(file: bytes, max_pixels: int) -> Image.Image:
    try:
        header = raw_pnm.Header(file)
    except ValueError:
        raise InvalidInput(f"{UNREADABLE}; {EXPECTED}") from None
    check_size(*header.size, max_pixels)
    image = raw_pnm.read_raw_pnm(file, header)
    return scale_grey(image) if image.mode in DEEP_GREY_MODES else image


def open_image(file: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header alone, and check the size that it states."""
    # Pillow raises almost any type for damaged files: OSError, SyntaxError, struct.error, KeyError...
    try:
        image = Image.open(BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError:
        raise InvalidInput(f"image has too many pixels; at most {max_pixels} are allowed") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from None
        for format, signature in DROPPED.items():
            if signature.match(file):
                raise InvalidInput(f"{format} files are not read; save the image as PNG, JPEG or TIFF") from None
        raise InvalidInput(f"{UNREADABLE}; {EXPECTED}") from None
    check_size(*image.size, max_pixels)
    return image


def load(image: ImageFile.ImageFile) -> Image.Image:
    """Decode the pixels."""
    try:
        image.load()
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from None
        raise InvalidInput(f"{image.format} file is damaged or truncated; send the complete file") from None
    if image.mode in DEEP_GREY_MODES and is_white_zero(image):
        raise InvalidInput("16-bit TIFF with white as zero is not supported; save it with black as zero")
    image.info.clear()  # no pixels in it; Pillow would carry comments and transparency into what it makes of the image
    return image


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is why Pillow failed: its decoders and libavif say so in OSError and RuntimeError."""
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidInput(f"image has {width} x {height} pixels; at most {max_pixels} in all are allowed")
    if max(width, height) > MAX_SIDE_PX:
        raise InvalidInput(f"image has {width} x {height} pixels; at most {MAX_SIDE_PX} a side are allowed")


def is_white_zero(image: Image.Image) -> bool:
    """Whether a TIFF says that 0 is white. Pillow inverts such files up to 8 bits and forgets to above."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO


def has_full_range(image: Image.Image) -> bool:
    """Whether the high bytes of 16-bit channels are what 8 bits would hold. Alpha, and ink, have no other range."""
    if image.mode == "CMYK":
        return True
    return bool(np.asarray(image.convert("RGB")).max() >= HIGH_BYTE_OF_FULL_RANGE)


def read_deep_grey_alpha(image: ImageFile.ImageFile) -> Image.Image:
    """16-bit grey and alpha to 8 bits each; Pillow has no mode for them, and its own RGBA the high bytes alone."""
    # Read as if 8-bit RGBA, whose pixels are as wide: both bytes of the grey, then both of the alpha.
    image.tile = [tile._replace(args="RGBA") for tile in image.tile]
    values = np.asarray(load(image)).view(">u2")  # (H, W, 2)
    alpha = Image.fromarray((values[..., 1] >> 8).astype(np.uint8))
    return Image.merge("LA", (scale_grey(Image.fromarray(values[..., 0].astype(np.uint16))), alpha))


def scale_grey(image: Image.Image) -> Image.Image:
    """Deep grey to 8-bit grey over its actual bit range: the fewest of 8, 10, 12, 14 or 16 bits that hold the maximum.

    A 12-bit film in a 16-bit file thus keeps its contrast, and white (4095) becomes 255; values are rounded.
    """
    values = np.asarray(image)  # (H, W) uint16, or int32 for mode I
    if values.min() < 0 or values.max() >= 2 ** GREY_BITS[-1]:
        raise InvalidInput("grey values are outside 0 to 65535; window the image to 8 or 16 bits")
    return Image.fromarray(apply_bit_range(values))
