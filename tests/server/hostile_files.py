"""Image files made to cost as much as they can, by format, and mutations of good ones: a corpus with a seed."""

import random
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

MB = 2**20
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))


def encode(image, format, **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, data=b""):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks, width=8, height=8, depth=8, colour=0, interlaced=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND")


def scanlines(width=8, height=8):
    return zlib.compress(bytes((width + 1) * height))


def bomb(n_bytes):
    """Zeros, compressed to a thousandth, as zlib has them: one megabyte, so often."""
    packer, sum_of_zeros = zlib.compressobj(9, wbits=-zlib.MAX_WBITS), (n_bytes % 65521) << 16 | 1
    megabyte = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)  # after which nothing is referred to
    return b"\x78\xda" + megabyte * (n_bytes // MB) + packer.flush() + struct.pack(">I", sum_of_zeros)


def png_bombs():
    pixels = chunk(b"IDAT", scanlines())
    yield "a-million-empty-chunks", lambda: png(chunk(b"teSt") * 10**6, pixels)
    yield "a-million-empty-chunks-behind-the-pixels", lambda: png(pixels, chunk(b"teSt") * 10**6)
    yield "a-million-empty-pieces-of-pixels", lambda: png(chunk(b"IDAT") * 10**6, pixels)
    yield "a-million-texts", lambda: png(b"".join(chunk(b"tEXt", b"k%d\0v" % i) for i in range(10**6)), pixels)
    yield "a-thousand-texts-of-a-megabyte", lambda: png(chunk(b"zTXt", b"\0\0" + bomb(MB)) * 1000, pixels)
    yield "a-thousand-profiles-of-a-megabyte", lambda: png(chunk(b"iCCP", b"p\0\0" + bomb(MB)) * 1000, pixels)
    yield "a-profile-of-half-a-gigabyte", lambda: png(chunk(b"iCCP", b"p\0\0" + bomb(512 * MB)), pixels)
    yield "a-text-of-half-a-gigabyte", lambda: png(chunk(b"iTXt", b"k\0\1\0\0\0" + bomb(512 * MB)), pixels)
    yield "as-many-chunks-as-are-allowed", lambda: png(chunk(b"teSt") * 1900, pixels)
    yield "pixels-of-half-a-gigabyte-for-8-x-8", lambda: png(chunk(b"IDAT", bomb(512 * MB)))
    yield (
        "50-megapixels-of-16-bit-rgba",
        lambda: png(chunk(b"IDAT", bomb(401 * MB)), width=10_000, height=5_000, depth=16, colour=6),
    )
    yield (
        "50-megapixels-interlaced",
        lambda: png(chunk(b"IDAT", bomb(201 * MB)), width=10_000, height=5_000, colour=6, interlaced=1),
    )


def progressive(width, height):
    """The head and the last scan of a progressive JPEG of one grey, the last of which can be repeated."""
    file = encode(Image.new("L", (width, height), 90), "JPEG", progressive=True).removesuffix(b"\xff\xd9")
    return file, file[file.rindex(b"\xff\xda") :]


def scans(width, height, count):
    head, last = progressive(width, height)
    return head + last * count + b"\xff\xd9"


def jpeg_bombs():
    good = encode(PICTURE, "JPEG")
    start, rest = good[:2], good[2:]

    def segment(kind, data):
        return bytes((0xFF, kind)) + struct.pack(">H", 2 + len(data)) + data

    yield "a-thousand-scans", lambda: scans(2000, 1000, 1000)
    yield "90-scans-of-50-megapixels", lambda: scans(10_000, 5_000, 90)
    yield "a-million-segments", lambda: start + segment(0xE5, b"") * 10**6 + rest
    yield "a-million-pieces-of-exif", lambda: start + segment(0xE1, b"Exif\0\0" + bytes(14)) * 10**6 + rest
    yield "500-large-pieces-of-exif", lambda: start + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 500 + rest
    yield "500-segments-of-tables", lambda: start + segment(0xDB, (bytes((0,)) + bytes(64)) * 1000) * 500 + rest
    yield "fill-between-segments", lambda: start + b"\xff" * 30 * MB + rest
    yield "rubbish-between-segments", lambda: start + bytes(30 * MB) + rest
    yield "a-million-lone-markers", lambda: start + b"\xff\xd0" * 10 * MB + rest
    yield "restarts-without-end", lambda: good.removesuffix(b"\xff\xd9") + b"\xff\xd0" * 15 * MB
    yield "50-megapixels-cut", lambda: encode(Image.new("RGB", (10_000, 5_000)), "JPEG")[:300_000]


def tiff(tags, data=b"", pixels=b"\0" * 64):
    """A little-endian TIFF of tags {tag: (type, count, value)}; None as a value stands for where `data` lies."""
    at = 8 + 2 + 12 * len(tags) + 4
    rows = b"".join(
        struct.pack("<HHII", tag, kind, count, at if value is None else value)
        for tag, (kind, count, value) in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + data + pixels


def grey_tiff(width=8, height=8, compression=1, **replaced):
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 278: height}
    return {tag: (4, 1, value) for tag, value in tags.items()} | replaced.get("tags", {})


def tiled(width, height, tile_width, tile_height, compression, data):
    tags = grey_tiff(width, height, compression)
    tiles = -(-width // tile_width) * -(-height // tile_height)
    tags |= {322: (4, 1, tile_width), 323: (4, 1, tile_height), 324: (4, 1, None), 325: (4, 1, len(data))}
    if tiles > 1:
        at = 8 + 2 + 12 * len(tags) + 4
        where = struct.pack("<I", at + 8 * tiles) * tiles + struct.pack("<I", len(data)) * tiles
        tags |= {324: (4, tiles, at), 325: (4, tiles, at + 4 * tiles)}
        return tiff(tags, where, data)
    return tiff(tags, data)


def many_strips(count, compression=1, height=8, kind=3):
    """Offsets and lengths of all strips are the same bytes."""
    tags = grey_tiff(height=height, compression=compression)
    tags |= {273: (kind, count, None), 278: (4, 1, 1), 279: (kind, count, None)}
    return tiff(tags, struct.pack("<H", 8) * (count * (1 if kind == 3 else 2)))


def big_tiff(tags):
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, tags) + struct.pack("<HHQQ", 256, 4, 1, 8) * tags + bytes(8)


def one_strip(width, height, compression, data):
    tags = grey_tiff(width, height, compression) | {273: (4, 1, None), 279: (4, 1, len(data))}
    return tiff(tags, data)


def tiff_bombs():
    yield "8-million-strips", lambda: many_strips(8_000_000)
    yield "8-million-strips-compressed", lambda: many_strips(8_000_000, compression=8)
    yield "8-million-strips-of-a-high-image", lambda: many_strips(8_000_000, height=8_000_000)
    yield "32-thousand-strips", lambda: many_strips(32_768, height=32_768)
    yield "a-million-tags", lambda: big_tiff(10**6)
    yield "65535-tags", lambda: b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 256, 4, 1, 8) * 65535 + bytes(8)
    yield "a-tile-of-a-gigapixel", lambda: tiled(8, 8, 32_000, 32_000, 8, bomb(64 * MB))
    yield "a-strip-of-half-a-gigabyte", lambda: one_strip(8, 8, 8, bomb(512 * MB))
    yield "50-megapixels-in-tiles-of-16", lambda: tiled(8192, 6096, 16, 16, 8, zlib.compress(bytes(256)))
    yield "50-megapixels-in-raw-tiles-of-16", lambda: tiled(8192, 6096, 16, 16, 1, bytes(256))
    yield "50-megapixels-of-zeros", lambda: one_strip(10_000, 5_000, 8, bomb(50 * MB))
    yield "50-megapixels-of-fax", lambda: one_strip(10_000, 5_000, 4, RNG.bytes(8 * MB))
    yield "50-megapixels-of-packbits", lambda: one_strip(10_000, 5_000, 32773, b"\x81\0" * 500_000)


