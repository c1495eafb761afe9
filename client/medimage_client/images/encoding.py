"""What callers hold as an image, to the bytes of an encoded image file.

| given | taken as |
|---|---|
| `os.PathLike` | a file |
| `str` | a file if one of that name exists, else the base64 text of an image (`data:` prefix and line breaks allowed) |
| `bytes` | the content of a file |
| `PIL.Image.Image` | the file that it was opened from, if that has its pixels still; else its pixels |
| `numpy.ndarray` | uint8 (H, W), (H, W, 3) RGB or (H, W, 4) RGBA; any other real dtype needs a window |

Files of DICOM type are recognised by content and converted (see `dicom.py`); other files go to the server as they are,
everything else as PNG. With a `square_px`, large ones go as the square that the server would make of them (see
`resize.py`).
"""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from medimage_client.constants import PNG_COMPRESS_LEVEL
from medimage_client.errors import InvalidInput
from medimage_client.images.base64_text import decode_base64
from medimage_client.images.dicom import is_dicom, read_dicom
from medimage_client.images.resize import FORMATS, decode_large, has_more_pixels, square
from medimage_client.images.windowing import DicomWindow, Window, apply_window, check_dicom_window, check_window

ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}  # PNG keeps these as they are
DEEP_MODES = {"I", "F"}  # 32-bit grey, of no defined black and white
SWAPPED_MODES = {"I;16B", "I;16L", "I;16N"}  # 16-bit grey in a given byte order
PREMULTIPLIED_MODES = {"La": "LA", "RGBa": "RGBA"}  # which Pillow turns into nothing else
RAW_PNM = (b"P5", b"P6")  # which the server reads; of 16 bits Pillow makes 32
WHITE_IS_ZERO, PHOTOMETRIC_TAG = 0, 262  # TIFF 6.0, PhotometricInterpretation


def encode_image(
    image: ImageInput,
    *,
    window: Window | None = None,
    dicom_window: DicomWindow = "file",
    frame: int | None = None,
    square_px: int | None = None,
    advise_window: bool = True,
) -> bytes:
    """An image of any supported kind to the bytes of an image file.

    Args:
        window: (low, high), values shown as black and white; for arrays, and for DICOM files instead of their own
            window, in the units after the modality LUT (Hounsfield units for CT).
        dicom_window: for DICOM files: `file`, the file's own, or `window` if that is given; `percentile`, from the 1st
            to the 99th percentile, as Microsoft's healthcareai toolkit does it; or (low, high) as in `window`.
        frame: of a multi-frame DICOM file, from 0; the first if None.
        square_px: side of the square to make of larger images, see `resize.py`; None leaves them as they are.
        advise_window: whether an error may advise `window`, because the caller's function has it too.

    Raises:
        InvalidInput: no such file, an unsupported kind of array, a damaged DICOM file, or a window or frame where it
            does not apply.
        MissingExtra: a DICOM file, and pydicom is not installed, or imagecodecs for a compressed one.
    """
    if window is not None:
        check_window(window)
    dicom_window = check_dicom_window(dicom_window)
    if dicom_window == "file" and window is not None:
        dicom_window = window
    try:
        content = read_image(image, window, dicom_window, frame)
    except NoGreyRange as error:
        remedy = "pass window=(low, high), the values of black and white" if advise_window else SCALE_TO_UINT8
        raise InvalidInput(f"{error.reason}; {remedy}") from None
    if isinstance(content, bytes):
        return encode_file(content, square_px=square_px)
    if square_px is not None and has_more_pixels(content, square_px):
        content = square(content, square_px)
    return save_png(content)


def encode_file(file: bytes, *, square_px: int | None) -> bytes:
    """The PNG of the square that the server would make of an image file, or the file itself if that has fewer bytes."""
    if square_px is None:
        return file
    image = decode_large(file, square_px)
    return file if image is None else min(file, save_png(square(image, square_px)), key=len)


class NoGreyRange(InvalidInput):
    """Deep pixels, of which nothing says what is black and what is white."""


SCALE_TO_UINT8 = "scale it to uint8 first, 0 for black and 255 for white"


