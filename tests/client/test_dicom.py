"""DICOM files made with pydicom, against grey values computed by hand from the standard's formulas."""

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medimage_client import InvalidInput, MissingExtra
from medimage_client.images.dicom import DICOM_HEAD_BYTES
from medimage_client.images.encoding import encode_image
from tests.client.dicom_files import dicom, file_of, item, shown, u16


def test_linear_window_follows_ps3_3_c_11_2_1_2():
    # center 100, width 51: ((x - 99.5) / 50 + 0.5) * 255, so 74.5 is black and 124.5 white
    ds = dicom(u16(74, 75, 100, 124, 125), WindowCenter=100, WindowWidth=51)
    assert shown(ds).tolist() == [[0, 3, 130, 252, 255]]


def test_linear_exact_window_is_not_shifted():
    # ((x - 100) / 50 + 0.5) * 255
    ds = dicom(u16(75, 80, 100, 125), WindowCenter=100, WindowWidth=50, VOILUTFunction="LINEAR_EXACT")
    assert shown(ds).tolist() == [[0, 26, 128, 255]]


def test_sigmoid_window_is_the_logistic_function():
    values = np.array([0, 60, 100, 140, 60000])
    ds = dicom(u16(*values), WindowCenter=100, WindowWidth=80, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (values - 100) / 80))
    assert np.abs(shown(ds)[0] - expected).max() <= 0.5


def test_first_of_several_windows_is_taken():
    several = dicom(u16(0, 50, 100, 200), WindowCenter=[50.5, 900], WindowWidth=[101, 10])
    assert shown(several).tolist() == [[0, 128, 255, 255]]


def test_rescale_comes_before_the_window():
    # stored 1024 is 0 HU; lung-like window of 40 and 401 HU: -160 black, 240 white
    stored = np.array([[-160, 40, 240]], dtype=np.int16) + 1024
    ds = dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=401)
    assert shown(ds).tolist() == [[0, 128, 255]]