def bmp(width, height, data, compression=1, bits=8):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 256, 0)
    palette = bytes(range(256)) * 4
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + info + palette + data


def bmp_bombs():
    yield "codes-that-give-no-pixel", lambda: bmp(8, 8, b"\x08\0" + b"\1\0" * 15 * MB)
    yield "50-megapixels-of-ends-of-line", lambda: bmp(10_000, 5_000, b"\1\0\0\0" * 5000)
    yield "50-megapixels-of-short-runs", lambda: bmp(10_000, 5_000, b"\2\0" * 16_000_000)
    yield "50-megapixels-of-4-bit-runs", lambda: bmp(10_000, 5_000, b"\xff\0" * 200_000, compression=2, bits=4)


def gif(*extensions, width=8, height=8, data=b"\2\2D\1\0;"):
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"".join(extensions) + frame + data


def gif_bombs():
    yield "16-million-blocks-of-comment", lambda: gif(b"!\xfe" + b"\1c" * 15_000_000 + b"\0")
    yield "a-million-extensions", lambda: gif(b"!\xf9\0" * 10 * 10**6)
    yield "as-many-blocks-as-are-allowed", lambda: gif(b"!\xfe" + (b"\xff" + bytes(255)) * 60_000 + b"\0")
    yield "codes-that-only-clear", lambda: gif(data=b"\2" + (b"\xff" + b"\x24\x49\x92" * 85) * 100_000 + b"\0;")
    yield (
        "50-megapixels-of-short-codes",
        lambda: gif(width=10_000, height=5_000, data=b"\2" + (b"\xff" + b"\x04\x41\x10" * 85) * 100_000 + b"\0;"),
    )


