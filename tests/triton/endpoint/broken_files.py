"""Image files that are broken, hostile or none at all, each with what is to be said of it."""

import gzip
import struct
import zipfile
import zlib
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, PngImagePlugin

from tests.triton.endpoint.raw_http import CANARY

NO_IMAGE = "not an image Pillow can read"
NOT_READ = "files are not read; save the image as PNG, JPEG or TIFF"
NOT_BASE64 = "neither an image file nor valid base64 text"  # which the models of Triton take, too
DAMAGED = "file is damaged or truncated"
TOO_LARGE = "at most 50000000"  # pixels in all
TOO_LONG = "at most 32768 a side are allowed"

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
MB = 2**20
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(format, image=None, **options):
    file = BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, format, **options)
    return file.getvalue()


def chunk(kind, data, crc=None):
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(*chunks, width=8, height=8, depth=8, colour=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(chunks)


def scanlines(width=8, height=8):
    """The pixels of a grey PNG, compressed."""
    return zlib.compress(bytes((width + 1) * height))


def png_bomb(kind, head):
    """An image with a text or profile of 64 MB that is compressed to 64 kB."""
    return png(chunk(kind, head + bomb(64 * MB)), chunk(b"IDAT", scanlines()), chunk(b"IEND", b""))


@cache
def bomb(n_bytes):
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(MB)) for _ in range(n_bytes // MB)) + packer.flush()


def png_files():
    good = encode("PNG", pnginfo=comment())
    start = good.index(b"IDAT")
    return {
        "png-signature-alone": (SIGNATURE, NO_IMAGE),
        "png-cut-in-its-signature": (SIGNATURE[:5], NO_IMAGE),
        "png-cut-in-its-header": (good[:20], NO_IMAGE),
        "png-cut-before-its-pixels": (good[: start - 4], NO_IMAGE),
        "png-cut-in-its-pixels": (good[: start + 500], DAMAGED),
        "png-wrong-crc-of-header": (SIGNATURE + chunk(b"IHDR", bytes(13), crc=1) + good[33:], NO_IMAGE),
        "png-flipped-bits-in-its-pixels": (good[: start + 900] + bytes(8) + good[start + 908 :], DAMAGED),
        "png-without-pixels": (png(chunk(b"IEND", b"")), DAMAGED),
        "png-empty-pixels": (png(chunk(b"IDAT", b""), chunk(b"IEND", b"")), DAMAGED),
        "png-pixels-not-compressed": (png(chunk(b"IDAT", bytes(72)), chunk(b"IEND", b"")), DAMAGED),
        "png-no-width": (png(chunk(b"IDAT", scanlines()), width=0), NO_IMAGE),
        "png-unknown-colour-type": (png(chunk(b"IDAT", scanlines()), colour=5), NO_IMAGE),
        "png-100-megapixels": (png(chunk(b"IDAT", b""), width=10_000, height=10_000), TOO_LARGE),
        "png-65535-squared": (png(chunk(b"IDAT", b""), width=65535, height=65535), TOO_LARGE),
        "png-two-to-the-31-squared": (png(chunk(b"IDAT", b""), width=2**31 - 1, height=2**31 - 1), TOO_LARGE),
        "png-one-long-line": (png(chunk(b"IDAT", b""), width=40_000, height=1), TOO_LONG),
        "png-chunk-longer-than-the-file": (png(struct.pack(">I", 2**31 - 1) + b"tEXt"), NO_IMAGE),
        "png-bomb-in-text": (png_bomb(b"zTXt", b"Comment\0\0"), NO_IMAGE),
        "png-bomb-in-international-text": (png_bomb(b"iTXt", b"Comment\0\1\0\0\0"), NO_IMAGE),
        "png-bomb-in-profile": (png_bomb(b"iCCP", b"profile\0\0"), NO_IMAGE),
    }


def comment():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", CANARY)
    return info


def jpeg_files():
    good = encode("JPEG", comment=CANARY.encode())
    frame = good.index(b"\xff\xc0")

    def with_size(width, height):
        return good[: frame + 5] + struct.pack(">HH", height, width) + good[frame + 9 :]

    progressive = encode("JPEG", progressive=True).removesuffix(b"\xff\xd9")
    last_scan = progressive[progressive.rindex(b"\xff\xda") :]
    return {
        "jpeg-of-a-thousand-scans": (progressive + last_scan * 1000 + b"\xff\xd9", "more than 100 scans"),
        "jpeg-start-alone": (b"\xff\xd8\xff", NO_IMAGE),
        "jpeg-cut-in-its-tables": (good[:100], NO_IMAGE),
        "jpeg-cut-in-its-pixels": (good[:-100], DAMAGED),
        "jpeg-without-pixels": (good[: good.index(b"\xff\xda")], DAMAGED),
        "jpeg-no-size": (with_size(0, 0), NO_IMAGE),
        "jpeg-65535-squared": (with_size(65535, 65535), TOO_LARGE),
        "jpeg-lossless": (good[:frame] + b"\xff\xc3" + good[frame + 2 :], DAMAGED),
        "jpeg-5-channels": (good[: frame + 9] + b"\5" + good[frame + 10 :], NO_IMAGE),
        "jpeg-2000-header-alone": (encode("JPEG2000")[:60], NO_IMAGE),
        "jpeg-2000-cut": (encode("JPEG2000")[:-1500], DAMAGED),
    }


def tiff(*tags, first=8, following=0, pixels=b"\0" * 64):
    """A grey 8 x 8 TIFF of one strip; tags of the caller replace those."""
    entries = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: 64, 339: 1}
    offset = 8 + 2 + 12 * len(entries) + 4
    entries = {tag: (4, 1, value) for tag, value in (entries | {273: offset}).items()} | dict(tags)
    rows = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    head = b"II*\0" + struct.pack("<I", first)
    return head + struct.pack("<H", len(entries)) + rows + struct.pack("<I", following) + pixels


