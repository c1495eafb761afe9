"""Files of too many parts are refused before a decoder reads them, and what encoders write is not."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from medimage_server.errors import InvalidInput
from medimage_server.image_decoding import decode_image
from medimage_server.image_structure import check_structure
from tests.server.hostile_files import BOMBS, PICTURE, chunk, encode, png, tiff, tiled

REFUSED = {
    "PNG": {
        "a-million-empty-chunks": "more than 2000 chunks",
        "a-million-empty-chunks-behind-the-pixels": "more than 2000 chunks",
        "a-million-empty-pieces-of-pixels": "more than 2000 chunks",
        "a-million-texts": "more than 2000 chunks",
        "a-thousand-texts-of-a-megabyte": "more than 100 compressed texts or profiles",
        "a-thousand-profiles-of-a-megabyte": "more than 100 compressed texts or profiles",
    },
    "JPEG": {
        "a-thousand-scans": "more than 100 scans",
        "a-million-segments": "more than 512 segments before its pixels",
        "a-million-pieces-of-exif": "more than 64 segments of Exif",
        "500-large-pieces-of-exif": "more than 64 segments of Exif",
        "a-million-lone-markers": "more than 512 segments before its pixels",
        "fill-between-segments": "more than 65536 bytes between its segments",
    },
    "TIFF": {
        "8-million-strips": "more strips than the 8 of one row each",
        "8-million-strips-compressed": "more strips than the 8 of one row each",
        "8-million-strips-of-a-high-image": "more strips than the 32768 of one row each",
        "a-million-tags": "more than 4096 tags",
        "a-tile-of-a-gigapixel": "tiles much larger than its image",
    },
    "GIF": {
        "16-million-blocks-of-comment": "more than 65536 blocks before its pixels",
        "a-million-extensions": "more than 65536 blocks before its pixels",
    },
    "JPEG2000": {
        "4-million-boxes": "more than 1000 boxes",
        "a-million-boxes-in-the-header": "more than 1000 boxes",
        "tiles-of-one-pixel": "3072 tiles, which is too many for its pixels",
        "65535-layers": "more than 256 quality layers",
        "a-million-comments": "more than 1000 segments before its pixels",
    },
    "WEBP": {"2-million-unknown-chunks": "more than 10000 chunks"},
}
CASES = [(format, name, message) for format, names in REFUSED.items() for name, message in names.items()]


@pytest.mark.parametrize(("format", "name", "message"), CASES, ids=[f"{format}-{name}" for format, name, _ in CASES])
def test_file_of_too_many_parts_is_refused_by_their_count(format, name, message):
    file = dict(BOMBS[format]())[name]()
    with pytest.raises(InvalidInput) as caught:
        check_structure(file)
    written = {"JPEG2000": "JPEG 2000", "WEBP": "WebP"}.get(format, format)
    assert str(caught.value) == f"{written} file has {message}; save it again as a plain PNG or baseline JPEG"


@pytest.mark.parametrize(
    "file",
    [
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + struct.pack("<HHQQ", 256, 16, 1, 2**64 - 1),
        b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4sQ", 1, b"free", 2**64 - 1),
        b"\xff\xd8\xff",
        b"GIF89a\1",
        b"RIFF",
        b"RIFF\0\0\0\0WAVE" + bytes(8) * 20_000,
    ],
    ids=["directory-beyond", "width-beyond", "box-beyond", "jpeg-cut", "gif-cut", "riff-cut", "riff-of-sound"],
)
def test_file_that_ends_in_a_header_or_points_beyond_its_end_is_left_to_the_decoder(file):
    check_structure(file)
    with pytest.raises(InvalidInput, match=r"^not an image Pillow can read"):
        decode_image(file, max_encoded_bytes=2**25, max_pixels=10**6)


def test_jpeg_2000_of_more_samples_than_its_memory_allows_is_refused():
    stream = bytearray(encode(PICTURE.convert("RGBA"), "JPEG2000", no_jp2=True))
    struct.pack_into(">II", stream, 8, 10_000, 5_000)
    with pytest.raises(InvalidInput, match=r"^JPEG 2000 file has more than 150000000 samples, pixels times channels;"):
        check_structure(bytes(stream))


def texts(count):
    info = PngImagePlugin.PngInfo()
    for number in range(count):
        info.add_text(f"tag {number}", "value" * 20)
    return info


def profile(n_bytes):
    return np.random.default_rng(0).bytes(n_bytes)


def small_pieces(n_bytes):
    """A PNG whose pixels come in chunks of so many bytes."""
    lines = b"".join(b"\0" + line.tobytes() for line in np.asarray(NOISE))
    packed = zlib.compress(lines)
    pieces = (chunk(b"IDAT", packed[start : start + n_bytes]) for start in range(0, len(packed), n_bytes))
    return png(*pieces, width=NOISE.width, height=NOISE.height)


def planar(height, width):
    """A raw TIFF of RGB in three planes, one row a strip."""
    strips = 3 * height
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 277: 3, 278: 1, 284: 2}
    entries = {tag: (4, 1, value) for tag, value in tags.items()} | {273: (4, strips, 0), 279: (4, strips, 0)}
    at = 8 + 2 + 12 * len(entries) + 4
    entries |= {273: (4, strips, at), 279: (4, strips, at + 4 * strips)}
    where = [at + 8 * strips + width * row for row in range(strips)]
    data = struct.pack(f"<{strips}I", *where) + struct.pack("<I", width) * strips
    return tiff(entries, data, bytes(range(width)) * strips)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 900), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[270] = "d" * 60_000
HONEST = {
    "png-of-small-pieces": lambda: small_pieces(1024),
    "png-of-a-thousand-texts": lambda: encode(PICTURE, "PNG", pnginfo=texts(1000)),
    "png-with-profile": lambda: encode(PICTURE, "PNG", icc_profile=profile(900_000)),
    "jpeg-progressive-with-restarts": lambda: encode(
        NOISE.convert("RGB"), "JPEG", progressive=True, restart_marker_blocks=1
    ),
    "jpeg-with-profile-exif-and-comment": lambda: encode(
        PICTURE, "JPEG", icc_profile=profile(3_000_000), exif=EXIF, comment=b"c" * 65_000
    ),
    "jpeg-with-xmp": lambda: encode(PICTURE, "JPEG", xmp=b"x" * 60_000),
    "tiff-one-row-a-strip": lambda: encode(NOISE, "TIFF", tiffinfo={278: 1}),
    "tiff-one-row-a-strip-lzw": lambda: encode(NOISE, "TIFF", compression="tiff_lzw", tiffinfo={278: 1}),
    "tiff-one-row-a-strip-in-planes": lambda: planar(300, 200),
    "tiff-tiles-of-16": lambda: tiled(900, 700, 16, 16, 1, bytes(256)),
    "tiff-tile-larger-than-its-image": lambda: tiled(30, 20, 1024, 1024, 8, zlib.compress(bytes(1024 * 1024))),
    "tiff-big": lambda: encode(NOISE, "TIFF", big_tiff=True),
    "tiff-of-many-pages": lambda: encode(PICTURE, "TIFF", save_all=True, append_images=[PICTURE] * 50),
    "jpeg-2000-in-tiles": lambda: encode(NOISE, "JPEG2000", tile_size=(64, 64)),
    "jpeg-2000-of-50-layers": lambda: encode(NOISE, "JPEG2000", quality_layers=list(range(60, 10, -1))),
    "jpeg-2000-of-many-resolutions": lambda: encode(NOISE, "JPEG2000", num_resolutions=9),
    "gif-with-a-long-comment": lambda: encode(NOISE, "GIF", comment=b"c" * 200_000),
    "gif-of-many-frames": lambda: encode(
        PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(i) for i in range(50)]
    ),
    "webp-of-many-frames": lambda: encode(
        PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(i) for i in range(100)]
    ),
    "webp-with-profile": lambda: encode(PICTURE, "WEBP", icc_profile=profile(900_000), exif=EXIF),
}


@pytest.mark.parametrize("make", HONEST.values(), ids=HONEST.keys())
def test_file_as_encoders_write_it_gives_the_pixels_of_pillow(make):
    file = make()
    image = decode_image(file, max_encoded_bytes=2**25, max_pixels=10**6)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(BytesIO(file))))