def jpeg2000_with(offset, format, value, **options):
    """A codestream with a field of its SIZ or COD segment replaced; the offset is from the segment's marker."""
    file = bytearray(encode(PICTURE, "JPEG2000", no_jp2=True, **options))
    struct.pack_into(format, file, offset, value)
    return bytes(file)


def jpeg2000_bombs():
    jp2 = encode(PICTURE, "JPEG2000")
    stream = jpeg2000_with(2, ">H", 0xFF51)
    cod = stream.index(b"\xff\x52")
    header = jp2.index(b"jp2h") - 4
    yield "4-million-boxes", lambda: jp2[:header] + struct.pack(">I4s", 8, b"free") * 4_000_000 + jp2[header:]
    yield (
        "a-million-boxes-in-the-header",
        lambda: (
            jp2[:header]
            + struct.pack(">I4s", 8 + 8 * 10**6, b"jp2h")
            + struct.pack(">I4s", 8, b"free") * 10**6
            + jp2[header:]
        ),
    )
    yield "tiles-of-one-pixel", lambda: jpeg2000_tiles(1)
    yield "tiles-of-32-pixels", lambda: encode(Image.new("L", (4096, 4096)), "JPEG2000", tile_size=(32, 32))
    yield "65535-layers", lambda: jpeg2000_with(cod + 6, ">H", 65535)
    yield "16384-channels", lambda: jpeg2000_with(40, ">H", 16384)
    yield "32-resolutions", lambda: jpeg2000_with(cod + 9, ">B", 32)
    yield "a-million-comments", lambda: stream[:cod] + b"\xff\x64\0\5\0\1c" * 10**6 + stream[cod:]
    yield "50-megapixels-of-one-grey", lambda: encode(Image.new("L", (10_000, 5_000)), "JPEG2000")


def jpeg2000_tiles(side):
    file = bytearray(jpeg2000_with(24, ">I", side))
    struct.pack_into(">I", file, 28, side)
    return bytes(file)


def riff(*chunks):
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_bombs():
    good = encode(PICTURE, "WEBP", lossless=True)
    image = (good[12:16], good[20 : 20 + struct.unpack_from("<I", good, 16)[0]])
    extended = (b"VP8X", struct.pack("<IHBHB", 0, 63, 0, 47, 0))
    animated = (b"VP8X", struct.pack("<IHBHB", 2, 63, 0, 47, 0))
    frame = (b"ANMF", bytes(6) + struct.pack("<HBHBI", 63, 0, 47, 0, 0) + riff(image)[12:])
    yield "2-million-unknown-chunks", lambda: riff(extended, image, *[(b"teSt", b"")] * 2 * 10**6)
    yield "9000-unknown-chunks", lambda: riff(extended, image, *[(b"teSt", b"")] * 9000)
    yield "2000-frames", lambda: riff(animated, (b"ANIM", bytes(6)), *[frame] * 2000)
    yield (
        "50-megapixels-of-one-colour",
        lambda: encode(Image.new("RGB", (10_000, 5_000)), "WEBP", lossless=True, method=0),
    )
    yield "a-canvas-of-268-megapixels", lambda: riff((b"VP8X", bytes(4) + b"\xff\x3f\0" * 2), image)