def tiff_files():
    floats = encode("TIFF", Image.fromarray(np.ones((4, 4), np.float32)))
    return {
        "tiff-head-alone": (b"II*\0\x08\0\0\0", NO_IMAGE),
        "tiff-first-directory-outside": (tiff(first=10**6), NO_IMAGE),
        "tiff-pixels-cut": (tiff(pixels=b"\0"), DAMAGED),
        "tiff-strip-outside": (tiff((273, (4, 1, 2**31))), DAMAGED),
        "tiff-4-billion-wide": (tiff((256, (4, 1, 2**32 - 1))), TOO_LARGE),
        "tiff-no-width": (tiff((256, (4, 1, 0))), NO_IMAGE),
        "tiff-4-billion-sizes": (tiff((256, (4, 2**32 - 1, 8))), NO_IMAGE),
        "tiff-255-bits": (tiff((258, (4, 1, 255))), NO_IMAGE),
        "tiff-unknown-compression": (tiff((259, (4, 1, 999))), NO_IMAGE),
        "tiff-rubbish-compressed": (tiff((259, (4, 1, 5))), DAMAGED),
        "tiff-floating-point": (floats, "pixels of mode F are not supported"),
        "tiff-lab": (encode("TIFF", Image.new("LAB", (4, 4))), "pixels of mode LAB are not supported"),
    }


def bmp(width, height, bits=24, header_size=40):
    info = struct.pack("<IiiHHIIiiII", header_size, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 192, 0, 0, 54) + info + bytes(192)


