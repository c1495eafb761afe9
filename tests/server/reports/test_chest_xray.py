"""Grey squares against MAIRA-2's normalisation and transformers' own image processor, and the model's adapter."""

import base64
import json
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from medimage_server.errors import InvalidInput
from medimage_server.reports.chest_xray import ChestXrayPreprocessor, ChestXraySettings, OneChestXray
from tests.paths import REPOSITORY
from tests.python_backend_stand_in import Request, TritonError, TritonModelException, install, load_adapter
from tests.server.children import Children

SETTINGS = ChestXraySettings(max_encoded_bytes=10**7, max_pixels=10**7, image_size=518, stretch=True)
RNG = np.random.default_rng(0)
PROCESSOR = BitImageProcessorPil(
    size={"shortest_edge": 518}, crop_size={"height": 518, "width": 518}, resample=3, do_rescale=False,
    do_normalize=False,
)  # fmt: skip


@pytest.fixture(scope="module", params=["here", "child"])
def preprocessor(request):
    """A ChestXrayPreprocessor of settings, which works in this process, or as Triton's does in a child of it."""
    if request.param == "here":
        yield ChestXrayPreprocessor
    else:
        with Children() as children:
            yield lambda settings: ChestXrayPreprocessor(settings, children.run(OneChestXray(settings)))


def film(width, height):
    """Smooth, with noise, and neither black nor white."""
    x, y = np.meshgrid(np.linspace(40, 150, width), np.linspace(0, 50, height))
    return Image.fromarray((x + y + RNG.integers(0, 20, (height, width))).astype(np.uint8))


def encode(image, format="PNG"):
    file = BytesIO()
    image.save(file, format)
    return file.getvalue()


def maira_2(image, stretch=True):
    """Its `_normalize_image` and then its image processor: one channel of three equal ones."""
    if stretch:
        values = np.array(image.convert("L")).astype(float)
        values -= values.min()
        values /= values.max()
        values *= 255
        image = Image.fromarray(values.astype(np.uint8))
    channels = np.asarray(PROCESSOR(images=[image.convert("RGB")])["pixel_values"][0])
    assert (channels == channels[:1]).all()
    return channels[0].astype(np.uint8)


SIZES = {
    "square": (518, 518),
    "portrait": (700, 1000),
    "landscape": (1000, 700),
    "odd-portrait": (601, 733),
    "odd-landscape": (1357, 1021),
    "one-pixel-more": (519, 518),
    "small": (64, 50),
    "tiny": (3, 2),
    "narrow": (40, 600),
    "large": (1780, 2140),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("stretch", [True, False], ids=["stretched", "as-it-is"])
def test_square_is_that_of_maira_2_to_the_level(preprocessor, size, stretch):
    image = film(*size)
    pixels = preprocessor(replace(SETTINGS, stretch=stretch))([encode(image)])
    np.testing.assert_array_equal(pixels[0], maira_2(image, stretch))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_picture_of_any_mode_becomes_the_grey_of_maira_2(preprocessor, mode):
    x, y = np.meshgrid(np.linspace(20, 230, 90), np.linspace(230, 20, 60))
    image = Image.fromarray(np.dstack([x, y, np.full_like(x, 90)]).astype(np.uint8)).convert(mode)
    file = encode(image, "TIFF")
    np.testing.assert_array_equal(preprocessor(SETTINGS)([file])[0], maira_2(Image.open(BytesIO(file))))


@pytest.mark.parametrize(("darkest", "lightest"), [(0, 255), (0, 254), (1, 255), (100, 101), (17, 203)])
def test_every_shade_is_stretched_as_in_maira_2(preprocessor, darkest, lightest):
    shades = np.arange(darkest, lightest + 1, dtype=np.uint8)
    image = Image.fromarray(np.resize(shades, (518, 518)))
    [pixels] = preprocessor(SETTINGS)([encode(image)])
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_array_equal(pixels, maira_2(image))


@pytest.mark.parametrize("shade", [0, 77, 255])
def test_picture_of_one_shade_is_black(preprocessor, shade):
    pixels = preprocessor(SETTINGS)([encode(Image.new("L", (60, 50), shade))])
    np.testing.assert_array_equal(pixels, np.zeros((1, 518, 518)))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_grey_keeps_its_contrast_where_pil_would_clip_it(preprocessor, bits):
    white = 2**bits - 1
    values = np.tile(np.linspace(0, white, 600), (518, 1)).round().astype(np.uint16)
    [pixels] = preprocessor(SETTINGS)([encode(Image.fromarray(values))])
    expected = values[:, 41 : 41 + 518] / white * 255  # the square in the middle; no side is resized
    np.testing.assert_allclose(pixels, expected, atol=1)


def test_square_is_the_middle_of_the_long_edge(preprocessor):
    values = np.zeros((518, 1037), dtype=np.uint8)
    values[:, (1037 - 518) // 2] = 255
    [pixels] = preprocessor(SETTINGS)([encode(Image.fromarray(values))])
    assert (pixels[:, 0] == 255).all()
    assert not pixels[:, 1:].any()


def test_batch_is_one_contiguous_array_in_request_order(preprocessor):
    images = [film(600, 700), film(90, 80), film(700, 600)]
    files = [encode(images[0]), base64.encodebytes(encode(images[1])), encode(images[2])]
    pixels = preprocessor(SETTINGS)(files)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, [maira_2(image) for image in images])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "row 1: image is empty; expected an encoded image file such as PNG or JPEG, or its base64 text"),
        (
            encode(Image.new("L", (2000, 100))),
            "row 1: image has 2000 x 100 pixels; at most 16 times as long as wide is allowed",
        ),
    ],
    ids=["empty", "line"],
)
def test_bad_image_is_refused_by_its_row(preprocessor, file, message):
    with pytest.raises(InvalidInput) as caught:
        preprocessor(SETTINGS)([encode(film(60, 50)), file])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("bound", "message"),
    [({"max_encoded_bytes": 100}, r"^row 0: image file has \d+ bytes; at most 100"), ({"max_pixels": 2999}, "2999")],
    ids=["bytes", "pixels"],
)
def test_bounds_of_the_operator_hold(preprocessor, bound, message):
    with pytest.raises(InvalidInput, match=message):
        preprocessor(replace(SETTINGS, **bound))([encode(film(60, 50))])


