"""Findings as a picture: the image with its boxes, and the findings in full below."""

import colorsys
from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medimage_client.errors import InvalidInput
from medimage_client.images.encoding import DEEP_MODES, ImageInput, encode_image, read_array
from medimage_client.images.windowing import DicomWindow
from medimage_client.reports.finding import Box, Finding

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MIN_WIDTH_PX = 480  # of the picture: a smaller image is enlarged, so that lines of the legend hold some words
LINE_LENGTH = 80  # characters of the legend in a line, about
MIN_FONT_SIZE_PX = 14
GOLDEN_ANGLE = 0.381966  # of the hue circle, from one finding to the next: no two of a few come close
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def draw_findings(findings: Sequence[Finding], image: ImageInput, dicom_window: DicomWindow = "file") -> Image.Image:
    """See `Report.draw`."""
    film = open_film(image, dicom_window)
    size = film.size
    if film.width < MIN_WIDTH_PX:
        film = film.resize((MIN_WIDTH_PX, max(1, round(film.height * MIN_WIDTH_PX / film.width))))
    font = font_of(film.width)
    draw = ImageDraw.Draw(film)
    for number, finding in enumerate(findings, start=1):
        for box in finding.boxes:
            draw_box(draw, box.to_original_exact(*size), str(number), colour_of(number), font)
    return stack(film, draw_legend(findings, film.width, font))


def font_of(width: int) -> Font:
    """For a picture of that width."""
    return ImageFont.load_default(max(MIN_FONT_SIZE_PX, 2 * width // LINE_LENGTH))


def open_film(image: ImageInput, dicom_window: DicomWindow) -> Image.Image:
    """Any image as RGB, as the server sees it: the first frame, not turned by its EXIF orientation."""
    try:
        film: Image.Image = Image.open(BytesIO(encode_image(image, dicom_window=dicom_window, advise_window=False)))
        film.load()
    except InvalidInput:
        raise
    except Exception:  # of Pillow almost any type
        raise InvalidInput("is not an image that Pillow can read") from None
    if film.mode in DEEP_MODES or film.mode.startswith("I;16"):  # of which RGB would be the low bits
        values = np.asarray(film)
        film = read_array(values, (float(values.min()), float(values.max()) + 1))
    return film.convert("RGB")


def colour_of(number: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb((number * GOLDEN_ANGLE) % 1, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_box(draw: ImageDraw.ImageDraw, box: Box, number: str, colour: Colour, font: Font) -> None:
    """The outline, and the number on a plate in its top left corner, inside the picture."""
    width, height = draw.im.size
    # a box may be inside out: the grammar does not forbid it
    x_min, x_max = sorted((box.x_min * width, box.x_max * width))
    y_min, y_max = sorted((box.y_min * height, box.y_max * height))
    draw.rectangle((x_min, y_min, x_max, y_max), outline=colour, width=max(2, width // 300))
    left, top, right, bottom = draw.textbbox((x_min, y_min), number, font)
    draw.rectangle((x_min, y_min, right + left - x_min, bottom + top - y_min), fill=colour)
    draw.text((x_min, y_min), number, BLACK, font)


def draw_legend(findings: Sequence[Finding], width: int, font: Font) -> Image.Image:
    """Every finding with its number, in the colour of its boxes if it has any, wrapped to the width."""
    line_height = round(1.4 * font.getbbox("Åg")[3])
    margin = line_height // 2
    indent = round(font.getlength(f"{len(findings)}.  "))
    texts = [list(wrap(finding.text, width - 2 * margin - indent, font)) or [""] for finding in findings]
    if not texts:
        return Image.new("RGB", (width, 0))
    legend = Image.new("RGB", (width, 2 * margin + line_height * sum(map(len, texts))), BLACK)
    draw = ImageDraw.Draw(legend)
    y = margin
    for number, (finding, lines) in enumerate(zip(findings, texts, strict=True), start=1):
        colour = colour_of(number) if finding.boxes else WHITE
        draw.text((margin, y), f"{number}.", colour, font)
        for line in lines:
            draw.text((margin + indent, y), line, colour, font)
            y += line_height
    return legend


def wrap(text: str, width: float, font: Font) -> Iterator[str]:
    """Lines no wider than `width` pixels, broken at white space, or within a word that is too wide by itself."""
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while len(line) > 1 and font.getlength(line) > width:
            end = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            yield line[:end]
            line = line[end:]
    if line:
        yield line


def stack(above: Image.Image, below: Image.Image) -> Image.Image:
    picture = Image.new("RGB", (above.width, above.height + below.height))
    picture.paste(above, (0, 0))
    picture.paste(below, (0, above.height))
    return picture
