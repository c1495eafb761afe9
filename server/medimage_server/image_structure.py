"""Bounds on how an image file is built, checked before a decoder reads it.

A small file of few pixels can be built of so many parts that reading it takes minutes and gigabytes. Each count is
bounded by what the pixels justify, or by far more than encoders write. Only what is known to cost much is counted here,
and only as far as a few lines can: what else costs too much ends at the limits of `image_process`.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping

from medimage_server.errors import InvalidInput

MAX_SIDE_PX = 2**15  # a resize holds (source height x new width) pixels, however few the source has
MAX_COUNTED_PIXELS = 2**28  # a header may state any size, and what it justifies is found out before it is refused

# Pillow takes 4 us a chunk. libpng writes 8 KiB of compressed pixels in each, some encoders 1 KiB.
PNG_CHUNKS, PNG_PIXELS_A_CHUNK = 2000, 512
PNG_COMPRESSED_CHUNKS = 100  # each may unpack to 1 MB of text or profile, of which Pillow keeps 64 MB
COMPRESSED_CHUNKS = (b"zTXt", b"iTXt", b"iCCP")

# A scan of a progressive JPEG can be 75 bytes long and takes as much time as all its pixels: 0.07 s at 50 megapixels.
# Encoders write about 10; libtiff refuses more than these (tif_jpeg.c) in the JPEGs that it reads.
MAX_JPEG_SCANS = 100
START_OF_SCAN = b"\xff\xda"  # nowhere in compressed pixels, where 00 follows each FF
MAX_JPEG_SEGMENTS = 512  # before the pixels; a profile has at most 255, and 10 MB of XMP have 160
MAX_JPEG_EXIF = 64  # segments, of which cameras write one; Pillow joins them one by one
MAX_JPEG_FILL = 2**16  # bytes between segments, which Pillow reads one by one
EXIF = re.compile(rb"\xff\xe1..Exif\0\0", re.DOTALL)
MARKER = re.compile(rb"[^\xff]*+\xff++([^\xff])")
ALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # markers that are no segments: nothing follows

MAX_TIFF_TAGS = 4096  # files of microscopes have some hundred
TIFF_WIDTH, TIFF_HEIGHT, TIFF_SAMPLES, TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 256, 257, 277, 322, 323
TIFF_STRIPS, TIFF_TILES = (273, 279), (324, 325)  # their offsets, and their byte counts
MAX_TIFF_SAMPLES = 8  # a pixel; Pillow reads 6
TIFF_TILE_SIDE = 8  # the specification has multiples of 16
TIFF_TILE_PIXELS = 2**24  # a tile is decoded as a whole, however small the image is
TIFF_INTEGERS = {3: "H", 4: "I", 16: "Q"}

MAX_JPEG2000_BOXES = MAX_JPEG2000_SEGMENTS = 1000
MAX_JPEG2000_LAYERS = 256  # encoders write up to 50; a packet of no bytes is read for each, resolution and tile
JPEG2000_TILES, JPEG2000_PIXELS_A_TILE = 64, 32 * 32
# openjpeg holds 4 bytes for each, and Pillow's image comes on top: RGB of 50 megapixels takes 0.93 GB.
MAX_JPEG2000_SAMPLES = 150_000_000
CODESTREAM = b"\xff\x4f\xff\x51"

MAX_GIF_BLOCKS = 2**16  # before the first frame; 16 MB of comments
MAX_WEBP_CHUNKS = 10_000  # a frame of a film is one


def check_structure(file: bytes) -> None:
    """Count the parts of a file, if it is of a format whose parts can cost more than its pixels.

    A file that is cut short or wrong in itself passes; the decoder says so.

    Raises:
        InvalidInput: there are more parts than any encoder writes.
    """
    for signature, check in CHECKS.items():
        if file.startswith(signature):
            try:
                check(file)
            except (struct.error, IndexError, OverflowError):
                return  # it ends within a header, or points beyond any end


def refuse(format: str, what: str) -> None:
    raise InvalidInput(f"{format} file has {what}; save it again as a plain PNG or baseline JPEG")


def check_png(file: bytes) -> None:
    width, height = struct.unpack_from(">II", file, 16)
    allowed = PNG_CHUNKS + min(width * height, MAX_COUNTED_PIXELS) // PNG_PIXELS_A_CHUNK
    position, chunks, compressed = 8, 0, 0
    while position + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, position)
        position += 12 + length
        chunks += 1
        compressed += kind in COMPRESSED_CHUNKS
        if chunks > allowed:
            refuse("PNG", f"more than {allowed} chunks")
        if compressed > PNG_COMPRESSED_CHUNKS:
            refuse("PNG", f"more than {PNG_COMPRESSED_CHUNKS} compressed texts or profiles")
        if kind == b"IEND":
            return


def check_jpeg(file: bytes) -> None:
    if file.count(START_OF_SCAN) > MAX_JPEG_SCANS:
        refuse("JPEG", f"more than {MAX_JPEG_SCANS} scans")
    if len(EXIF.findall(file)) > MAX_JPEG_EXIF:
        refuse("JPEG", f"more than {MAX_JPEG_EXIF} segments of Exif")
    position, segments, fill = 2, 0, 0
    while found := MARKER.match(file, position):
        kind = found[1][0]
        if kind == START_OF_SCAN[1]:
            return
        segments += 1
        fill += found.end() - position - 2
        if segments > MAX_JPEG_SEGMENTS:
            refuse("JPEG", f"more than {MAX_JPEG_SEGMENTS} segments before its pixels")
        if fill > MAX_JPEG_FILL:
            refuse("JPEG", f"more than {MAX_JPEG_FILL} bytes between its segments")
        position = found.end() + (0 if kind in ALONE else struct.unpack_from(">H", file, found.end())[0])


def check_tiff(file: bytes) -> None:
    """The first directory, which is the only one that is read."""
    is_big = file[2] == 43  # as Pillow tells it
    order = "<" if file.startswith(b"II") else ">"
    (start,) = struct.unpack_from(order + "Q" if is_big else order + "I", file, 8 if is_big else 4)
    (tags,) = struct.unpack_from(order + "Q" if is_big else order + "H", file, start)
    if tags > MAX_TIFF_TAGS:
        refuse("TIFF", f"more than {MAX_TIFF_TAGS} tags")
    counts, values = read_tags(file, start + (8 if is_big else 2), tags, order, is_big)

    width, height = (min(values.get(tag, 0), MAX_SIDE_PX) for tag in (TIFF_WIDTH, TIFF_HEIGHT))
    samples = min(max(values.get(TIFF_SAMPLES, 1), 1), MAX_TIFF_SAMPLES)
    strips = height * samples
    if any(counts.get(tag, 0) > max(strips, 1) for tag in TIFF_STRIPS):
        refuse("TIFF", f"more strips than the {height} of one row each")
    tiles = -(-width // TIFF_TILE_SIDE) * -(-height // TIFF_TILE_SIDE) * samples
    if any(counts.get(tag, 0) > max(tiles, 1) for tag in TIFF_TILES):
        refuse("TIFF", f"more tiles than the {tiles} of {TIFF_TILE_SIDE} x {TIFF_TILE_SIDE} pixels each")
    tile = values.get(TIFF_TILE_WIDTH, 0) * values.get(TIFF_TILE_HEIGHT, 0)
    if tile > TIFF_TILE_PIXELS + 4 * width * height:
        refuse("TIFF", "tiles much larger than its image")


def read_tags(
    file: bytes, position: int, tags: int, order: str, is_big: bool
) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """How many values each tag has, and the value of those that have one integer. Of a tag twice the first counts."""
    entry = order + ("HHQ" if is_big else "HHI")
    size = struct.calcsize(entry)
    counts: dict[int, int] = {}
    values: dict[int, int] = {}
    for _ in range(tags):
        tag, kind, count = struct.unpack_from(entry, file, position)
        counts.setdefault(tag, count)
        if count == 1 and kind in TIFF_INTEGERS:
            values.setdefault(tag, struct.unpack_from(order + TIFF_INTEGERS[kind], file, position + size)[0])
        position += size + (8 if is_big else 4)
    return counts, values


def check_jpeg2000(file: bytes) -> None:
    start = file.find(CODESTREAM)
    head = file if start < 0 else file[:start]
    if not file.startswith(CODESTREAM):
        for boxes, (kind, inside) in enumerate(read_boxes(head), start=1):
            nested = sum(1 for _ in read_boxes(inside)) if kind == b"jp2h" else 0
            if max(boxes, nested) > MAX_JPEG2000_BOXES:
                refuse("JPEG 2000", f"more than {MAX_JPEG2000_BOXES} boxes")
    if start >= 0:
        check_codestream(file, start + 2)


def read_boxes(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and content of boxes one after the other; only as many as are looked at."""
    position = 0
    for _ in range(MAX_JPEG2000_BOXES + 1):
        if position + 8 > len(file):
            return
        length, kind = struct.unpack_from(">I4s", file, position)
        head = 16 if length == 1 else 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", file, position + 8)
        if length < head:  # 0 is the last one, which goes on to the end
            return
        yield kind, file[position + head : position + length] if kind == b"jp2h" else b""
        position += length


