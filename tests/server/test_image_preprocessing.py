"""Both preprocessing profiles against Pillow's calls spelled out, and settings and parameters at their limits."""

import base64
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medimage_server.errors import InvalidInput
from medimage_server.image_preprocessing import ImagePreprocessor, ImageSettings, OneImage
from tests.server.children import Children

SIZE = "image_standardization_image_size"
QUALITY = "image_standardization_jpeg_compression_ratio"
REFERENCE = ImageSettings(
    profile="reference",
    max_encoded_bytes=10**6,
    max_pixels=10**6,
    image_size=(480, 480),
    interpolation=Image.Resampling.BICUBIC,
)
AZURE = replace(REFERENCE, profile="azure")

RNG = np.random.default_rng(0)
# smooth, so that resizing and JPEG change it little, and neither square nor alike in its channels
RAMP = np.dstack([*np.meshgrid(np.linspace(0, 255, 700), np.linspace(255, 0, 300)), np.full((300, 700), 90)])
RGB = Image.fromarray(RAMP.astype(np.uint8))
GREY = RGB.convert("L")
NOISE = Image.fromarray(RNG.integers(0, 256, (90, 60, 3), dtype=np.uint8))
IMAGES = {
    "1-bit": GREY.convert("1"),
    "grey": GREY,
    "grey-alpha": Image.merge("LA", (GREY, RGB.getchannel(0))),
    "rgb": RGB,
    "rgba": Image.merge("RGBA", (*RGB.split(), GREY)),
    "palette": RGB.quantize(32),
    "noise": NOISE,
}


def encode(image, format="PNG", **options):
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope="module", params=["here", "child"])
def preprocessor(request):
    """An ImagePreprocessor of settings, which works in this process, or as Triton's does in a child of it."""
    if request.param == "here":
        yield ImagePreprocessor
    else:
        with Children() as children:
            yield lambda settings: ImagePreprocessor(settings, children.run(OneImage(settings)))


def azure(image, size=512, quality=75):
    standard = BytesIO()
    image.resize((size, size)).convert("RGB").save(standard, format="JPEG", quality=quality)
    return reference(Image.open(standard))


def reference(image):
    return np.asarray(image.convert("RGB").resize((480, 480), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES.keys())
@pytest.mark.parametrize(("settings", "expected"), [(AZURE, azure), (REFERENCE, reference)], ids=["azure", "reference"])
def test_profile_gives_the_pixels_of_its_pillow_calls(preprocessor, image, settings, expected):
    pixels = preprocessor(settings)([encode(image)], {})
    np.testing.assert_array_equal(pixels, [expected(image)])


@pytest.mark.parametrize(("settings", "expected"), [(AZURE, azure), (REFERENCE, reference)], ids=["azure", "reference"])
@pytest.mark.parametrize(
    "file",
    [
        encode(RGB.convert("CMYK"), "JPEG"),
        encode(RGB, "JPEG", progressive=True),
        encode(RGB.quantize(32), transparency=bytes(range(32))),
        encode(RGB, "TIFF", compression="tiff_lzw"),
        encode(RGB, "JPEG", comment=b"c" * 60_000),
    ],
    ids=["cmyk-jpeg", "progressive-jpeg", "palette-with-transparency", "lzw-tiff", "jpeg-with-long-comment"],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of the spelled-out calls, not of ours
def test_file_gives_the_pixels_of_its_profile(preprocessor, file, settings, expected):
    pixels = preprocessor(settings)([file], {})
    np.testing.assert_array_equal(pixels, [expected(Image.open(BytesIO(file)))])


@pytest.mark.parametrize("settings", [AZURE, REFERENCE], ids=["azure", "reference"])
def test_12_bit_film_gives_the_pixels_of_its_8_bit_copy(preprocessor, settings):
    shades = np.tile(np.arange(256, dtype=np.uint16), (100, 1))
    film, copy = Image.fromarray(shades * 16 + shades // 16), Image.fromarray(shades.astype(np.uint8))
    pixels = preprocessor(settings)([encode(film), encode(copy)], {})
    np.testing.assert_array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("settings", [AZURE, REFERENCE], ids=["azure", "reference"])
@pytest.mark.parametrize("size", [(480, 480), (2500, 200), (1, 480), (1, 1)], ids=["exact", "wide", "line", "dot"])
def test_one_colour_stays_that_colour_at_any_size(preprocessor, settings, size):
    pixels = preprocessor(settings)([encode(Image.new("RGB", size, (200, 100, 50)))], {})
    np.testing.assert_allclose(pixels.reshape(-1, 3).astype(int), [(200, 100, 50)] * 480 * 480, atol=2)


def test_cmyk_ink_becomes_rgb_light(preprocessor):
    cyan, magenta, yellow, black = 100, 50, 0, 60
    file = encode(Image.new("CMYK", (8, 8), (cyan, magenta, yellow, black)), "TIFF")
    light = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    pixels = preprocessor(REFERENCE)([file], {})
    np.testing.assert_allclose(pixels[0, 0, 0], light, atol=1)


def test_transparent_pixels_keep_their_colour_in_reference_and_turn_black_in_azure(preprocessor):
    file = encode(Image.new("RGBA", (8, 8), (200, 100, 50, 0)))
    assert preprocessor(REFERENCE)([file], {})[0, 0, 0].tolist() == [200, 100, 50]
    assert preprocessor(AZURE)([file], {})[0, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("parameters", "size", "quality"),
    [
        ({}, 512, 75),
        ({SIZE: 0, QUALITY: 0}, 512, 75),
        ({SIZE: 480, QUALITY: 95}, 480, 95),
        ({QUALITY: 1}, 512, 1),
        ({SIZE: 1}, 1, 75),
        ({SIZE: 2048, QUALITY: 100, "get_scaling_factor": True}, 2048, 100),
    ],
    ids=["absent", "zero", "finetuning-notebook", "lowest-quality", "smallest", "largest"],
)
def test_azure_parameters_of_a_request_override_the_defaults(preprocessor, parameters, size, quality):
    pixels = preprocessor(AZURE)([encode(NOISE)], parameters)
    np.testing.assert_array_equal(pixels, [azure(NOISE, size, quality)])


@pytest.mark.parametrize(
    "image",
    [NOISE.convert("L"), NOISE.convert("L").convert("RGB"), NOISE.convert("L").convert("RGBA")],
    ids=["grey", "as-rgb", "as-rgba"],
)
@pytest.mark.parametrize(("size", "quality"), [(512, 75), (7, 75), (100, 1), (479, 100)])
def test_equal_channels_give_the_pixels_of_a_colour_jpeg(preprocessor, image, size, quality):
    """The JPEG of them has one channel here, and three in the calls spelled out."""
    pixels = preprocessor(AZURE)([encode(image)], {SIZE: size, QUALITY: quality})
    np.testing.assert_array_equal(pixels, [azure(image, size, quality)])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({SIZE: 2049}, f"parameter {SIZE} must be an integer from 1 to 2048, or 0 for 512"),
        ({SIZE: -1}, f"parameter {SIZE} must be an integer from 1 to 2048, or 0 for 512"),
        ({SIZE: "480"}, f"parameter {SIZE} must be an integer from 1 to 2048, or 0 for 512"),
        ({QUALITY: 101}, f"parameter {QUALITY} must be an integer from 1 to 100, or 0 for 75"),
        ({QUALITY: 75.5}, f"parameter {QUALITY} must be an integer from 1 to 100, or 0 for 75"),
        ({QUALITY: True}, f"parameter {QUALITY} must be an integer from 1 to 100, or 0 for 75"),
    ],
    ids=["too-large", "negative", "text", "quality-over-100", "fraction", "boolean"],
)
def test_azure_parameter_out_of_range_is_refused_with_the_range(preprocessor, parameters, message):
    with pytest.raises(InvalidInput) as caught:
        preprocessor(AZURE)([encode(NOISE)], parameters)
    assert str(caught.value) == message


def test_batch_is_one_contiguous_array_in_request_order(preprocessor):
    files = [encode(RGB), base64.encodebytes(encode(NOISE)), encode(GREY)]
    pixels = preprocessor(REFERENCE)(files, {})
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, [reference(RGB), reference(NOISE), reference(GREY)])


