"""`medimage export medimageinsight`: exit codes, and one line for whoever typed it."""

import json
import sys

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from medimage_export.cli import export
from medimage_export.medimageinsight import export as export_module
from medimage_export.phantoms import phantom
from medimage_export.repository import copy_unexported
from tests.export.medimageinsight.small import SMALL
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY


@pytest.fixture
def repository(tmp_path):
    """A copy of the committed configs, without any exported file."""
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(export, ["medimageinsight", *map(str, arguments)])


def precision_of(repository):
    return json.loads((repository / "medimageinsight/1/manifest.json").read_text())["precision"]


@pytest.mark.parametrize("source", [(), ("--checkpoint", PHANTOM_CHECKPOINT, "--random-weights")], ids=["none", "both"])
def test_export_asked_for_no_source_or_two_is_bad_use(repository, source):
    result = run(*source, "--repository", repository)
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: give either --checkpoint DIR or --random-weights\n")


def test_export_of_a_folder_that_does_not_exist_fails_in_one_line(repository, tmp_path):
    result = run("--checkpoint", tmp_path / "absent", "--repository", repository)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'absent'}: no such folder\n"


def test_export_of_random_weights_fills_the_repository_in_fp32_and_says_where(repository, monkeypatch):
    monkeypatch.setattr(export_module, "MedImageInsightConfig", lambda: SMALL)
    result = run("--random-weights", "--repository", repository)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith(f"exported to {repository} in ")
    assert (repository / "image_encoder/1/model.onnx").is_file()
    assert (repository / "text_encoder/1/model.onnx").is_file()
    assert precision_of(repository) == "fp32"


@pytest.mark.parametrize(
    "content",
    [b"not an image", b"P5 64 64 255\n" + bytes(2000), b"P5 20000 20000 255\n"],
    ids=["unreadable", "truncated", "oversized"],  # Pillow opens no more than 179 million pixels
)
def test_export_with_an_unusable_image_fails_in_one_line_that_names_it(repository, tmp_path, content):
    image = tmp_path / "image.pgm"
    image.write_bytes(content)
    result = run("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, "--image", image)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and str(image) in line


@pytest.fixture
def pictures(tmp_path):
    """A folder of two images; what lies in folders below it is none of them."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "notes.txt").write_text("no image")
    for caption in ("x-ray chest anteroposterior No Finding", "dermoscopy skin polarized Melanoma"):
        Image.fromarray(phantom(caption, seed=1).image).save(folder / f"{caption}.png")
    return folder


def test_precision_is_what_the_manifest_says(repository):
    result = run("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, "--precision", "fp16")
    assert result.exit_code == 0, result.output
    assert precision_of(repository) == "fp16"


def test_int8_with_a_folder_of_images_takes_its_ranges_from_them(repository, exported, pictures):
    command = ("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, "--precision", "int8")
    result = run(*command, "--calibration", pictures)
    assert result.exit_code == 0, result.output
    from_drawings = (exported("int8") / "image_encoder/1/model.onnx").read_bytes()
    assert (repository / "image_encoder/1/model.onnx").read_bytes() != from_drawings
    for path in repository.rglob("1/*"):  # a file's name may be a patient's
        assert not path.is_file() or b"Melanoma.png" not in path.read_bytes()
    assert "Melanoma" not in result.output


def test_empty_calibration_folder_is_bad_use(repository, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(
        *("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository),
        *("--precision", "int8", "--calibration", tmp_path / "empty"),
    )
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: --calibration {tmp_path / 'empty'} holds no files\n")


def test_calibration_with_a_file_that_is_no_image_fails_in_one_line_that_names_it(repository, pictures):
    (pictures / "thumbs.db").write_bytes(b"no image")
    result = run(
        "--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, "--precision", "int8", "--calibration", pictures
    )
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and str(pictures / "thumbs.db") in line
    assert not list(repository.rglob("model.onnx"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--precision", "int8", "--format", "tensorrt"),
            "Error: int8 is for CPUs; TensorRT takes --precision fp16 or fp32",
        ),
        (
            ("--precision", "fp16", "--calibration", "."),
            "Error: fp16 needs no calibration images; only --precision int8 takes them",
        ),
        (("--calibration", "."), "Error: fp32 needs no calibration images; only --precision int8 takes them"),
    ],
    ids=["int8 plan", "fp16 calibration", "fp32 calibration"],
)
def test_options_that_exclude_each_other_fail_in_one_line(repository, pictures, monkeypatch, options, line):
    monkeypatch.chdir(pictures)
    result = run("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, *options)
    assert (result.exit_code, result.stderr) == (1, f"{line}\n")


@pytest.mark.parametrize(
    "options",
    [("--precision", "fp8"), ("--format", "openvino"), ("--calibration", "absent")],
    ids=["precision", "format", "calibration"],
)
def test_unknown_values_are_bad_use(repository, options):
    result = run("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, *options)
    assert result.exit_code == 2
    assert f"Invalid value for '{options[0]}'" in result.stderr.splitlines()[-1]


def test_tensorrt_where_it_is_missing_fails_in_one_line_with_what_to_run(repository, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("--checkpoint", PHANTOM_CHECKPOINT, "--repository", repository, "--format", "tensorrt")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: neither the Python package tensorrt nor trtexec is here")
    assert "docker run" in line
    assert not list(repository.rglob("model.*n*"))