def check_codestream(file: bytes, position: int) -> None:
    """The main header of a JPEG 2000: its size, which is first, and the coding style."""
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">8IH", file, position + 6
    )
    pixels = max(right - left, 0) * max(bottom - top, 0)
    if pixels * components > MAX_JPEG2000_SAMPLES:
        refuse("JPEG 2000", f"more than {MAX_JPEG2000_SAMPLES} samples, pixels times channels")
    tiles = -(-(right - tile_left) // max(tile_width, 1)) * -(-(bottom - tile_top) // max(tile_height, 1))
    if tiles > JPEG2000_TILES + pixels // JPEG2000_PIXELS_A_TILE:
        refuse("JPEG 2000", f"{tiles} tiles, which is too many for its pixels")
    for segments in range(MAX_JPEG2000_SEGMENTS + 2):
        marker, length = struct.unpack_from(">HH", file, position)
        if marker == 0xFF90:  # the first tile
            return
        if marker == 0xFF52 and struct.unpack_from(">H", file, position + 6)[0] > MAX_JPEG2000_LAYERS:
            refuse("JPEG 2000", f"more than {MAX_JPEG2000_LAYERS} quality layers")
        if segments > MAX_JPEG2000_SEGMENTS:
            refuse("JPEG 2000", f"more than {MAX_JPEG2000_SEGMENTS} segments before its pixels")
        position += 2 + length


def check_gif(file: bytes) -> None:
    flags = file[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while file[position] == ord("!"):  # an extension: its kind, blocks with their length in front, and one of none
        position += 2
        while length := file[position]:
            position += 1 + length
            blocks += 1
            if blocks > MAX_GIF_BLOCKS:
                break
        position += 1
        blocks += 1
        if blocks > MAX_GIF_BLOCKS:
            refuse("GIF", f"more than {MAX_GIF_BLOCKS} blocks before its pixels")


def check_webp(file: bytes) -> None:
    position, chunks = 12, 0
    while file[8:12] == b"WEBP" and position + 8 <= len(file):
        (length,) = struct.unpack_from("<I", file, position + 4)
        position += 8 + length + length % 2
        chunks += 1
        if chunks > MAX_WEBP_CHUNKS:
            refuse("WebP", f"more than {MAX_WEBP_CHUNKS} chunks")


# Not BMP, whose header says it all, nor AVIF, of which libavif itself bounds the parts.
CHECKS: Mapping[bytes, Callable[[bytes], None]] = {
    b"\x89PNG\r\n\x1a\n": check_png,
    b"\xff\xd8\xff": check_jpeg,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"), check_tiff),  # as Pillow takes them
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": check_jpeg2000,
    CODESTREAM: check_jpeg2000,
    b"GIF8": check_gif,
    b"RIFF": check_webp,
}
