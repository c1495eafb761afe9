"""The grey-scale pipeline of DICOM PS3.3 C.11 on what archives hold, against the standard's formulas.

Right values are computed by hand; where the standard leaves a choice, dcmtk's is the truth (test_dicom_public_files.py
compares with it).
"""

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.sequence import Sequence

from medimage_client import InvalidInput
from tests.client.dicom_files import RAMP, assert_grey, big_endian, compressed, dicom, item, shown, u16, window

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's, as the files are made

WINDOWED = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
EXPECTED = window(RAMP, 2048, 4096)


def ramp(**attributes):
    return dicom(RAMP, **WINDOWED | attributes)


def table(entries, first=0, bits=16, data=None):
    return Sequence([item(LUTDescriptor=[len(entries), first, bits], LUTData=data or np.uint16(entries).tobytes())])


@pytest.mark.parametrize(
    "empty",
    [
        {"VOILUTSequence": Sequence([item()])},
        {"VOILUTSequence": Sequence([])},
        {"VOILUTSequence": Sequence([item(LUTDescriptor=[4096, 0, 12])])},
        {"ModalityLUTSequence": Sequence([item()])},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": "", "RescaleIntercept": 0},
        {"VOILUTFunction": ""},
        {"PixelPaddingValue": None},
        {"PresentationLUTShape": ""},
        {"SharedFunctionalGroupsSequence": Sequence([item(FrameVOILUTSequence=Sequence([item()]))])},
        {"PlanarConfiguration": None, "NumberOfFrames": None},
        {"PhotometricInterpretation": None},
        {"SamplesPerPixel": None},
    ],
    ids=lambda empty: "-".join(empty),
)
def test_empty_element_is_an_absent_one(empty):
    ds = ramp()
    for name, value in empty.items():
        setattr(ds, name, value)
    assert_grey(ds, EXPECTED)


@pytest.mark.parametrize(
    "missing", ["PhotometricInterpretation", "SamplesPerPixel", "PixelRepresentation", "HighBit", "BitsStored"]
)
def test_missing_element_with_one_sensible_value_is_assumed(missing):
    ds = ramp()
    delattr(ds, missing)
    assert_grey(ds, EXPECTED)


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated"])
def test_missing_element_is_named(name):
    ds = ramp()
    delattr(ds, name)
    with pytest.raises(InvalidInput, match=r"\(0028,0"):
        shown(ds)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_modality_table_of_any_bits_comes_first(bits):
    entries = (RAMP.ravel()[::-1] >> max(0, 12 - bits)).astype(np.uint16)
    ds = dicom(RAMP, BitsStored=12, ModalityLUTSequence=table(entries, bits=bits))
    expected = window(entries[RAMP], 2 ** min(bits, 12) / 2, 2 ** min(bits, 12))
    ds.WindowCenter, ds.WindowWidth = 2 ** min(bits, 12) / 2, 2 ** min(bits, 12)
    assert_grey(ds, expected)


@pytest.mark.parametrize("rescale", [{"RescaleSlope": 0, "RescaleIntercept": 7}], ids=["slope 0"])
def test_slope_of_0_is_no_rescale(rescale):
    assert_grey(ramp(**rescale), EXPECTED)


def test_intercept_without_slope_is_taken():
    assert_grey(dicom(RAMP, BitsStored=12, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400),
                window(RAMP - 1024.0, 40, 400))  # fmt: skip


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_rescale_that_is_no_number_is_named(name, value):
    with pytest.raises(InvalidInput, match=r"Rescale (Slope|Intercept) \(0028,105[23]\) is -?(nan|inf)"):
        shown(ramp(**{"RescaleSlope": 1, "RescaleIntercept": 0} | {name: value}))


@pytest.mark.parametrize("used", [10, 12, 14, 16])
def test_voi_table_fills_the_range_that_its_entries_use(used):
    entries = np.round(np.linspace(0, 2**used - 1, 4096))
    assert_grey(dicom(RAMP, BitsStored=12, VOILUTSequence=table(entries)), RAMP / 4095 * 255, 1)


