"""Every kind of image input ends as the bytes of an image file with the right pixels."""

import base64
import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medimage_client import InvalidInput
from medimage_client.images.encoding import encode_image

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
RGBA = np.concatenate([RGB, GREY[..., None]], axis=-1)


def encoded(image, image_format="PNG"):
    file = BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def pixels(file):
    image = Image.open(BytesIO(file))
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF"])
def test_encoded_file_goes_unchanged_from_every_kind_of_name(image_format, tmp_path):
    data = encoded(Image.fromarray(GREY), image_format)
    file = tmp_path / "image"
    file.write_bytes(data)
    assert encode_image(data) == data
    assert encode_image(file) == data
    assert encode_image(str(file)) == data
    assert encode_image(base64.b64encode(data).decode()) == data
    assert encode_image(base64.encodebytes(data).decode()) == data
    assert encode_image(f"data:image/x;base64,{base64.b64encode(data).decode()}") == data


def test_str_of_an_existing_file_is_a_path_even_if_it_is_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan").write_bytes(b"file content")  # "scan" decodes to three bytes
    assert encode_image("scan") == b"file content"


@pytest.mark.parametrize(
    "array", [GREY, RGB, RGBA, GREY[::-1, ::2], np.asfortranarray(GREY)], ids=["grey", "rgb", "rgba", "view", "fortran"]
)
def test_uint8_array_keeps_every_pixel(array):
    assert np.array_equal(pixels(encode_image(array)), array)


@pytest.mark.parametrize(
    ("array", "window", "expected"),
    [
        (np.array([[0, 1000, 1500, 2000, 4095]], dtype=np.uint16), (1000, 2000), [0, 0, 128, 255, 255]),
        (np.array([[-1.0, 0.0, 0.25, 1.0, 9.0]], dtype=np.float32), (0.0, 1.0), [0, 0, 64, 255, 255]),
        (np.array([[-1024, -160, 40, 240, 3000]], dtype=np.int16), (-160, 240), [0, 0, 128, 255, 255]),
        (np.array([[0, 64, 128, 192, 255]], dtype=np.uint8), (64, 192), [0, 0, 128, 255, 255]),
    ],
    ids=["uint16", "float32", "int16-hounsfield", "uint8"],
)
def test_window_maps_low_to_black_and_high_to_white(array, window, expected):
    assert pixels(encode_image(array, window=window)).tolist() == [expected]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pil_image_of_a_png_mode_keeps_mode_and_pixels(mode):
    image = Image.fromarray(GREY.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    sent = Image.open(BytesIO(encode_image(image)))
    assert sent.mode == mode
    assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_pil_image_of_another_colour_mode_becomes_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    assert np.array_equal(pixels(encode_image(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.int32, np.float32], ids=["I", "F"])
def test_pil_image_of_32_bit_grey_needs_a_window(dtype):
    image = Image.fromarray(np.array([[0, 50, 100]], dtype=dtype))
    with pytest.raises(InvalidInput, match=r"pass window=\(low, high\)"):
        encode_image(image)
    assert pixels(encode_image(image, window=(0, 100))).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (GREY.astype(np.uint16), {}, "is an array of uint16; pass window=(low, high), the values of black and white"),
        (GREY / 255, {}, "is an array of float64; pass window=(low, high), the values of black and white"),
        (np.array([[np.nan]]), {"window": (0, 1)}, "is an array with NaN or infinite values; expected finite ones"),
        (GREY[0], {}, "is an array of shape (8,); expected (H, W), (H, W, 3) or (H, W, 4)"),
        (GREY[None], {}, "is an array of shape (1, 6, 8); expected (H, W), (H, W, 3) or (H, W, 4)"),
        (GREY[:0], {}, "is an array of shape (0, 8); expected (H, W), (H, W, 3) or (H, W, 4)"),
        (GREY.astype(complex), {}, "is an array of complex128; expected real numbers"),
        (GREY, {"window": (5, 5)}, "window is (5, 5); expected two finite numbers, low < high"),
        (GREY, {"window": (0, np.inf)}, "window is (0, inf); expected two finite numbers, low < high"),
        (
            GREY,
            {"frame": 1},
            "frame is for DICOM files; this is an array or a Pillow image, so pass the frame itself",
        ),
        (b"GIF", {"window": (0, 1)}, "window and frame are for arrays and DICOM files; this is an encoded image file"),
        (b"", {}, "is empty; expected the bytes of an image file"),
        (7, {}, "is of type int; expected a path, bytes, base64 text, a Pillow image or an array"),
    ],
)  # fmt: skip
def test_unusable_image_is_refused_with_what_would_be_right(image, options, message):
    with pytest.raises(InvalidInput) as refused:
        encode_image(image, **options)
    assert str(refused.value) == message


@pytest.mark.parametrize("text", ["scan", "no such file.png", "", "Jane Doe, pneumonia", "A" * 5000])
def test_str_that_is_neither_file_nor_image_is_refused_without_showing_it(text):
    with pytest.raises(InvalidInput) as refused:
        encode_image(text)
    assert str(refused.value) == (
        f"is a str of {len(text)} characters; expected the name of an existing file or the base64 text of an image"
    )


def test_missing_path_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidInput, match=r"cannot read .*a\.png: No such file or directory"):
        encode_image(tmp_path / "a.png")


def test_truncated_pil_image_is_refused(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)))[:2000])
    with Image.open(file) as image, pytest.raises(InvalidInput, match="damaged, truncated or closed"):
        encode_image(image)