def test_bad_image_is_refused_by_its_row(preprocessor):
    with pytest.raises(InvalidInput, match=r"^row 2: image is empty; expected an encoded image file"):
        preprocessor(REFERENCE)([encode(RGB), encode(GREY), b""], {})


PARAMETERS = {"profile": "azure", "max_encoded_bytes": "1000", "max_pixels": "2000"}


@pytest.fixture
def preprocessing(tmp_path) -> Path:
    path = tmp_path / "preprocessing.json"
    path.write_text(json.dumps({"image_size": [480, 320], "interpolation": "bicubic"}), encoding="utf-8")
    return path


def test_settings_are_read_from_config_and_export(preprocessing):
    assert ImageSettings.read(PARAMETERS, preprocessing) == ImageSettings(
        profile="azure",
        max_encoded_bytes=1000,
        max_pixels=2000,
        image_size=(480, 320),
        interpolation=Image.Resampling.BICUBIC,
    )


def test_image_size_is_height_then_width(preprocessor, preprocessing):
    settings = ImageSettings.read(PARAMETERS | {"max_pixels": "1000000", "max_encoded_bytes": "1000000"}, preprocessing)
    assert preprocessor(settings)([encode(RGB)], {}).shape == (1, 480, 320, 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"profile": "fast"}, r"parameter profile is 'fast'; expected one of \['azure', 'reference'\]"),
        ({"max_pixels": "1e6"}, "parameter max_pixels is '1e6'; expected a positive integer"),
        ({"max_encoded_bytes": "0"}, "parameter max_encoded_bytes is '0'; expected a positive integer"),
    ],
)
def test_parameter_that_is_not_allowed_stops_the_load(preprocessing, parameters, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings.read(PARAMETERS | parameters, preprocessing)


@pytest.mark.parametrize("name", PARAMETERS)
def test_missing_parameter_stops_the_load_by_name(preprocessing, name):
    parameters = {key: value for key, value in PARAMETERS.items() if key != name}
    with pytest.raises(ValueError, match=f"parameter {name} is"):
        ImageSettings.read(parameters, preprocessing)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image_size": [480, 480], "interpolation": "nice"}'])
def test_preprocessing_file_that_export_did_not_write_stops_the_load(preprocessing, text):
    preprocessing.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"preprocessing\.json: not what `medimage export medimageinsight` writes"):
        ImageSettings.read(PARAMETERS, preprocessing)


def test_missing_preprocessing_file_names_the_export(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"preprocessing\.json: not found; run `medimage export medimageinsight`"
    ):
        ImageSettings.read(PARAMETERS, tmp_path / "preprocessing.json")


def test_images_resized_by_the_client_are_refused_where_the_profile_makes_no_square(preprocessor):
    resized = {"resized_by_client": True}
    np.testing.assert_array_equal(preprocessor(AZURE)([encode(NOISE)], resized), [azure(NOISE)])
    with pytest.raises(InvalidInput) as refused:
        preprocessor(REFERENCE)([encode(NOISE)], resized)
    assert str(refused.value) == (
        "images resized by the client are for servers of the profile azure; this one's is reference, "
        "so leave resize at 'server'"
    )
