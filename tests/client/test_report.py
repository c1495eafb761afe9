"""Boxes on the original image, reports from the server's text, and the picture of a report."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medimage_client import Box, Finding, InvalidInput, Report, ResponseError
from medimage_client.reports.picture import colour_of, wrap
from medimage_client.reports.report import read_report
from medimage_client.schema.reports import ModelIdentity, read_identity

SIZES = [(518, 518), (2500, 2048), (2048, 2500), (2021, 1777), (1777, 2021), (333, 1000), (1000, 333), (7, 5), (1, 3)]
BINS = [(index + 0.5) / 100 for index in range(100)]


def adjust_box_for_original_image_size(box, width, height):
    """The function of the CXRReportGen card, as it stands there."""
    crop_width = crop_height = min(width, height)
    x_offset = (width - crop_width) // 2
    y_offset = (height - crop_height) // 2

    norm_x_min, norm_y_min, norm_x_max, norm_y_max = box

    abs_x_min = int(norm_x_min * crop_width + x_offset)
    abs_x_max = int(norm_x_max * crop_width + x_offset)
    abs_y_min = int(norm_y_min * crop_height + y_offset)
    abs_y_max = int(norm_y_max * crop_height + y_offset)

    adjusted_norm_x_min = abs_x_min / width
    adjusted_norm_x_max = abs_x_max / width
    adjusted_norm_y_min = abs_y_min / height
    adjusted_norm_y_max = abs_y_max / height

    return (adjusted_norm_x_min, adjusted_norm_y_min, adjusted_norm_x_max, adjusted_norm_y_max)


def edges(box):
    return box.x_min, box.y_min, box.x_max, box.y_max


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_to_original_is_the_function_of_the_card_to_the_last_bit(width, height):
    for low in BINS:
        for high in BINS:
            box = (low, high, high, low)
            assert edges(Box(*box).to_original(width, height)) == adjust_box_for_original_image_size(box, width, height)


def resize_and_crop(picture, size):
    """The model's preprocessing: the shorter side to `size`, the square in the middle."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    resized = picture.resize((size, new_long) if width <= height else (new_long, size), Image.Resampling.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


@pytest.mark.parametrize(("width", "height"), [(700, 900), (777, 1013), (1013, 777), (600, 600), (400, 1201)])
def test_to_original_exact_finds_what_the_model_saw_at_an_edge(width, height):
    """A ramp of x or y, resized and cropped, says of each of its pixels where it was on the original."""
    y, x = np.mgrid[:height, :width]
    ramps = {"x": (x + 0.5) / width, "y": (y + 0.5) / height}
    for axis, ramp in ramps.items():
        seen = np.asarray(resize_and_crop(Image.fromarray(ramp.astype(np.float32)), 518))
        seen = seen[259] if axis == "x" else seen[:, 259]  # the place of each pixel's middle
        for index in range(3, 515):  # the resampling filter reaches over the border in the outermost
            edge = (index + 0.5) / 518
            box = Box(edge, edge, edge, edge).to_original_exact(width, height)
            assert getattr(box, f"{axis}_min") == getattr(box, f"{axis}_max")
            assert getattr(box, f"{axis}_min") == pytest.approx(seen[index], abs=0.1 / len(ramp))


@pytest.mark.parametrize(("width", "height"), SIZES[:7])
def test_both_ways_to_the_original_differ_by_few_pixels(width, height):
    pixel = 1 / min(width, height) + 1 / 518
    for edge in BINS:
        box = Box(edge, edge, edge, edge)
        exact = edges(box.to_original_exact(width, height))
        assert edges(box.to_original(width, height)) == pytest.approx(exact, abs=2 * pixel)


def test_report_is_read_from_the_recorded_form():
    output = '[["Clear.", null], ["Opacity.", [[0.115, 0.445, 0.445, 0.795], [0.5, 0, 1, 0.5]]]]'
    report = read_report(output, "complete")
    assert report == Report(
        (Finding("Clear.", ()), Finding("Opacity.", (Box(0.115, 0.445, 0.445, 0.795), Box(0.5, 0.0, 1.0, 0.5)))),
        "complete",
    )
    assert report.text == "Clear. Opacity."
    assert read_report("[]", "truncated") == Report((), "truncated")
    assert read_report("[]", "truncated").text == ""


@pytest.mark.parametrize(
    "output",
    [
        "Jane", "{}", "null", '"Jane"', '["Jane"]', '[["Jane"]]', '[["Jane", null, 1]]', '[[1, null]]', '[["Jane", 5]]',
        '[["Jane", [[0, 0, 1]]]]', '[["Jane", [[0, 0, 1, 2]]]]', '[["Jane", [["a", 0, 1, 1]]]]',
        '[["Jane", [0, 0, 1, 1]]]',
        '[["Jane", [[NaN, 0, 1, 1]]]]', "[" * 100_000,
    ],
)  # fmt: skip
def test_output_of_another_form_is_refused_without_its_text(output):
    with pytest.raises(ResponseError) as refused:
        read_report(output, "complete")
    assert str(refused.value) == (
        "the output is not the JSON of findings; expected [[text, null or a list of boxes], …]"
    )


def test_unknown_status_is_refused():
    with pytest.raises(ResponseError, match="unknown status of a report"):
        read_report("[]", "done")


MODEL = '{"checkpoint": "maira-2", "checkpoint_sha256": null, "precision": "fp32", "version": "0.1.0", "later": 5}'


