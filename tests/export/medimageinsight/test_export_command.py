"""`medimage export medimageinsight`: exit codes, and one line for whoever typed it."""

import pytest
from click.testing import CliRunner, Result

from medimage_export.cli import export
from medimage_export.medimageinsight import export as export_module
from medimage_export.repository import copy_unexported
from tests.export.medimageinsight.small import SMALL
from tests.paths import PHANTOM_CHECKPOINT, REPOSITORY


@pytest.fixture
def repository(tmp_path):
    """A copy of the committed configs, without any exported file."""
    return copy_unexported(REPOSITORY, tmp_path / "model_repository")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(export, ["medimageinsight", *map(str, arguments)])


@pytest.mark.parametrize("source", [(), ("--checkpoint", PHANTOM_CHECKPOINT, "--random-weights")], ids=["none", "both"])
def test_export_asked_for_no_source_or_two_is_bad_use(repository, source):
    result = run(*source, "--repository", repository)
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: give either --checkpoint DIR or --random-weights\n")


def test_export_of_a_folder_that_does_not_exist_fails_in_one_line(repository, tmp_path):
    result = run("--checkpoint", tmp_path / "absent", "--repository", repository)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path / 'absent'}: no such folder\n"


def test_export_of_random_weights_fills_the_repository_and_says_where(repository, monkeypatch):
    monkeypatch.setattr(export_module, "MedImageInsightConfig", lambda: SMALL)
    result = run("--random-weights", "--repository", repository)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith(f"exported to {repository} in ")
    assert (repository / "image_encoder/1/model.onnx").is_file()
    assert (repository / "text_encoder/1/model.onnx").is_file()


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