@pytest.mark.parametrize("swap", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("n", [4096, 4095, 256])
def test_voi_table_of_8_bits_may_have_two_entries_in_a_word(n, swap):
    stored = RAMP.clip(0, n - 1)
    entries = (np.arange(n) * 255 // (n - 1)).astype(np.uint8)
    data = entries.tobytes() + b"\0" * (n % 2)
    ds = dicom(stored, BitsStored=12, VOILUTSequence=table(entries, bits=8, data=data))
    assert_grey(big_endian(ds) if swap else ds, entries[stored])


def test_voi_table_after_a_rescale_begins_below_zero():
    ds = dicom(u16(0, 1000, 1001, 1002, 4000), RescaleSlope=1, RescaleIntercept=-1000,
               VOILUTSequence=table([0, 2048, 4095], first=-1 & 0xFFFF, bits=12))  # fmt: skip
    ds.VOILUTSequence[0]["LUTDescriptor"] = DataElement(0x00283002, "US", [3, 0xFFFF, 12])
    assert shown(ds).tolist() == [[0, 128, 255, 255, 255]]


def test_voi_table_cut_short_is_named():
    ds = dicom(RAMP, BitsStored=12, VOILUTSequence=table(np.arange(4096), bits=12, data=bytes(100)))
    with pytest.raises(InvalidInput, match=r"LUT Data \(0028,3006\) has 50 entries; expected 4096"):
        shown(ds)


PADDED = np.where(np.arange(3000) % 3 == 0, -2000, np.arange(3000) // 3).astype(np.int16).reshape(50, 60)


@pytest.mark.parametrize(
    ("value", "limit"),
    [(-2000, None), (63536, None), (-2000, -1500), (-1500, -2000)],
    ids=["signed", "unsigned", "range", "swapped range"],
)
def test_padding_is_no_value_of_the_automatic_window_and_black(value, limit):
    ds = dicom(PADDED)
    ds["PixelPaddingValue"] = DataElement(0x00280120, "US" if value > 0 else "SS", value)
    if limit is not None:
        ds["PixelPaddingRangeLimit"] = DataElement(0x00280121, "SS", limit)
    tissue = PADDED != -2000
    low, high = np.percentile(PADDED[tissue], (1, 99))
    got = shown(ds)
    assert (got[~tissue] == 0).all()
    assert np.abs(got[tissue] - np.clip((PADDED[tissue] - low) / (high - low) * 255, 0, 255)).max() <= 0.5001


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_beyond_the_stored_bits_is_black(photometric):
    stored = np.where(PADDED == -2000, 0x8000, PADDED).astype(np.uint16)
    ds = dicom(stored, BitsStored=12, PhotometricInterpretation=photometric)
    ds["PixelPaddingValue"] = DataElement(0x00280120, "US", 0x8000)
    got = shown(ds)
    assert (got[stored == 0x8000] == 0).all()
    assert (got[stored == 500] > 100).all()


def test_image_of_padding_alone_is_refused():
    with pytest.raises(InvalidInput, match=r"all padding, Pixel Padding Value \(0028,0120\)"):
        shown(dicom(u16(7, 7, 7), PixelPaddingValue=7))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", " linear "])
@pytest.mark.parametrize(("center", "width"), [(0.5, 0.8), (0.5, 1), (0.4, 0.01)])
def test_narrow_window_of_small_values_is_a_grey_ramp(function, center, width):
    ds = dicom(RAMP, BitsStored=12, RescaleSlope=f"{1 / 4095:.10f}", RescaleIntercept=0, WindowCenter=center,
               WindowWidth=width, VOILUTFunction=function)  # fmt: skip
    assert_grey(ds, np.clip(((RAMP / 4095 - center) / width + 0.5) * 255, 0, 255), 0.6)


@pytest.mark.parametrize(
    "bad",
    [
        {"WindowCenter": "nan", "WindowWidth": "nan"},
        {"WindowCenter": "inf", "WindowWidth": 4096},
        {"WindowCenter": 2048, "WindowWidth": "inf"},
        {"WindowCenter": 2048, "WindowWidth": 0},
        {"WindowCenter": 2048, "WindowWidth": -4096},
        {"WindowCenter": None, "WindowWidth": 4096},
    ],
    ids=lambda bad: f"{bad['WindowCenter']}/{bad['WindowWidth']}",
)
def test_window_that_makes_no_sense_gives_way_to_the_automatic_one(bad):
    low, high = np.percentile(RAMP, (1, 99))
    assert_grey(ramp(**bad), np.clip((RAMP - low) / (high - low) * 255, 0, 255))


def test_second_window_is_taken_where_the_first_makes_no_sense():
    assert_grey(ramp(WindowCenter=["nan", 2048], WindowWidth=["nan", 4096]), EXPECTED)


@pytest.mark.parametrize(
    ("center", "width", "left"),
    [(9000, 100, "one grey level"), (-9000, 100, "one grey level"), (2048, 1, "black and white")],
)
def test_window_in_which_nothing_is_seen_is_named(center, width, left):
    with pytest.raises(InvalidInput) as refused:
        shown(ramp(WindowCenter=center, WindowWidth=width))
    assert str(refused.value) == (
        f"is a DICOM file whose Window Center (0028,1050) and Window Width (0028,1051) would leave nothing but {left} "
        "of the image; dicom_window 'percentile' or (low, high) shows it in another way"
    )
    assert len(np.unique(shown(ramp(WindowCenter=center, WindowWidth=width), dicom_window="percentile"))) > 200


def test_voi_table_in_which_nothing_is_seen_is_named():
    with pytest.raises(InvalidInput, match=r"VOI LUT Sequence \(0028,3010\) would leave nothing"):
        shown(dicom(RAMP, BitsStored=12, VOILUTSequence=table([0] * 4096)))


def test_sparse_image_without_window_is_no_threshold():
    stored = np.zeros((64, 64), np.uint16)
    stored[0, :20] = np.arange(20) * 100
    assert_grey(dicom(stored), stored / 1900 * 255)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),  # as dcmtk has it
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_presentation_shape_inverts_once(photometric, shape, inverted):
    ds = ramp(PhotometricInterpretation=photometric)
    if shape:
        ds.PresentationLUTShape = shape
    assert_grey(ds, 255 - EXPECTED if inverted else EXPECTED)


def test_float_pixels_that_are_not_finite_are_black_and_no_value():
    stored = np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)
    stored[0, :3] = np.nan, np.inf, -np.inf
    ds = dicom(stored)
    ds.add_new(0x7FE00008, "OF", stored.tobytes())
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    got = shown(ds)
    assert got[0, :3].tolist() == [0, 0, 0]
    assert len(np.unique(got)) > 200


def test_float_padding_is_no_value():
    stored = np.linspace(0, 1, 4096, dtype=np.float64).reshape(64, 64)
    stored[::2] = -1e30
    ds = dicom(stored)
    ds.add_new(0x7FE00009, "OD", stored.tobytes())
    ds.DoubleFloatPixelPaddingValue = -1e30
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    got = shown(ds)
    assert (got[::2] == 0).all()
    assert len(np.unique(got[1::2])) > 100


def test_frame_of_an_enhanced_object_has_its_own_window_and_no_other():
    """That of its functional group, not the top level's table; an empty element of the frame hides nothing."""
    ds = dicom(np.stack([RAMP, RAMP]), BitsStored=12, VOILUTSequence=table([0, 1], bits=8))
    shared = item(
        FrameVOILUTSequence=Sequence([item(WindowCenter=2048, WindowWidth=4096)]),
        PixelValueTransformationSequence=Sequence([item(RescaleSlope=1, RescaleIntercept=0)]),
    )
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    second = item(FrameVOILUTSequence=Sequence([item(WindowCenter=1000, WindowWidth=500)]))
    empty = item(PixelValueTransformationSequence=Sequence([item(RescaleSlope=None, RescaleIntercept=None)]))
    ds.PerFrameFunctionalGroupsSequence = Sequence([empty, second])
    assert_grey(ds, EXPECTED, frame=0)
    assert_grey(ds, window(RAMP, 1000, 500), frame=1)


def test_dicom_window_shows_percentiles_or_a_range_instead_of_the_files():
    low, high = np.percentile(RAMP, (1, 99))
    percentiles = np.clip((RAMP - low) / (high - low) * 255, 0, 255)
    ds = ramp(WindowCenter=100, WindowWidth=100)
    assert_grey(ds, percentiles, dicom_window="percentile")
    assert_grey(ds, np.clip((RAMP - 500.0) / 1000 * 255, 0, 255), dicom_window=(500, 1500))
    assert_grey(ds, np.clip((RAMP - 500.0) / 1000 * 255, 0, 255), dicom_window="file", window=(500, 1500))
    assert_grey(ds, percentiles, dicom_window="percentile", window=(500, 1500))


@pytest.mark.parametrize("bad", ["auto", (1,), (2, 1), (0, float("nan")), 7, None])
def test_dicom_window_that_is_none_is_refused(bad):
    with pytest.raises(InvalidInput, match=r"^dicom_window is "):
        shown(ramp(), dicom_window=bad)


def test_overlay_bits_above_the_stored_ones_are_not_seen():
    overlaid = RAMP | (np.arange(64)[:, None] % 2 << 12).astype(np.uint16)
    assert_grey(dicom(overlaid, **WINDOWED), EXPECTED)


@pytest.mark.parametrize("kind", ["jpeg2k", "jpegls", "lossless jpeg"])
def test_overlay_bits_of_a_compressed_frame_are_not_seen(kind):
    import imagecodecs

    overlaid = RAMP | (np.arange(64)[:, None] % 2 << 12).astype(np.uint16)
    frame, syntax = {
        "jpeg2k": (imagecodecs.jpeg2k_encode(overlaid, reversible=True, codecformat="j2k"), "1.2.840.10008.1.2.4.90"),
        "jpegls": (imagecodecs.jpegls_encode(overlaid), "1.2.840.10008.1.2.4.80"),
        "lossless jpeg": (
            imagecodecs.jpeg8_encode(overlaid, lossless=True, bitspersample=16),
            "1.2.840.10008.1.2.4.70",
        ),
    }[kind]
    assert_grey(compressed(ramp(), [frame], syntax), EXPECTED)


@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_lie_below_the_high_bit_with_their_sign(signed):
    values = RAMP.astype(np.int32) - (2048 if signed else 0)
    cells = (values << 4 & 0xFFFF).astype(np.uint16) | 5
    ds = dicom(cells, BitsStored=12, HighBit=15, WindowCenter=0 if signed else 2048, WindowWidth=4096)
    ds.PixelRepresentation = int(signed)
    assert_grey(ds, EXPECTED)


def test_sign_of_12_bits_in_a_cell_of_16_is_extended():
    values = RAMP.astype(np.int32) - 2048
    ds = dicom((values & 0xFFF).astype(np.uint16), BitsStored=12, WindowCenter=0, WindowWidth=4096)
    ds.PixelRepresentation = 1
    assert_grey(ds, EXPECTED)


@pytest.mark.parametrize("slope", ["1e308", "-1e298"])
def test_rescale_beyond_what_can_be_shown_is_named(slope):
    """Of most values it would make infinity, and black and white of the rest."""
    with pytest.raises(InvalidInput, match=r"Rescale Slope \(0028,1053\) makes values beyond 1e\+300"):
        shown(ramp(RescaleSlope=slope, RescaleIntercept=0))


def test_float_pixels_beyond_what_can_be_shown_are_named():
    ds = dicom(np.array([[-1.7e308, 0, 1.7e308]]))
    ds.add_new(0x7FE00009, "OD", ds.PixelData)
    del ds.PixelData, ds.BitsStored, ds.HighBit, ds.PixelRepresentation
    with pytest.raises(InvalidInput, match=r"Double Float Pixel Data \(7FE0,0009\) makes values beyond"):
        shown(ds)


def test_window_beyond_all_values_warns_of_nothing():
    with pytest.raises(InvalidInput, match="Window Center"):
        shown(ramp(WindowCenter="1e308", WindowWidth="1e308"))