def avif_bombs():
    good = encode(PICTURE, "AVIF")
    yield "8-million-boxes", lambda: good[:32] + struct.pack(">I4s", 8, b"free") * 3_000_000 + good[32:]
    yield "50-megapixels-of-one-grey", lambda: encode(Image.new("L", (10_000, 5_000)), "AVIF", speed=10)
    yield "200-frames", lambda: encode(PICTURE, "AVIF", save_all=True, append_images=[PICTURE] * 200, speed=10)


def pnm_bombs():
    yield "a-megabyte-of-comments-in-a-plain-one", lambda: b"P2\n8 8\n255\n" + b"#\n" * (MB // 2) + b"7 " * 64
    yield "a-comment-of-30-megabytes", lambda: b"P5\n#" + b"c" * 30 * MB + b"\n8 8\n255\n" + bytes(64)
    yield "comments-without-end", lambda: b"P5\n" + b"#\n" * 15 * MB
    yield "16-megapixels-of-12-bits", lambda: b"P5\n4096 4000\n4095\n" + RNG.bytes(2 * 4096 * 4000)
    yield "a-plain-one-of-15-megapixels", lambda: b"P1\n4000 4000\n" + b"1 " * 15_000_000


BOMBS = {
    "PNG": png_bombs,
    "JPEG": jpeg_bombs,
    "TIFF": tiff_bombs,
    "BMP": bmp_bombs,
    "GIF": gif_bombs,
    "JPEG2000": jpeg2000_bombs,
    "WEBP": webp_bombs,
    "AVIF": avif_bombs,
    "PNM": pnm_bombs,
}


def good_files(format):
    grey = PICTURE.convert("L")
    if format == "PNM":
        return [encode(PICTURE, "PPM"), b"P5\n64 48\n4095\n" + RNG.bytes(2 * 64 * 48)]
    ways = {
        "PNG": [{}, {"dpi": (72, 72)}],
        "JPEG": [{}, {"progressive": True}, {"restart_marker_blocks": 2}],
        "TIFF": [
            {},
            {"compression": "tiff_lzw"},
            {"compression": "jpeg"},
            {"compression": "tiff_adobe_deflate"},
            {"big_tiff": True},
        ],
        "GIF": [{}, {"save_all": True, "append_images": [grey]}],
        "JPEG2000": [{}, {"tile_size": (32, 32)}, {"no_jp2": True}],
        "WEBP": [{}, {"lossless": True}],
    }.get(format, [{}])
    return [encode(image, format, **options) for image in (PICTURE, grey) for options in ways]


def mutations(format, count, seed=0):
    """Good files with some bytes replaced, most of them in the first 128, some cut, some with a part twice."""
    rng = random.Random(f"{format}{seed}")
    good = good_files(format)
    for number in range(count):
        data = bytearray(rng.choice(good))
        for _ in range(rng.choice((1, 2, 8))):
            value = rng.choice((0, 1, 127, 255, rng.randrange(256)))
            data[rng.randrange(min(len(data), rng.choice((32, 128, 512, 10**6))))] = value
        if rng.random() < 0.2:
            del data[rng.randrange(1, len(data)) :]
        if rng.random() < 0.2:
            start, size = rng.randrange(len(data)), rng.randrange(1, 512)
            data[start:start] = data[start : start + size] * rng.choice((1, 100, 10_000))
        yield f"mutation-{number}", with_checksums(bytes(data)) if format == "PNG" else bytes(data)


def with_checksums(file):
    """A PNG with the checksums that its chunks should have, or hardly any mutation would be looked at."""
    parts, position = [file[:8]], 8
    while position + 12 <= len(file):
        (length,) = struct.unpack_from(">I", file, position)
        end = min(position + 8 + length, len(file) - 4)
        checksum = struct.pack(">I", zlib.crc32(file[position + 4 : end]))
        parts += [file[position:end], checksum]
        position = end + 4
    return b"".join([*parts, file[position:]])
