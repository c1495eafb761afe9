"""`resize="client"`: what is sent gives the server's preprocessing the very pixels of the original, in fewer bytes."""

import base64
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from medimage_client.images.encoding import encode_file, encode_image
from medimage_client.images.resize import FORMATS
from medimage_client.images.windowing import GREY_BITS, apply_bit_range
from medimage_server import image_decoding
from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings

SIZE = "image_standardization_image_size"
QUALITY = "image_standardization_jpeg_compression_ratio"
SERVER = ImagePreprocessor(
    ImageSettings(
        profile="azure",
        max_encoded_bytes=10**7,
        max_pixels=10**7,
        image_size=(480, 480),
        interpolation=Image.Resampling.BICUBIC,
    )
)

RNG = np.random.default_rng(0)
RAMP = np.dstack([*np.meshgrid(np.linspace(0, 200, 750), np.linspace(200, 0, 620)), np.full((620, 750), 90)])
RGB = Image.fromarray((RAMP + RNG.integers(0, 40, RAMP.shape)).astype(np.uint8))  # 750 x 620 pixels
GREY = RGB.convert("L")
ALPHA = Image.fromarray(RNG.integers(0, 256, (620, 750), dtype=np.uint8))
RGBA = Image.merge("RGBA", (*RGB.split(), ALPHA))


def deep_grey(bits):
    """GREY in the lowest `bits` of 16."""
    return Image.fromarray((np.asarray(GREY).astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint16))


def with_transparency(palette):
    palette.info["transparency"] = bytes(range(64))
    return palette


IMAGES = {
    "1-bit": GREY.convert("1").resize((2250, 1860)),
    "grey": GREY,
    "grey-alpha": Image.merge("LA", (GREY, ALPHA)),
    "rgb": RGB,
    "rgb-of-equal-channels": GREY.convert("RGB"),
    "rgba": RGBA,
    "palette": RGB.quantize(64, Image.Quantize.FASTOCTREE),
    "palette-with-transparency": with_transparency(RGB.quantize(64, Image.Quantize.FASTOCTREE)),
    "palette-of-rgba": RGBA.quantize(64),
    "cmyk": RGB.convert("CMYK"),
    **{f"{bits}-bit-grey-in-16": deep_grey(bits) for bits in GREY_BITS},
}


def encode(image, format="PNG", **options):
    file = BytesIO()
    image.save(file, format, **({"compress_level": 1} if format == "PNG" else {}), **options)
    return file.getvalue()