PARAMETERS = {"max_encoded_bytes": "1000000", "max_pixels": "2000000"}


@pytest.fixture
def version_folder(tmp_path):
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "preprocessing.json").write_text('{"image_size": 518, "stretch": true}', encoding="utf-8")
    return folder


def test_settings_are_read_from_config_and_export(version_folder):
    assert ChestXraySettings.read(PARAMETERS, version_folder / "preprocessing.json") == ChestXraySettings(
        max_encoded_bytes=1000000, max_pixels=2000000, image_size=518, stretch=True
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_missing_parameter_stops_the_load_by_name(version_folder, name):
    parameters = {key: value for key, value in PARAMETERS.items() if key != name}
    with pytest.raises(ValueError, match=f"parameter {name} is '';"):
        ChestXraySettings.read(parameters, version_folder / "preprocessing.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "'image_size' is missing"),
        ('{"image_size": 518}', "'stretch' is missing"),
        ('{"image_size": "518", "stretch": true}', "image_size must be a positive integer"),
        ('{"image_size": 0, "stretch": true}', "image_size must be a positive integer"),
        ('{"image_size": 518, "stretch": 1}', "stretch must be true or false"),
    ],
)
def test_preprocessing_file_that_export_did_not_write_stops_the_load(version_folder, text, reason):
    path = version_folder / "preprocessing.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="preprocessing") as caught:
        ChestXraySettings.read(PARAMETERS, path)
    assert str(caught.value) == f"{path}: not what `medimage export cxrreportgen` writes: {reason}"


@pytest.fixture
def log(monkeypatch):
    return install(monkeypatch)


@contextmanager
def loaded(version_folder):
    model = load_adapter(REPOSITORY / "cxr_image_preprocessing" / "1" / "model.py")
    config = {"parameters": {key: {"string_value": value} for key, value in PARAMETERS.items()}}
    model.initialize(
        {
            "model_name": "cxr_image_preprocessing",
            "model_config": json.dumps(config),
            "model_repository": str(version_folder.parent),
            "model_version": version_folder.name,
        }
    )
    yield model
    model.finalize()


def request(*files):
    return Request({"image": np.array(files, dtype=object).reshape(-1, 1)})


def test_adapter_answers_in_order_and_a_bad_study_harms_no_neighbour(log, version_folder):
    images = [film(60, 50), film(50, 60), film(64, 64)]
    with loaded(version_folder) as model:
        first, bad, last = model.execute(
            [request(encode(images[0])), request(encode(images[0]), b""), request(*map(encode, images))]
        )
    np.testing.assert_array_equal(first.outputs["pixels"], [maira_2(images[0])])
    assert (bad.error.code, bad.error.message[:22]) == (TritonError.INVALID_ARG, "row 1: image is empty;")
    np.testing.assert_array_equal(last.outputs["pixels"], [maira_2(image) for image in images])


def test_adapter_answers_a_cancelled_study_with_cancelled(log, version_folder):
    study = request(encode(film(60, 50)))
    study.cancelled = True
    with loaded(version_folder) as model:
        [response] = model.execute([study])
    assert (response.error.code, response.error.message) == (TritonError.CANCELLED, "the request was cancelled")


def test_adapter_of_a_model_that_was_not_exported_stops_the_load_with_one_line(log, version_folder):
    path = version_folder / "preprocessing.json"
    path.unlink()
    with pytest.raises(TritonModelException) as caught, loaded(version_folder):
        pass
    assert str(caught.value) == (
        f"cxr_image_preprocessing: {path}: not found; run `medimage export cxrreportgen` to write it"
    )