def read_image(
    image: ImageInput, window: Window | None, dicom_window: DicomWindow, frame: int | None
) -> bytes | Image.Image:
    """An encoded image file as it is; of anything else the pixels, in a mode that PNG keeps."""
    if isinstance(image, np.ndarray | Image.Image):
        if frame is not None:
            raise InvalidInput("frame is for DICOM files; this is an array or a Pillow image, so pass the frame itself")
        return read_array(image, window) if isinstance(image, np.ndarray) else read_pil(image, window)
    file = read_file(image)
    if is_dicom(file):
        return Image.fromarray(read_dicom(file, window=dicom_window, frame=frame))
    if window is not None or frame is not None:
        raise InvalidInput("window and frame are for arrays and DICOM files; this is an encoded image file")
    return file


def read_file(image: object) -> bytes:
    """A file's content from its path, its base64 text or itself."""
    match image:
        case bytes():
            file = image
        case os.PathLike():
            file = read_path(Path(image))
        case str() if os.path.exists(image):
            file = read_path(Path(image))
        case str():
            file = read_base64(image)
        case _:
            raise InvalidInput(
                f"is of type {type(image).__name__}; expected a path, bytes, base64 text, a Pillow image or an array"
            )
    if not file:
        raise InvalidInput("is empty; expected the bytes of an image file")
    return file


def read_path(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError:  # of a NUL, which no name has
        raise InvalidInput(f"cannot read {str(path)!r}: no file has such a name") from None


def read_base64(text: str) -> bytes:
    # A mistyped file name can be valid base64, so what it holds has to look like an image.
    # Its text stays out of the message: it may be a patient's image.
    try:
        file = decode_base64(text)
        if not is_dicom(file):
            Image.open(BytesIO(file)).close()
    except Exception:  # binascii's, and of Pillow almost any type
        raise InvalidInput(
            f"is a str of {len(text)} characters; expected the name of an existing file or the base64 text of an image"
        ) from None
    return file


def read_array(array: NDArray[Any], window: Window | None) -> Image.Image:
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or array.size == 0:
        raise InvalidInput(f"is an array of shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")
    if array.dtype.kind not in "buif":
        raise InvalidInput(f"is an array of {array.dtype}; expected real numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput("is an array with NaN or infinite values; expected finite ones")
    if window is not None:
        array = apply_window(array, window)
    elif array.dtype != np.uint8:
        raise NoGreyRange(f"is an array of {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def read_pil(image: Image.Image, window: Window | None) -> bytes | Image.Image:
    """Pixels in a mode that PNG keeps, or the file they come from: Pillow's modes hold less than files do."""
    file = None if window is not None else file_of(image)
    try:
        image.load()
    except Exception:  # almost any type, for damaged files: OSError, SyntaxError, struct.error, KeyError...
        raise InvalidInput(
            "is a Pillow image whose file is damaged, truncated or closed; expected a complete one"
        ) from None
    if file is not None:
        return file
    if image.mode in SWAPPED_MODES or image.mode == "I;16":
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO:
            raise InvalidInput(
                "is a 16-bit TIFF with white as zero, which is not supported; save it with black as zero"
            )
        if window is None:
            return Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode in DEEP_MODES and window is None:
        raise NoGreyRange(f"is a Pillow image of mode {image.mode}, 32-bit grey")
    if window is not None:
        return read_array(np.asarray(image), window)
    if image.mode in PNG_MODES:
        return image
    try:
        return image.convert(PREMULTIPLIED_MODES.get(image.mode, "RGB"))
    except ValueError:  # Lab, such as
        raise InvalidInput(f"is a Pillow image of mode {image.mode}; convert it to grey or RGB first") from None


def file_of(image: Image.Image) -> bytes | None:
    """The file that a Pillow image was opened from, if it is of a usual format and shows the same; else None.

    It does not if the image is another frame, a draft, or was changed after it was loaded.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format not in (*FORMATS, "PPM") or image.tell() != 0:
        return None
    is_loaded = not image.tile
    try:
        if image.fp is not None and not is_loaded:
            position = image.fp.tell()
            image.fp.seek(0)
            file = image.fp.read()
            image.fp.seek(position)
        else:
            file = Path(os.fsdecode(image.filename)).read_bytes()
        if image.format == "PPM" and not file.startswith(RAW_PNM):
            return None
        with Image.open(BytesIO(file), formats=(image.format,)) as again:
            is_same = (again.mode, again.size) == (image.mode, image.size)
            if is_same and is_loaded:
                is_same = again.tobytes() == image.tobytes()
    except Exception:  # no such file any more, or of Pillow almost any type
        return None
    return file if is_same else None


def save_png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    return file.getvalue()
