"""Thumbnails of every kind of source that a table has, and grids of them."""

import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from medimage_analysis.thumbnails import CAPTION_PX, grid, thumbnail
from tests.client.dicom_files import dicom, file_of


def brightness(image):
    return np.asarray(image.convert("L")).mean()


@pytest.fixture
def png(tmp_path):
    Image.new("RGB", (300, 100), (10, 20, 200)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_image_file_fits_into_the_square_and_keeps_its_colour(png):
    image = thumbnail(str(png), None, "file", 90)
    assert (image.size, image.getpixel((5, 5))) == ((90, 30), (10, 20, 200))


def test_member_of_a_zip_is_read(png, tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(png, "folder/b.png")
    assert thumbnail(f"{tmp_path}/archive.zip/folder/b.png", None, "file", 90).size == (90, 30)
    assert thumbnail(f"{tmp_path}/archive.zip/folder/c.png", None, "file", 90) is None


def test_grey_of_sixteen_bits_is_stretched(tmp_path):
    Image.fromarray(np.linspace(1000, 3000, 100, dtype=np.uint16).reshape(10, 10)).save(tmp_path / "deep.png")
    assert np.asarray(thumbnail(f"{tmp_path}/deep.png", None, "file", 90)).min() == 0
    assert np.asarray(thumbnail(f"{tmp_path}/deep.png", None, "file", 90)).max() == 255


def test_frame_of_a_dicom_file_is_shown_in_the_windowing_of_the_table(tmp_path):
    frames = np.stack([np.full((4, 6), 100, np.uint16), np.full((4, 6), 300, np.uint16)])
    (tmp_path / "a.dcm").write_bytes(file_of(dicom(frames)))
    assert brightness(thumbnail(f"{tmp_path}/a.dcm", 0, "0,400", 90)) == pytest.approx(255 / 4, abs=1)
    assert brightness(thumbnail(f"{tmp_path}/a.dcm", 1, "0,400", 90)) == pytest.approx(255 * 3 / 4, abs=1)


def test_slice_of_a_volume_is_read(tmp_path):
    volume = np.zeros((4, 5, 3), np.float32)
    volume[..., 2] = 100
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    assert [brightness(thumbnail(f"{tmp_path}/v.nii.gz", z, "file", 90)) for z in range(3)] == [0, 0, 255]
    assert thumbnail(f"{tmp_path}/v.nii.gz", 7, "file", 90) is None


@pytest.mark.parametrize("source", ["none.png", "dicomweb+https://archive/studies/1", "text.txt", "bad.zip/a.png"])
def test_what_cannot_be_read_has_no_thumbnail(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "bad.zip").write_text("no zip")
    assert thumbnail(source, None, "file", 90) is None


def test_grid_has_each_tile_under_its_caption():
    tiles = [Image.new("RGB", (40, 20), (0, 200, 0)), None, Image.new("RGB", (20, 40), (200, 0, 0))]
    sheet = grid(tiles, ["a\nb", "c", "e" * 99 + "\n" + "f" * 99], tile_px=40, columns=2)
    assert sheet.size == (80, 2 * (40 + CAPTION_PX))
    assert sheet.getpixel((20, CAPTION_PX + 20)) == (0, 200, 0)
    assert sheet.getpixel((20, CAPTION_PX + 5)) == (0, 0, 0)  # above the image, which is lower than the tile
    assert sheet.getpixel((45, CAPTION_PX + 5)) == (0x22, 0x22, 0x22)
    assert sheet.getpixel((20, 40 + 2 * CAPTION_PX + 20)) == (200, 0, 0)
    assert np.asarray(sheet)[:CAPTION_PX, :40].max() > 128  # a caption
