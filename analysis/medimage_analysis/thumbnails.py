"""Small pictures of the images that a table names, and grids of them."""

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from medimage_client.archive.nifti import is_nifti, read_nifti
from medimage_client.errors import InvalidInput, MedImageError
from medimage_client.images.dicom import is_dicom
from medimage_client.images.encoding import encode_image
from medimage_client.images.windowing import DicomWindow, check_dicom_window

CAPTION_PX = 30  # two lines
FONT_PX = 11


def thumbnail(source: str, frame: int | None, windowing: str, size_px: int) -> Image.Image | None:
    """The image within a square of that side, RGB; None if it cannot be read, as that of an archive.

    Args:
        source, frame: as in a table, whose model has the windowing.
    """
    try:
        image: Image.Image = Image.open(BytesIO(read(source, frame, dicom_window(windowing))))
        if image.mode.startswith(("I", "F")):  # more than 8 bits: from the darkest to the brightest
            image = stretched(image)
        image = image.convert("RGB")
    except (MedImageError, OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError, KeyError):
        return None
    image.thumbnail((size_px, size_px))
    return image


def read(source: str, frame: int | None, window: DicomWindow) -> bytes:
    path = Path(source)
    if is_nifti(path):
        slices = {one.frame: one for one in read_nifti(path, None)}
        return encode_image(slices[frame].read(window))
    content = path.read_bytes() if path.is_file() else read_member(path)
    if is_dicom(content):
        return encode_image(content, frame=frame, dicom_window=window)
    return content


def read_member(path: Path) -> bytes:
    """Of a zip, as `archive.zip/name`."""
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None:
        raise InvalidInput(f"{path}: no such file")
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(path.relative_to(archive).as_posix())
    except zipfile.BadZipFile:
        raise InvalidInput(f"{archive}: is no zip") from None


def dicom_window(windowing: str) -> DicomWindow:
    low, comma, high = windowing.partition(",")
    return check_dicom_window((float(low), float(high)) if comma else windowing)  # type: ignore[arg-type]  # checked


def stretched(image: Image.Image) -> Image.Image:
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    return Image.fromarray(np.uint8(255 * (values - low) / (high - low or 1)))


def grid(images: Sequence[Image.Image | None], captions: Sequence[str], *, tile_px: int, columns: int) -> Image.Image:
    """Tiles in rows, each under its caption of two lines; one without an image stays dark.

    Of a line that is too long the first keeps its beginning, and the second its end, which says more of a path.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * (tile_px + CAPTION_PX)), "black")
    draw = ImageDraw.Draw(sheet)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = place % columns * tile_px, place // columns * (tile_px + CAPTION_PX)
        if image is None:
            draw.rectangle((x, y + CAPTION_PX, x + tile_px - 1, y + CAPTION_PX + tile_px - 1), fill="#222222")
            draw.text((x + tile_px // 2, y + CAPTION_PX + tile_px // 2), "not read", anchor="mm", fill="#888888")
        else:
            sheet.paste(image, (x + (tile_px - image.width) // 2, y + CAPTION_PX + (tile_px - image.height) // 2))
        first, _, rest = caption.partition("\n")
        second = " ".join(rest.split())
        lines = f"{fitting(first, draw, tile_px - 8)}\n{fitting(second[::-1], draw, tile_px - 8)[::-1]}"
        draw.multiline_text((x + 4, y + 2), lines, fill="white", font_size=FONT_PX, spacing=2)
    return sheet


def fitting(line: str, draw: ImageDraw.ImageDraw, width_px: int) -> str:
    """The beginning of a line."""
    if draw.textlength(line, font_size=FONT_PX) <= width_px:
        return line
    while line and draw.textlength(f"{line}…", font_size=FONT_PX) > width_px:
        line = line[:-1]
    return f"{line}…"