def test_report_has_the_model_that_wrote_it_where_the_server_tells():
    told = ModelIdentity(checkpoint="maira-2", checkpoint_sha256=None, precision="fp32", version="0.1.0")
    assert read_report("[]", "complete", MODEL).model == told
    assert read_identity(told.to_json()) == told
    assert read_report("[]", "complete").model is None


@pytest.mark.parametrize("model", ["", "5", "[]", "{}", MODEL.replace('"fp32"', "null"), MODEL.replace("null", "5")])
def test_model_of_another_form_is_refused(model):
    with pytest.raises(ResponseError, match="the output model is not the JSON of an object with the texts"):
        read_report("[]", "complete", model)


def test_repr_shows_no_clinical_text():
    report = read_report('[["Jane has pneumonia", [[0, 0, 1, 1]]]]', "complete")
    assert "Jane" not in repr(report) + str(report) + repr(report.findings[0])


WHITE_BOX = Box(0.25, 0.25, 0.75, 0.75)


def drawn(size, *findings, mode="L"):
    return Report(findings, "complete").draw(Image.new(mode, size))


def test_picture_is_the_image_with_the_legend_below():
    film = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800), dtype=np.uint8))
    picture = Report((Finding("Clear.", ()),), "complete").draw(film)
    assert (picture.mode, picture.width) == ("RGB", 800)
    assert picture.height > 600
    assert np.array_equal(np.asarray(picture)[:600], np.asarray(film.convert("RGB")))
    legend = np.asarray(picture)[600:]
    assert legend.max() == 255


def test_report_without_findings_is_the_image_alone():
    assert drawn((600, 500)).size == (600, 500)


@pytest.mark.parametrize("size", [(1000, 1000), (900, 1300), (1300, 900)], ids=["square", "portrait", "landscape"])
def test_box_is_drawn_where_the_model_saw_it_in_the_colour_of_its_finding(size):
    picture = np.asarray(drawn(size, Finding("Clear.", ()), Finding("Opacity.", (WHITE_BOX,))))[: size[1]]
    ys, xs = np.nonzero((picture == colour_of(2)).all(axis=-1))
    box = WHITE_BOX.to_original_exact(*size)
    expected = box.x_min * size[0], box.x_max * size[0], box.y_min * size[1], box.y_max * size[1]
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx(expected, abs=1)
    assert not picture[size[1] // 2, size[0] // 2].any()  # an outline


def test_every_finding_is_in_the_legend_and_unboxed_ones_are_white():
    one = drawn((600, 600), Finding("One.", ()))
    three = drawn((600, 600), Finding("One.", ()), Finding("Two.", (WHITE_BOX,)), Finding("Three.", ()))
    line = (three.height - one.height) / 2
    assert line == pytest.approx(one.height - 600, rel=0.5)
    legend = np.asarray(three)[600:]
    brightest = []
    for start in (line / 2, 1.5 * line, 2.5 * line):
        pixels = legend[int(start) : int(start + line)].reshape(-1, 3)
        brightest.append(tuple(pixels[pixels.sum(axis=1).argmax()]))
    assert brightest == [(255, 255, 255), colour_of(2), (255, 255, 255)]


@pytest.mark.parametrize("size", [(16, 20), (120, 100), (3000, 2500)])
def test_legend_is_readable_on_any_size(size):
    text = "There are some reticular appearing opacities in the left base not seen on the prior exam. " * 3
    picture = drawn(size, Finding(text, (WHITE_BOX,)))
    assert picture.width == max(480, size[0])
    legend_height = picture.height - round(size[1] * picture.width / size[0])
    n_lines = legend_height / picture.width * 40  # a line is about a 40th of the width high
    assert 3 <= n_lines <= 12


def test_colours_of_twelve_findings_are_told_apart():
    colours = np.array([colour_of(number) for number in range(1, 13)], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(12, dtype=bool)].min() > 30


def test_long_text_is_wrapped_without_loss_within_the_width():
    class Monospace:
        def getlength(self, text):
            return len(text)

    text = "a few words and one-very-long-word-of-more-than-a-line end"
    lines = list(wrap(text, 12, Monospace()))
    assert all(0 < len(line) <= 12 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert list(wrap("ab", 0, Monospace())) == ["a", "b"]
    assert list(wrap("  ", 12, Monospace())) == []


def test_box_inside_out_and_box_at_the_edge_are_drawn():
    picture = drawn((600, 600), Finding("a", (Box(0.9, 0.8, 0.1, 0.2), Box(0.005, 0.005, 0.995, 0.995))))
    assert (np.asarray(picture)[120, 60:540] == colour_of(1)).all(axis=-1).mean() > 0.9


@pytest.mark.parametrize("dtype", [np.uint16, np.int32], ids=["I;16", "I"])
def test_deep_grey_is_shown_over_its_range(dtype):
    values = np.linspace(1000, 3000, 500 * 500).reshape(500, 500).astype(dtype)
    file = BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    picture = np.asarray(Report((), "complete").draw(file.getvalue()))
    assert (picture[0, 0, 0], picture[-1, -1, 0]) == (0, 255)
    assert picture[250, 0, 0] == pytest.approx(128, abs=1)


def test_what_is_no_image_is_refused():
    with pytest.raises(InvalidInput, match="is not an image that Pillow can read"):
        Report((), "complete").draw(b"garbage")