def test_given_window_replaces_the_files_and_is_in_hounsfield_units():
    stored = np.array([[0, 1024, 2048]], dtype=np.int16)
    ds = dicom(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    assert shown(ds, window=(-1024, 1024)).tolist() == [[0, 128, 255]]


def test_modality_lut_sequence_comes_before_the_window():
    table = item(LUTDescriptor=[3, 0, 16], ModalityLUTType="US", LUTData=u16(0, 1000, 10).tobytes())
    ds = dicom(u16(0, 1, 2), ModalityLUTSequence=Sequence([table]), WindowCenter=500, WindowWidth=1001)
    assert shown(ds).tolist() == [[0, 255, 3]]  # 10 / 1000 * 255 = 2.55


def test_voi_lut_sequence_comes_before_the_window_and_fills_its_bit_range():
    table = item(LUTDescriptor=[4, 10, 12], LUTData=u16(0, 4095, 2048, 1024).tobytes())
    ds = dicom(u16(5, 10, 11, 12, 13, 99), VOILUTSequence=Sequence([table]), WindowCenter=1, WindowWidth=2)
    assert shown(ds).tolist() == [[0, 0, 255, 128, 64, 64]]


def test_monochrome1_is_inverted_after_the_window():
    ds = dicom(u16(0, 50, 100), PhotometricInterpretation="MONOCHROME1", WindowCenter=50.5, WindowWidth=101)
    assert shown(ds).tolist() == [[255, 127, 0]]


def test_no_window_stretches_from_the_1st_to_the_99th_percentile():
    stored = np.arange(1001, dtype=np.uint16)[None] * 4  # percentiles at 40 and 3960
    expected = np.clip((stored - 40.0) / (3960 - 40) * 255, 0, 255)
    assert np.abs(shown(dicom(stored)) - expected).max() <= 0.5


def test_constant_image_without_window_is_black_without_a_warning():
    assert shown(dicom(u16(7, 7, 7))).tolist() == [[0, 0, 0]]


def test_12_bits_stored_in_16_use_the_window_not_the_container():
    ds = dicom(u16(0, 2048, 4095), BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    assert shown(ds).tolist() == [[0, 128, 255]]


def test_multi_frame_file_gives_its_first_frame_or_the_one_asked_for():
    stored = np.stack([np.full((2, 2), value, np.uint8) for value in (10, 20, 30)])
    ds = dicom(stored, WindowCenter=128, WindowWidth=256)
    assert shown(ds).tolist() == [[10, 10], [10, 10]]
    assert shown(ds, frame=2).tolist() == [[30, 30], [30, 30]]
    with pytest.raises(InvalidInput, match="frame is 3; this DICOM file has frames 0 to 2"):
        shown(ds, frame=3)


def test_enhanced_multi_frame_file_takes_rescale_and_window_from_its_functional_groups():
    def group(intercept):
        return item(
            PixelValueTransformationSequence=Sequence([item(RescaleSlope=1, RescaleIntercept=intercept)]),
        )

    ds = dicom(np.stack([u16(0, 100), u16(0, 100)]))
    window = item(WindowCenter=0.5, WindowWidth=201)  # -100 black, 100 white
    ds.SharedFunctionalGroupsSequence = Sequence([item(FrameVOILUTSequence=Sequence([window]))])
    ds.PerFrameFunctionalGroupsSequence = Sequence([group(0), group(-100)])
    assert shown(ds, frame=0).tolist() == [[128, 255]]
    assert shown(ds, frame=1).tolist() == [[0, 128]]


def test_rgb_file_keeps_its_colours():
    stored = np.array([[[255, 0, 0], [0, 128, 7]]], dtype=np.uint8)
    assert np.array_equal(shown(dicom(stored, SamplesPerPixel=3, PhotometricInterpretation="RGB")), stored)


def test_ybr_full_file_becomes_rgb():
    red = np.array([[[76, 85, 255]]], dtype=np.uint8)  # PS3.3 C.7.6.3.1.2 backwards
    ds = dicom(red, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL")
    assert np.abs(shown(ds).astype(int) - [[[254, 0, 0]]]).max() <= 1


def test_palette_file_becomes_rgb():
    ds = dicom(np.array([[0, 1]], dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for colour, table in {"Red": [0, 65535], "Green": [65535, 0], "Blue": [0, 32896]}.items():
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [2, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", np.array(table, np.uint16).tobytes())
    assert shown(ds).tolist() == [[[0, 255, 0], [255, 0, 128]]]


def test_window_for_a_colour_file_is_refused():
    ds = dicom(np.zeros((2, 2, 3), np.uint8), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    with pytest.raises(InvalidInput, match="colour DICOM file; window applies to grey values only"):
        shown(ds, window=(0, 1))


def test_dicom_file_is_recognised_by_content_from_path_and_base64(tmp_path):
    import base64

    data = file_of(dicom(u16(0, 50, 100), WindowCenter=50.5, WindowWidth=101))
    file = tmp_path / "IM0001"
    file.write_bytes(data)
    for given in (file, str(file), base64.b64encode(data).decode()):
        assert np.asarray(Image.open(BytesIO(encode_image(given)))).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kept", [132, 200, -3], ids=["magic-only", "header-cut", "pixels-cut"])
def test_truncated_dicom_file_is_refused_in_one_line_without_its_values(kept):
    data = file_of(dicom(u16(*range(1000)), PatientName="Doe^Jane"))
    with pytest.raises(InvalidInput, match="is a DICOM file that cannot be read") as refused:
        encode_image(data[:kept])
    assert "Doe" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")  # pydicom's, of odd values
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian], ids=["plain", "deflated"])
def test_damaged_dicom_file_is_refused_or_sent_and_nothing_else_raised(syntax):
    rng = np.random.default_rng(0)
    table = item(LUTDescriptor=[4, 10, 12], LUTData=u16(0, 4095, 2048, 1024).tobytes())
    stored = rng.integers(0, 4096, (16, 16), dtype=np.uint16)
    ds = dicom(stored, PatientName="Doe^Jane", RescaleSlope=1, RescaleIntercept=-1, VOILUTSequence=Sequence([table]))
    ds.file_meta.TransferSyntaxUID = syntax
    file = file_of(ds)
    refused = 0
    for _ in range(200):
        changed = bytearray(file)
        for position in rng.integers(DICOM_HEAD_BYTES, len(file), 3):
            changed[position] = rng.integers(0, 256)
        end = rng.integers(DICOM_HEAD_BYTES, len(file)) if rng.random() < 0.3 else len(file)
        try:
            encode_image(bytes(changed[:end]))
        except InvalidInput as error:
            refused += 1
            assert "Doe" not in str(error)
    assert 0 < refused < 200


def test_missing_pydicom_names_the_extra(monkeypatch):
    data = file_of(dicom(u16(1)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtra) as missing:
        encode_image(data)
    assert str(missing.value) == "reading DICOM needs pydicom: pip install 'medimage-triton[dicom]'"