def deep_png(pixels):
    """A PNG of 16 bits a channel: (H, W, 2) grey and alpha, (H, W, 3) RGB; from the PNG specification."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(">u2"))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def opened(file):
    return Image.open(BytesIO(file))


def assert_same_pixels(sent, original, **parameters):
    np.testing.assert_array_equal(SERVER([sent], parameters), SERVER([original], parameters))


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES.keys())
@pytest.mark.parametrize("parameters", [{}, {SIZE: 300, QUALITY: 30}], ids=["512", "300"])
def test_square_gives_the_servers_pixels_of_every_kind_of_image(image, parameters):
    size = parameters.get(SIZE, 512)
    file = encode(image, "TIFF" if image.mode in ("1", "P", "CMYK") else "PNG")
    sent = encode_file(file, square_px=size)
    assert opened(sent).size == (size, size)
    assert len(sent) < len(file)
    assert_same_pixels(sent, file, **parameters)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])
def test_square_gives_the_servers_pixels_of_every_format(image, format):
    file = encode(image, format)
    sent = encode_file(file, square_px=200)
    assert opened(sent).size == (200, 200)
    assert_same_pixels(sent, file, **{SIZE: 200})


def test_formats_are_such_as_the_server_takes():
    assert set(FORMATS) <= set(image_decoding.FORMATS)


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES.keys())
def test_pillow_image_becomes_the_square_of_the_file_that_would_be_sent(image):
    sent = encode_image(image, square_px=512)
    assert opened(sent).size == (512, 512)
    assert_same_pixels(sent, encode_image(image))


@pytest.mark.parametrize(
    ("array", "window"),
    [
        (np.asarray(GREY), None),
        (np.asarray(RGB), None),
        (np.asarray(RGBA), None),
        (np.asarray(deep_grey(12)), (100, 3000)),
        (np.asarray(GREY) / 255, (0.2, 0.7)),
    ],
    ids=["grey", "rgb", "rgba", "uint16", "float"],
)
def test_array_becomes_the_square_of_the_file_that_would_be_sent(array, window):
    sent = encode_image(array, window=window, square_px=512)
    assert opened(sent).size == (512, 512)
    assert_same_pixels(sent, encode_image(array, window=window))


def test_dicom_file_becomes_the_square_of_its_shown_pixels(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns = 620, 750
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2000, 3000
    dataset.PixelData = np.asarray(deep_grey(12)).tobytes()
    dataset.save_as(tmp_path / "film.dcm", enforce_file_format=False, implicit_vr=False, little_endian=True)
    file = (tmp_path / "film.dcm").read_bytes()
    file = file if file[128:132] == b"DICM" else bytes(128) + b"DICM" + file
    sent = encode_image(file, square_px=512)
    assert opened(sent).size == (512, 512)
    assert_same_pixels(sent, encode_image(file))


DEEP_RGB = RNG.integers(0, 2**16, (620, 750, 3))
AS_IT_IS = {
    "no-more-pixels-than-the-square": encode(GREY.crop((0, 0, 512, 512)), "BMP"),
    "long-and-thin": encode(GREY.resize((4000, 60))),
    "fewer-bytes-than-the-square": encode(GREY, "JPEG", quality=5),
    "16-bit-rgb": deep_png(DEEP_RGB),
    "16-bit-grey-alpha": deep_png(DEEP_RGB[..., :2]),
    "16-bit-tiff": encode(deep_grey(12), "TIFF"),
    "of-a-rarer-format": encode(GREY, "PPM"),
    "base64": base64.b64encode(encode(GREY)),
}


@pytest.mark.parametrize("file", AS_IT_IS.values(), ids=AS_IT_IS.keys())
def test_file_that_the_server_knows_better_or_that_is_small_goes_as_it_is(file):
    assert encode_file(file, square_px=512) is file
    SERVER([file], {})  # which takes it


@pytest.mark.parametrize(
    "file",
    [b"garbage", encode(RGB)[:20000], encode(RGB, "TIFF")[:20000], encode(RGB.convert("F"), "TIFF")],
    ids=["garbage", "cut-png", "cut-tiff", "float"],
)
def test_file_that_the_server_refuses_goes_as_it_is_for_its_answer(file):
    assert encode_file(file, square_px=512) is file
    with pytest.raises(image_decoding.InvalidInput):
        SERVER([file], {})


@pytest.mark.parametrize("image", [np.zeros((512, 512), np.uint8), Image.new("RGB", (100, 2000))], ids=["array", "pil"])
def test_pixels_no_more_than_the_square_are_not_enlarged(image):
    assert encode_image(image, square_px=512) == encode_image(image)


def test_metadata_stays_here_and_the_callers_image_keeps_its_own():
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "Jane Doe")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encode(RGB, pnginfo=text, icc_profile=profile)
    assert opened(encode_file(file, square_px=512)).info == {}
    image = opened(file)
    assert opened(encode_image(image, square_px=512)).info == {}
    assert {"Patient", "icc_profile"} <= image.info.keys()


@pytest.mark.parametrize("bits", GREY_BITS)
def test_every_value_of_16_bit_grey_is_rounded_to_the_nearest_level(bits):
    white = 2**bits - 1
    values = np.arange(2**bits, dtype=np.uint16)
    expected = (values.astype(int) * 255 + white // 2) // white  # in whole numbers; white is odd, so there are no ties
    np.testing.assert_array_equal(apply_bit_range(values), expected)