def other_images():
    gif, webp = encode("GIF"), encode("WEBP", lossless=True)
    return {
        "gif-header-alone": (gif[:6], NOT_BASE64),
        "gif-cut": (gif[:-1000], DAMAGED),
        "gif-without-frames": (gif[:13] + b";", NO_IMAGE),
        "gif-bomb": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + gif[13:], TOO_LARGE),
        "gif-frame-beyond-its-screen": (
            b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + struct.pack("<HH", 65535, 65535) + b"\0\2\2D\1\0;",
            TOO_LARGE,
        ),
        "bmp-negative-width": (bmp(-8, 8), TOO_LARGE),
        "bmp-smallest-height": (bmp(8, -(2**31)), TOO_LARGE),
        "bmp-cut": (bmp(800, 800), DAMAGED),
        "bmp-unknown-header": (bmp(8, 8, header_size=77), NO_IMAGE),
        "bmp-5-bits": (bmp(8, 8, bits=5), NO_IMAGE),
        "webp-header-alone": (webp[:12], NO_IMAGE),
        "webp-cut": (webp[:-1000], NO_IMAGE),
        "webp-rubbish": (webp[:20] + b"\xff" * 200, NO_IMAGE),
        "pnm-letters-for-sizes": (b"P5\nab cd\n255\n\0\0\0\0", NO_IMAGE),
        "pnm-cut": (b"P5\n800 800\n255\n\0\0", DAMAGED),
        "pnm-4-billion-wide": (b"P5\n4294967295 8\n255\n\0\0", TOO_LARGE),
        "pcx-rubbish": (b"\x0a\x05\x01\x08" + b"\xff" * 124, NOT_READ),
        "dds-rubbish": (b"DDS " + b"\xff" * 200, NOT_READ),
        "qoi-cut": (b"qoif" + struct.pack(">IIBB", 800, 800, 3, 0), NOT_READ),
        "pnm-plain": (b"P2\n1 1\n255\n" + b"#\n" * 1000 + b"7\n", NOT_READ),
        "avif-rubbish": (b"\0\0\0\x20ftypavif" + b"\xff" * 200, NO_IMAGE),
    }


def other_files():
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("image.png", encode("PNG"))
    return {
        "file-of-zeros": (bytes(1000), NO_IMAGE),
        "file-of-random-bytes": (np.random.default_rng(1).bytes(1000), NO_IMAGE),
        "file-of-one-byte": (b"\xff", NO_IMAGE),
        "dicom": (bytes(128) + b"DICM\2\0\0\0UL\4\0" + CANARY.encode(), NO_IMAGE),
        "zip": (archive.getvalue(), NO_IMAGE),
        "gzip": (gzip.compress(encode("PNG"), mtime=0), NO_IMAGE),
        "elf": (b"\x7fELF\2\1\1" + bytes(100), NO_IMAGE),
        "numpy": (b"\x93NUMPY\1\0" + PIXELS.tobytes(), NO_IMAGE),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n\0", NO_IMAGE),
        "pdf": (f"%PDF-1.7\n1 0 obj << /Title ({CANARY}) >> endobj {' ' * 64}".encode(), NOT_BASE64),
        "svg": (f'<svg xmlns="http://www.w3.org/2000/svg"><text>{CANARY}</text></svg>'.encode(), NOT_BASE64),
        "html": (f"<!DOCTYPE html><html><body>{CANARY}</body></html>".encode(), NOT_BASE64),
        "json": (b'{"image": "' + CANARY.encode() + b'"}', NOT_BASE64),
        "python-pickle": (b"\x80\x04\x95cos\nsystem\n" + CANARY.encode(), NO_IMAGE),
        "url-in-base64": (f"https://{CANARY}.example/image.png".encode(), "image URLs are not downloaded"),
        "file-url-in-base64": (b"file:///etc/passwd", NOT_BASE64),
        "base64-twice-of-no-image": (b"aGVsbG8gd29ybGQ=", NO_IMAGE),
        "base64-twice-of-nothing": (b"data:image/png;base64,", "image is empty"),
        "white-space-in-base64": (b" \n\t", "image is empty"),
    }


def broken_files():
    """Files by the word for what is wrong with them, each with a part of the message."""
    return png_files() | jpeg_files() | tiff_files() | other_images() | other_files()


def odd_files():
    """Files that are wrong and yet give pixels, as Pillow reads them; so does the Azure endpoint."""
    jpeg = encode("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    return {
        "png-wrong-crc-of-pixels": png(chunk(b"IDAT", scanlines(), crc=1), chunk(b"IEND", b"")),
        "png-fewer-lines-than-stated": png(chunk(b"IDAT", scanlines(height=2)), chunk(b"IEND", b"")),
        "png-without-its-end": png(chunk(b"IDAT", scanlines())),
        "png-and-a-zip-behind-it": encode("PNG") + b"PK\3\4" + CANARY.encode(),
        "jpeg-arithmetic-rubbish": jpeg[:frame] + b"\xff\xc9" + jpeg[frame + 2 :],
        "tiff-directory-that-follows-itself": tiff(following=8),
        "bmp-from-top-to-bottom": bmp(8, -8),
    }
