"""Raw PGM and PPM files (P5 and P6) to pixels: what DCMTK's dcm2pnm writes.

The values are those of Pillow's plug-in, which is not used: it takes a microsecond a pixel for 12 bits, and its reading
of plain files and of comments can take minutes.
"""

import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medimage_server.errors import InvalidInput

MAX_HEADER_BYTES = 1024
GAP = rb"(?:[ \t\n\v\f\r]|#[^\r\n]*[\r\n])+"  # white space and comments
HEADER = re.compile(rb"P([56])%b(\d{1,10})%b(\d{1,10})%b(\d{1,5})[ \t\n\v\f\r]" % (GAP, GAP, GAP))
SIGNATURES = (b"P5", b"P6")


class Header:
    """What the header says.

    Raises:
        ValueError: it is none, or is longer than MAX_HEADER_BYTES.
    """

    def __init__(self, file: bytes) -> None:
        found = HEADER.match(file[:MAX_HEADER_BYTES])
        if not found:
            raise ValueError("no header of a raw PGM or PPM")
        self.channels = 1 if found[1] == b"5" else 3
        self.size = int(found[2]), int(found[3])  # (width, height)
        self.white = int(found[4])
        self.end = found.end()
        if not 0 < self.white < 2**16 or 0 in self.size:
            raise ValueError("no size, or values of more than 16 bits")


def read_raw_pnm(file: bytes, header: Header) -> Image.Image:
    """Grey as "L", or as "I;16" if it is deeper than 8 bits, or "RGB"; the file's own white is that of the image.

    Raises:
        InvalidInput: pixels are missing.
    """
    width, height = header.size
    stored = np.dtype(">u2" if header.white > 255 else np.uint8)
    count = width * height * header.channels
    if len(file) - header.end < count * stored.itemsize:
        raise InvalidInput("PPM file is damaged or truncated; send the complete file")
    values = np.frombuffer(file, stored, count, header.end)
    is_deep = header.channels == 1 and header.white > 255
    if header.white != 255 and not (is_deep and header.white == 2**16 - 1):
        values = scale_table(header.white, 2**16 - 1 if is_deep else 255)[np.minimum(values, header.white)]
    shape = (height, width) if header.channels == 1 else (height, width, 3)
    return Image.fromarray(values.reshape(shape).astype(np.uint16 if is_deep else np.uint8))


def scale_table(white: int, new_white: int) -> NDArray[np.uint16]:
    """What each value from 0 to `white` becomes when `white` becomes `new_white`; half to even, as Pillow does."""
    table: NDArray[np.uint16] = np.rint(np.arange(white + 1) / white * new_white).astype(np.uint16)
    return table