def damaged(file, rng):
    """A copy with up to three other bytes, now and then cut off."""
    changed = bytearray(file)
    for position in rng.integers(0, len(file), rng.integers(1, 4)):
        changed[position] = rng.integers(0, 256)
    return bytes(changed[: rng.integers(1, len(file))]) if rng.random() < 0.3 else bytes(changed)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"])
def test_damaged_pil_image_or_base64_is_refused_or_sent_and_nothing_else_raised(image_format):
    rng = np.random.default_rng(0)
    file = encoded(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), image_format)
    for _ in range(100):
        changed = damaged(file, rng)
        with suppress(InvalidInput):
            encode_image(base64.b64encode(changed).decode())
        try:
            image = Image.open(BytesIO(changed))
        except Exception:  # Pillow's own answer to the caller
            continue
        with suppress(InvalidInput):
            encode_image(image)


@pytest.mark.parametrize("error", [SyntaxError, ValueError, KeyError, struct.error], ids=lambda error: error.__name__)
def test_pil_image_whose_plugin_fails_in_its_own_way_is_refused(error):
    class Failing(Image.Image):
        def load(self):
            raise error("chunk 'Jane Doe'")

    with pytest.raises(InvalidInput, match="damaged, truncated or closed") as refused:
        encode_image(Failing())
    assert "Jane" not in str(refused.value)


DEEP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80  # of 12 bits


def tiff(values, **tags):
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF", tiffinfo=tags.get("tags", {}))
    return file.getvalue()


def big_endian_tiff(values):
    """A TIFF of one strip: what Pillow, which writes the other byte order, opens in mode I;16B."""
    height, width = values.shape
    entries = [
        *((256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)),
        *((278, 3, height), (279, 4, values.size * 2)),
    ]
    data = values.astype(">u2").tobytes()
    head = b"MM\0*" + (8 + len(data)).to_bytes(4, "big") + data
    folder = len(entries).to_bytes(2, "big")
    for tag, kind, value in entries:
        packed = value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big")
        folder += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + packed
    return head + folder + bytes(4)


def deep_png(channels):
    """A 16-bit PNG of 2 (grey and alpha), 3 or 4 channels, which Pillow does not write."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    values = np.repeat(DEEP[..., None], channels, axis=-1).astype(">u2")
    header = struct.pack(">IIBBBBB", 8, 6, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


FILES = {
    "grey png": encoded(Image.fromarray(GREY)),
    "palette gif": encoded(Image.fromarray(RGB).convert("P"), "GIF"),
    "jpeg": encoded(Image.fromarray(RGB), "JPEG"),
    "cmyk jpeg": encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "16-bit png": encoded(Image.fromarray(DEEP)),
    "16-bit tiff": tiff(DEEP),
    "16-bit big-endian tiff": big_endian_tiff(DEEP),
    "32-bit tiff": tiff(DEEP.astype(np.int32)),
    "16-bit pgm": b"P5 8 6 4095\n" + DEEP.astype(">u2").tobytes(),
    "float tiff": tiff(DEEP.astype(np.float32)),
    "white-is-zero tiff": tiff(GREY, tags={262: 0}),
    "white-is-zero 16-bit tiff": tiff(DEEP, tags={262: 0}),
    "16-bit LA": deep_png(2),
    "16-bit RGB": deep_png(3),
    "16-bit RGBA": deep_png(4),
}


@pytest.mark.parametrize("is_loaded", [False, True], ids=["lazy", "loaded"])
@pytest.mark.parametrize("name", FILES)
def test_pillow_image_is_seen_as_its_file(name, is_loaded, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(FILES[name])
    with Image.open(path) as image:
        if is_loaded:
            image.load()
        assert encode_image(image) == encode_image(path)
        assert encode_image(image) == encode_image(path)  # also again


@pytest.mark.parametrize("name", FILES)
def test_pillow_image_from_memory_is_seen_as_its_file(name):
    assert encode_image(Image.open(BytesIO(FILES[name]))) == FILES[name]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.putpixel((0, 0), 200),
        lambda image: image.paste(9, (0, 0, 3, 3)),
        lambda image: image.thumbnail((4, 3)),
    ],
    ids=["putpixel", "paste", "thumbnail"],
)
def test_pillow_image_that_was_changed_is_sent_as_it_is_now(change, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(FILES["grey png"])
    with Image.open(path) as image:
        change(image)
        assert np.array_equal(pixels(encode_image(image)), np.asarray(image))
        assert encode_image(image) != FILES["grey png"]


def test_other_frame_of_a_pillow_image_is_the_one_that_is_sent():
    file = BytesIO()
    frames = [Image.fromarray(np.full((6, 8), value, np.uint8)) for value in (10, 200)]
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    image = Image.open(file)
    image.seek(1)
    assert (pixels(encode_image(image)) == 200).all()


@pytest.mark.parametrize("mode", ["I;16B", "I;16L", "I;16N"])
def test_pil_image_of_16_bits_in_any_byte_order_keeps_its_values(mode):
    values = DEEP.astype({"I;16B": ">u2", "I;16L": "<u2", "I;16N": "=u2"}[mode])
    image = Image.frombytes(mode, (8, 6), values.tobytes())
    assert np.array_equal(pixels(encode_image(image)), DEEP)


@pytest.mark.parametrize("mode", ["La", "RGBa", "LAB", "PA", "RGBX", "YCbCr"])
def test_pil_image_of_any_mode_is_sent_or_refused_in_one_line(mode):
    assert pixels(encode_image(Image.new(mode, (8, 6)))).shape[:2] == (6, 8)
