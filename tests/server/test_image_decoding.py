"""Image files of every kind, their base64 text, and everything that is neither."""

import base64
import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medimage_server.errors import InvalidInput
from medimage_server.image_decoding import MAX_SIDE_PX, decode_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image, format="PNG", **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decode(data, max_encoded_bytes=10**6, max_pixels=10**6):
    return decode_image(data, max_encoded_bytes=max_encoded_bytes, max_pixels=max_pixels)


def tiff(pixels, photometric=1, sample_format=1):
    """An uncompressed little- or big-endian TIFF of one strip, straight from the TIFF 6.0 specification.

    Grey (H, W) or, with photometric 2, RGB (H, W, 3); one BitsPerSample stands for all channels.
    """
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    height, width, channels = (*pixels.shape, 1)[:3]
    bits = 8 * pixels.dtype.itemsize
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 8 + 2 + 12 * 9 + 4), (277, channels), (279, pixels.nbytes), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack(f"{order}2sHI", b"MM" if order == ">" else b"II", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + pixels.tobytes()


def png_header(width, height):
    """A PNG that announces its size and a data chunk, and ends before any pixel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def deep_png(pixels):
    """A PNG of 16 bits a channel: (H, W, 2) grey and alpha, (H, W, 3) RGB, (H, W, 4) RGBA; from the PNG specification.

    Pillow cannot write one.
    """
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(">u2"))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def as_8_bits(values, bits):
    return np.floor(values * (255 / (2**bits - 1)) + 0.5)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY).convert("1"),
        Image.fromarray(GREY),
        Image.fromarray(np.dstack([GREY, GREY.T.reshape(20, 30)]), "LA"),
        Image.fromarray(RGB),
        Image.fromarray(np.dstack([RGB, GREY]), "RGBA"),
        Image.fromarray(RGB).quantize(16),
    ],
    ids=["1-bit", "grey", "grey-alpha", "rgb", "rgba", "palette"],
)
def test_png_of_at_most_8_bits_keeps_its_mode_and_pixels(image):
    decoded = decode(encode(image))
    assert decoded.mode == image.mode
    np.testing.assert_array_equal(np.asarray(decoded.convert("RGBA")), np.asarray(image.convert("RGBA")))


@pytest.mark.parametrize("format", ["TIFF", "BMP", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_lossless_file_of_other_formats_gives_its_pixels(format):
    options = {"WEBP": {"lossless": True}}.get(format, {})
    decoded = decode(encode(Image.fromarray(GREY), format, **options))
    np.testing.assert_array_equal(np.asarray(decoded.convert("L")), GREY)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_cmyk_jpeg_decodes_as_cmyk(options):
    ink = np.full((16, 16, 4), (255, 0, 128, 64), dtype=np.uint8)
    decoded = decode(encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=100, **options))
    assert decoded.mode == "CMYK"
    np.testing.assert_allclose(np.asarray(decoded, dtype=int), ink, atol=3)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_grey_is_scaled_over_the_fewest_bits_that_hold_its_maximum(bits):
    values = RNG.integers(0, 2**bits, (20, 30), dtype=np.uint16)
    values[0, 0] = 2**bits - 1
    decoded = decode(encode(Image.fromarray(values)))
    assert decoded.mode == "L"
    np.testing.assert_array_equal(np.asarray(decoded), as_8_bits(values, bits))
    assert decoded.getpixel((0, 0)) == 255


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_every_value_of_16_bit_grey_is_rounded_to_the_nearest_level(bits):
    white = 2**bits - 1
    values = np.arange(2**bits, dtype=np.uint16).reshape(-1, 256)
    rounded = (values.astype(int) * 255 + white // 2) // white  # in whole numbers; white is odd, so there are no ties
    np.testing.assert_array_equal(np.asarray(decode(encode(Image.fromarray(values)))), rounded)


@pytest.mark.parametrize("bits", [12, 16])
def test_16_bit_grey_with_alpha_is_scaled_as_without_and_keeps_its_alpha(bits):
    grey = RNG.integers(0, 2**bits, (20, 30), dtype=np.uint16)
    grey[0, 0] = 2**bits - 1
    alpha = GREY.astype(np.uint16) * 257
    decoded = decode(deep_png(np.dstack([grey, alpha])))
    assert decoded.mode == "LA"
    np.testing.assert_array_equal(np.asarray(decoded), np.dstack([as_8_bits(grey, bits), GREY]))


@pytest.mark.parametrize("channels", [3, 4], ids=["rgb", "rgba"])
def test_16_bit_colour_over_its_full_range_gives_its_high_bytes(channels):
    values = RNG.integers(0, 2**16, (20, 30, channels), dtype=np.uint16)
    np.testing.assert_array_equal(np.asarray(decode(deep_png(values))), values >> 8)


@pytest.mark.parametrize(
    "file",
    [
        deep_png(np.full((4, 4, 3), 4095)),
        deep_png(np.dstack([np.full((4, 4, 3), 4095), np.full((4, 4), 65535)])),
        tiff(np.full((4, 4, 3), 4095, "<u2"), photometric=2),
        tiff(np.full((4, 4, 3), 4095, ">u2"), photometric=2),
    ],
    ids=["png-rgb", "png-rgba", "tiff-little-endian", "tiff-big-endian"],
)
def test_12_bit_colour_in_16_bits_is_refused_and_not_turned_black(file):
    expected = "16-bit values all under 16384 would turn nearly black; save as 16-bit grey PNG or 8-bit RGB"
    with pytest.raises(InvalidInput, match=f"^{expected}$"):
        decode(file)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">i2", "<i4", ">i4"])
def test_tiff_of_deep_integers_is_scaled_whatever_its_byte_order(dtype):
    values = RNG.integers(2048, 4096, (20, 30)).astype(dtype)
    sample_format = 2 if "i" in dtype else 1
    decoded = decode(tiff(values, sample_format=sample_format))
    np.testing.assert_array_equal(np.asarray(decoded), as_8_bits(values, 12))


def test_16_bit_image_all_black_stays_black():
    assert decode(encode(Image.fromarray(np.zeros((4, 4), np.uint16)))).getextrema() == (0, 0)


def test_pgm_is_scaled_from_its_own_maximum():
    pixels = np.array([[0, 1000, 4095]], dtype=">u2")
    decoded = decode(b"P5\n3 1\n4095\n" + pixels.tobytes())
    np.testing.assert_array_equal(np.asarray(decoded), as_8_bits(pixels, 12))


@pytest.mark.parametrize("white", [1, 100, 255, 256, 1000, 4095, 65534, 65535])
@pytest.mark.parametrize("channels", [1, 3], ids=["pgm", "ppm"])
def test_raw_pnm_gives_the_pixels_of_pillow(channels, white):
    values = RNG.integers(0, min(white + 3, 2 ** (8 if white < 256 else 16)), (20, 30, channels))  # also over white
    values[0, 0] = white
    body = values.astype(np.uint8 if white < 256 else ">u2").tobytes()
    file = b"P%d # by hand\n30\t20 # size\r%d\n" % (5 if channels == 1 else 6, white) + body
    expected = np.asarray(Image.open(BytesIO(file)))
    if channels == 1 and white > 255:
        expected = as_8_bits(expected, 16)  # Pillow has brought white to 65535
    np.testing.assert_array_equal(np.asarray(decode(file)), expected)


def test_first_frame_of_an_animation_is_taken():
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    file = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(file).convert("L").getextrema() == (10, 10)


def test_exif_orientation_of_a_jpeg_is_not_applied():
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    assert decode(encode(Image.fromarray(GREY), "JPEG", exif=exif)).size == (30, 20)


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode,
        base64.encodebytes,
        lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n"),
        lambda data: b"data:image/png;base64," + base64.b64encode(data),
        lambda data: b" DATA:;Base64," + base64.encodebytes(data) + b"\n",
    ],
    ids=["plain", "line-breaks", "windows-line-breaks", "data-uri", "data-uri-line-breaks"],
)
def test_base64_text_gives_the_image_of_its_file(text):
    file = encode(Image.fromarray(RGB))
    np.testing.assert_array_equal(np.asarray(decode(text(file))), RGB)


EXPECTED = "expected an encoded image file such as PNG or JPEG, or its base64 text"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", f"image is empty; {EXPECTED}"),
        (b" \n", f"image is empty; {EXPECTED}"),
        (b"data:image/png;base64,", f"image is empty; {EXPECTED}"),
        (b"\x00\x01\x02 no image", f"not an image Pillow can read; {EXPECTED}"),
        (base64.b64encode(b"no image"), f"not an image Pillow can read; {EXPECTED}"),
        (b"Jane Doe!", f"neither an image file nor valid base64 text; {EXPECTED}"),
        (b"iVBORw0KGgo", f"neither an image file nor valid base64 text; {EXPECTED}"),
        (b"aGk=aGk=", f"neither an image file nor valid base64 text; {EXPECTED}"),
        (b"_-8=", f"neither an image file nor valid base64 text; {EXPECTED}"),
        (b"https://host/x.png", f"image URLs are not downloaded; {EXPECTED}"),
        (b"data:image/png,aGk=", f"neither an image file nor valid base64 text; {EXPECTED}"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n\x00", f"not an image Pillow can read; {EXPECTED}"),
        (
            b"P2\n2 2\n255\n0 1\n254 255\n",
            "plain or bitmap PNM files are not read; save the image as PNG, JPEG or TIFF",
        ),
        (b"P3 1 1 255 1 2 3\n", "plain or bitmap PNM files are not read; save the image as PNG, JPEG or TIFF"),
        (
            encode(Image.fromarray(GREY).convert("1"), "PPM"),
            "plain or bitmap PNM files are not read; save the image as PNG, JPEG or TIFF",
        ),
        (
            encode(Image.fromarray(GREY.astype(np.float32)), "PPM"),
            "PAM or PFM files are not read; save the image as PNG, JPEG or TIFF",
        ),
        *(
            (encode(Image.fromarray(RGB), format), f"{format} files are not read; save the image as PNG, JPEG or TIFF")
            for format in ("DDS", "PCX", "QOI", "SGI")
        ),
        (b"P5\n2 2\n0\n....", f"not an image Pillow can read; {EXPECTED}"),
        (b"P5\n2 2\n65536\n........", f"not an image Pillow can read; {EXPECTED}"),
        (b"P6\n#" + b" " * 2000 + b"\n1 1 255\n...", f"not an image Pillow can read; {EXPECTED}"),
        (b"P6\n2 2 255\n...", "PPM file is damaged or truncated; send the complete file"),
        (encode(Image.fromarray(RGB))[:-200], "PNG file is damaged or truncated; send the complete file"),
        (encode(Image.fromarray(RGB), "JPEG")[:-100], "JPEG file is damaged or truncated; send the complete file"),
        (png_header(0, 5), f"not an image Pillow can read; {EXPECTED}"),
        (
            tiff(np.ones((2, 2), "<f4"), sample_format=3),
            "pixels of mode F are not supported; save the image as 8- or 16-bit grey or RGB",
        ),
        (
            tiff(np.array([[-1, 5]], "<i2"), sample_format=2),
            "grey values are outside 0 to 65535; window the image to 8 or 16 bits",
        ),
        (
            tiff(np.array([[65536, 5]], "<i4"), sample_format=2),
            "grey values are outside 0 to 65535; window the image to 8 or 16 bits",
        ),
        (
            tiff(np.ones((2, 2), "<u2"), photometric=0),
            "16-bit TIFF with white as zero is not supported; save it with black as zero",
        ),
        (
            encode(Image.fromarray(RGB, "LAB"), "TIFF"),
            "pixels of mode LAB are not supported; save the image as 8- or 16-bit grey or RGB",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value.split(";")[0].replace(" ", "-"),
)
def test_unusable_image_is_refused_with_what_would_be_right(data, message):
    with pytest.raises(InvalidInput) as caught:
        decode(data)
    assert str(caught.value) == message


def test_encoded_file_over_its_limit_is_refused_also_as_base64():
    file = encode(Image.fromarray(RGB))
    decode(file, max_encoded_bytes=len(file))
    for data in (file, base64.encodebytes(file)):
        with pytest.raises(
            InvalidInput, match=f"^image file has {len(file)} bytes; at most {len(file) - 1} are allowed$"
        ):
            decode(data, max_encoded_bytes=len(file) - 1)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1001, 1000), "image has 1001 x 1000 pixels; at most 1000000 in all are allowed"),
        ((12_000, 12_000), "image has 12000 x 12000 pixels; at most 1000000 in all are allowed"),  # Pillow warns
        ((60_000, 60_000), "image has too many pixels; at most 1000000 are allowed"),  # Pillow refuses
        ((MAX_SIDE_PX + 1, 1), f"image has 32769 x 1 pixels; at most {MAX_SIDE_PX} a side are allowed"),
    ],
    ids=["just-over", "pillow-warns", "pillow-refuses", "one-long-line"],
)
def test_too_many_pixels_are_refused_from_the_header_alone(size, message):
    with pytest.raises(InvalidInput) as caught:
        decode(png_header(*size))  # there is no pixel in the file: decoding it would be another error
    assert str(caught.value) == message


SAMPLES = {
    "png": encode(Image.fromarray(RGB)),
    "png-palette": encode(Image.fromarray(RGB).quantize(16), transparency=bytes(range(16))),
    "png-16-bit": encode(Image.fromarray(GREY.astype(np.uint16) * 16)),
    "png-16-bit-grey-alpha": deep_png(np.dstack([GREY, GREY])),
    "jpeg": encode(Image.fromarray(RGB), "JPEG"),
    "jpeg-progressive": encode(Image.fromarray(RGB), "JPEG", progressive=True),
    "tiff": encode(Image.fromarray(RGB), "TIFF"),
    "tiff-lzw": encode(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"),
    "bmp": encode(Image.fromarray(RGB), "BMP"),
    "gif": encode(Image.fromarray(GREY), "GIF"),
    "jpeg2000": encode(Image.fromarray(RGB), "JPEG2000"),
    "ppm": encode(Image.fromarray(RGB), "PPM"),
    "pgm-12-bit": b"P5\n30 20\n4095\n" + GREY.astype(">u2").tobytes(),
    "webp": encode(Image.fromarray(RGB), "WEBP"),
    "avif": encode(Image.fromarray(RGB), "AVIF"),
    "base64": base64.encodebytes(encode(Image.fromarray(GREY))),
}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
def test_damaged_file_gives_an_image_or_invalid_input_and_nothing_else(sample):
    rng = random.Random(0)
    for _ in range(300):
        data = bytearray(sample)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((32, 128, 10**6))))] = rng.choice(
                (0, 1, 127, 255, rng.randrange(256))
            )
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            image = decode(bytes(data))
        except InvalidInput as error:
            assert "\n" not in str(error)
        else:
            assert image.convert("RGB").resize((8, 8)).size == (8, 8)
