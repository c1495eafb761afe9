"""The public files of pydicom and pydicom-data, against dcmtk's rendering of them.

dcmtk is an implementation of its own. It reads no JPEG 2000: such files are compared with their uncompressed twins.
"""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from medimage_client import InvalidInput
from medimage_client.constants import PERCENTILES
from medimage_client.images.dicom import is_dicom, parse, read_dicom
from medimage_client.images.dicom_grey import apply_modality, frame_attributes
from medimage_client.images.dicom_pixels import PIXEL_ELEMENTS, image_layout, read_stored

OWN = Path(pydicom.__file__).parent / "data" / "test_files"
SPEC = find_spec("data_store")  # of pydicom-data
FURTHER = Path(SPEC.origin).parent / "data" if SPEC and SPEC.origin else None

UNREAD = {  # what is left, and why
    "17166": "Window Center (0028,1050) and Window Width (0028,1051) would leave nothing but one grey level",
    "17196": "Window Center (0028,1050) and Window Width (0028,1051) would leave nothing but one grey level",
    "JPEG2000-embedded-sequence-delimiter.dcm": "frame has 3722445056 x 1024 pixels",  # made so
    "MR_truncated.dcm": "Pixel Data (7FE0,0010) has 8130 bytes; expected 8192",
    "badVR.dcm": "Number of Frames (0028,0008) is damaged",
    "liver.dcm": "Segmentation Storage, whose pixels are a mask",
    "liver_1frame.dcm": "Segmentation Storage, whose pixels are a mask",
    "liver_expb.dcm": "Segmentation Storage, whose pixels are a mask",
    "liver_expb_1frame.dcm": "Segmentation Storage, whose pixels are a mask",
    "meta_missing_tsyntax.dcm": "it has no Bits Allocated (0028,0100)",
    "nested_priv_SQ.dcm": "it has no Bits Allocated (0028,0100)",
}
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
TWINS = {  # of files in JPEG 2000 without loss
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "emri_small_jpeg_2k_lossless.dcm": "emri_small.dcm",
    **{f"{name}_J2KR.dcm": f"{name}_UNCR.dcm" for name in ("MR2", "RG1", "RG3", "US1", "693")},
}
OTHERWISE = {  # files that dcmtk shows in another way
    "eCT_Supplemental.dcm": "dcmtk 3.6 knows no supplemental palette",
    "rtdose_expb.dcm": "dcmtk 3.6 takes the words of 32-bit big-endian values in the other order",
    "rtdose_expb_1frame.dcm": "dcmtk 3.6 takes the words of 32-bit big-endian values in the other order",
}
TOLERANCE = {"SC_ybr_full_uncompressed.dcm": 2}  # dcmtk has chroma around 127.5, PS3.3 around 128
SELECTION = [
    *("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
    *("examples_palette.dcm", "examples_ybr_color.dcm", "examples_overlay.dcm", "image_dfl.dcm", "rtdose.dcm"),
    *("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle_16bit.dcm", "ExplVR_BigEnd.dcm"),
]


def image_files(folder):
    """DICOM files with pixels, by name."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_dicom(path.read_bytes()[:132]):
            dataset = parse(path.read_bytes())
            if any(keyword in dataset for keyword in PIXEL_ELEMENTS):
                found.append(path)
    return found


@pytest.fixture(scope="session")
def dcmtk():
    missing = [name for name in ("dcmj2pnm", "dcmdjpls") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{missing} of Debian's package dcmtk is not installed")


@pytest.fixture(scope="session")
def further():
    if FURTHER is None:
        pytest.skip("pydicom-data is not installed")
    return FURTHER


def rendering(path, window, scratch):
    """dcmtk's picture of the first frame, as its file has it, or in a window (low, high); None where it has none."""
    dataset = parse(path.read_bytes())
    if getattr(dataset.file_meta, "TransferSyntaxUID", None) in JPEG_LS:
        subprocess.run(["dcmdjpls", path, scratch / "plain.dcm"], check=True, capture_output=True)
        path = scratch / "plain.dcm"
    options = ["-O"]  # without overlays
    if window is not None:
        low, high = window
        options += ["+Ww", str((low + high) / 2 + 0.5), str(high - low + 1)]
    elif dataset.get("VOILUTSequence"):
        options += ["+Wl", "1"]
    elif dataset.get("WindowCenter"):
        options += ["+Wi", "1"]
    picture = scratch / "picture.pnm"
    picture.unlink(missing_ok=True)
    subprocess.run(["dcmj2pnm", *options, path, picture], capture_output=True, timeout=60)
    return np.asarray(Image.open(picture)).astype(int) if picture.exists() else None


def automatic_window(path):
    """The percentiles that are taken of a grey file without window; None of others."""
    dataset = parse(path.read_bytes())
    layout = image_layout(dataset)
    attributes = frame_attributes(dataset, 0)
    if layout.is_colour or attributes.get("WindowCenter") or attributes.get("VOILUTSequence"):
        return None
    values = apply_modality(read_stored(dataset, layout, 0).values, attributes, layout)
    low, high = np.percentile(values, PERCENTILES)
    return float(low), float(high)


def distance_to_dcmtk(path, scratch):
    """Largest difference in grey levels; None where dcmtk has no picture."""
    window = automatic_window(path)
    expected = rendering(path, window, scratch)
    if expected is None:
        return None
    got = read_dicom(path.read_bytes(), window="file" if window is None else window).astype(int)
    if got.ndim > expected.ndim:  # grey in three equal channels
        expected = expected[..., None]
    return int(np.abs(got - expected).max())


def assert_as_dcmtk(path, scratch):
    twin = path.with_name(TWINS.get(path.name, path.name))
    if twin != path:
        assert np.array_equal(read_dicom(path.read_bytes()), read_dicom(twin.read_bytes()))
    distance = distance_to_dcmtk(twin, scratch)
    assert distance is not None
    assert distance <= TOLERANCE.get(path.name, 1)


@pytest.mark.parametrize("name", SELECTION)
def test_public_file_is_shown_as_dcmtk_shows_it(name, dcmtk, tmp_path):
    assert_as_dcmtk(OWN / name, tmp_path)


def left_out(paths):
    reasons = {}
    for path in paths:
        try:
            read_dicom(path.read_bytes())
        except InvalidInput as refused:
            reasons[path.name] = str(refused)
    return reasons


def check_left_out(paths):
    reasons = left_out(paths)
    assert reasons.keys() == UNREAD.keys() & {path.name for path in paths}
    for name, reason in reasons.items():
        assert UNREAD[name] in reason


def test_files_of_pydicom_are_read_but_for_those_with_a_reason():
    paths = image_files(OWN)
    assert len(paths) > 90
    check_left_out(paths)


@pytest.mark.soak
def test_all_public_files_are_read_and_shown_as_dcmtk_shows_them(dcmtk, further, tmp_path):
    paths = image_files(OWN) + image_files(further)
    check_left_out(paths)
    distances = {}
    for path in paths:
        if path.name in UNREAD or path.name in OTHERWISE:
            continue
        distance = distance_to_dcmtk(path, tmp_path)
        if distance is not None:
            distances[path.name] = distance
        if path.name in TWINS:
            assert_as_dcmtk(path, tmp_path)
    worse = {name: distance for name, distance in distances.items() if distance > TOLERANCE.get(name, 1)}
    assert worse == {}
    assert len(distances) > 110
