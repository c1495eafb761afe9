"""Colour of DICOM files: RGB and YBR of any depth and layout, palettes of any kind."""

import imagecodecs
import numpy as np
import pytest

from medimage_client import InvalidInput
from tests.client.dicom_files import RAMP, big_endian, compressed, dicom, shown

GREY = (RAMP >> 4).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY.T], axis=-1)
KR, KG, KB = 0.299, 0.587, 0.114


def to_ybr(rgb, white=255):
    """PS3.3 C.7.6.3.1.2, by the definition of ITU-R BT.601."""
    red, green, blue = np.moveaxis(rgb.astype(float), -1, 0)
    luma = KR * red + KG * green + KB * blue
    half = (white + 1) // 2
    ybr = np.stack([luma, (blue - luma) / (2 - 2 * KB) + half, (red - luma) / (2 - 2 * KR) + half], axis=-1)
    return np.clip(np.rint(ybr), 0, white)


def colour(stored, photometric, **attributes):
    return dicom(stored, SamplesPerPixel=3, PhotometricInterpretation=photometric, **attributes)


def assert_colour(ds, expected, tolerance=1, **options):
    got = shown(ds, **options).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance


def planar(ds, stored):
    ds.PlanarConfiguration = 1
    ds.PixelData = np.moveaxis(stored, -1, 0).tobytes()
    return ds


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("is_planar", [False, True], ids=["by pixel", "by plane"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_of_any_depth_in_either_layout(bits, is_planar, photometric):
    dtype = np.uint8 if bits == 8 else np.uint16
    white = 2**bits - 1
    deep = np.rint(RGB / 255 * white)
    stored = (to_ybr(deep, white) if photometric == "YBR_FULL" else deep).astype(dtype)
    ds = colour(stored, photometric, BitsStored=bits)
    # 8 bits of YBR hold fewer colours than 8 bits of RGB
    assert_colour(planar(ds, stored) if is_planar else ds, RGB, 2)


def test_deep_colour_in_big_endian():
    stored = (RGB.astype(np.uint16)) * 257
    assert_colour(big_endian(colour(stored, "RGB")), RGB)


def test_8_bit_colour_in_16_bits_is_not_black():
    assert_colour(colour(RGB.astype(np.uint16), "RGB"), RGB)


def test_ybr_of_halved_chroma_is_read():
    pairs = np.repeat(RGB[:, ::2], 2, axis=1)  # so that nothing is lost
    ybr = to_ybr(pairs).astype(np.uint8)
    ds = colour(ybr, "YBR_FULL_422")
    luma, chroma = ybr[..., 0].reshape(64, 32, 2), ybr[:, ::2, 1:]
    ds.PixelData = np.concatenate([luma, chroma], axis=-1).tobytes()
    assert_colour(ds, pairs, 2)


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_422", "YBR_PARTIAL_420"])
def test_ybr_of_partial_range_in_jpeg_is_read(photometric):
    ybr = to_ybr(RGB)
    partial = np.rint(ybr * (219 / 255, 224 / 255, 224 / 255) + (16, 16, 16)).astype(np.uint8)
    frame = imagecodecs.jpegls_encode(partial)
    assert_colour(compressed(colour(partial, photometric), [frame], "1.2.840.10008.1.2.4.80"), RGB, 3)


@pytest.mark.parametrize(("photometric", "inside"), [("YBR_FULL", "YCBCR"), ("YBR_FULL_422", "YCBCR"), ("RGB", "RGB")])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"])
def test_jpeg_is_in_the_colours_that_the_header_says(photometric, inside, syntax):
    smooth = np.stack([GREY, 255 - GREY, np.full_like(GREY, 90)], axis=-1)
    if syntax.endswith("70"):
        samples = smooth if inside == "RGB" else to_ybr(smooth).astype(np.uint8)
        frame = imagecodecs.jpeg8_encode(samples, lossless=True, colorspace="RGB", outcolorspace="RGB")
        frame = without_adobe(frame)
    else:
        frame = imagecodecs.jpeg8_encode(smooth, level=100, colorspace="RGB", outcolorspace=inside, subsampling="444")
    assert_colour(compressed(colour(smooth, photometric), [frame], syntax), smooth, 3)


def without_adobe(frame):
    start = frame.index(b"\xff\xee")
    return frame[:start] + frame[start + 2 + int.from_bytes(frame[start + 2 : start + 4], "big") :]


def test_what_adobes_marker_says_of_a_jpeg_goes_before_the_header():
    frame = imagecodecs.jpeg8_encode(RGB, level=100, colorspace="RGB", outcolorspace="RGB")
    assert b"Adobe" in frame
    assert_colour(compressed(colour(RGB, "YBR_FULL_422"), [frame], "1.2.840.10008.1.2.4.50"), RGB, 3)


@pytest.mark.parametrize("photometric", ["YBR_RCT", "RGB"])
def test_colour_transform_of_jpeg_2000_is_undone_once(photometric):
    frame = imagecodecs.jpeg2k_encode(RGB, reversible=True, codecformat="j2k")
    assert_colour(compressed(colour(RGB, photometric), [frame], "1.2.840.10008.1.2.4.90"), RGB, 0)


def test_ybr_without_transform_in_jpeg_2000_is_converted():
    ybr = to_ybr(RGB).astype(np.uint8)
    frame = imagecodecs.jpeg2k_encode(ybr, reversible=True, codecformat="j2k", mct=False)
    assert_colour(compressed(colour(ybr, "YBR_FULL"), [frame], "1.2.840.10008.1.2.4.90"), RGB, 2)


def palette(ds, entries, *, first=0, bits=16, packed=False):
    """Entries (n, 3)."""
    for channel, name in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [len(entries) & 0xFFFF, first, bits])
        data = entries[:, channel].astype(np.uint8 if packed else np.uint16).tobytes()
        setattr(ds, f"{name}PaletteColorLookupTableData", data + b"\0" * (len(data) % 2))
    return ds


COLOURS = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256)[::-1] // 2], axis=-1)


@pytest.mark.parametrize("swap", [False, True], ids=["little", "big"])
@pytest.mark.parametrize(
    ("scale", "bits", "packed"),
    [(257, 16, False), (256, 16, False), (1, 16, False), (1, 8, False), (1, 8, True), (1, 16, True)],
    ids=["16", "high byte", "8 said to be 16", "8 in words", "8 packed", "packed said to be 16"],
)
def test_palette_of_either_depth_and_byte_order(scale, bits, packed, swap):
    ds = palette(dicom(GREY, PhotometricInterpretation="PALETTE COLOR"), COLOURS * scale, bits=bits, packed=packed)
    assert_colour(big_endian(ds) if swap else ds, COLOURS[GREY], 0)


def test_palette_of_16_bit_indices_begins_where_it_says_and_ends():
    stored = (RAMP % 400).astype(np.uint16)
    ds = palette(dicom(stored, PhotometricInterpretation="PALETTE COLOR"), COLOURS * 257, first=100)
    assert_colour(ds, COLOURS[(stored.astype(int) - 100).clip(0, 255)], 0)


def test_palette_of_signed_indices_begins_below_zero():
    stored = GREY.astype(np.int16) - 128
    ds = palette(dicom(stored, PhotometricInterpretation="PALETTE COLOR"), COLOURS * 257, first=-128)
    assert_colour(ds, COLOURS[GREY], 0)


def test_segmented_palette_is_expanded():
    """PS3.3 C.7.9.2: a discrete segment of one entry, then a linear one."""
    ds = dicom(GREY, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(
            ds,
            f"Segmented{name}PaletteColorLookupTableData",
            np.array([0, 1, 0, 1, 255, 255 * 257], np.uint16).tobytes(),
        )
    assert_colour(ds, np.repeat(GREY[..., None], 3, axis=-1), 1)


@pytest.mark.parametrize("missing", ["RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"])
def test_missing_part_of_a_palette_is_named(missing):
    ds = palette(dicom(GREY, PhotometricInterpretation="PALETTE COLOR"), COLOURS * 257)
    delattr(ds, missing)
    with pytest.raises(
        InvalidInput, match=r"without (Red|Green) Palette Color Lookup Table (Descriptor|Data) \(0028,1"
    ):
        shown(ds)


def test_supplemental_palette_colours_some_values_of_a_grey_image():
    stored = RAMP.clip(0, 1023 + 256)
    ds = dicom(stored, BitsStored=12, WindowCenter=512, WindowWidth=1024, PixelPresentation="COLOR")
    palette(ds, COLOURS * 257, first=1024)
    got = shown(ds).astype(int)
    grey = stored < 1024
    assert np.abs(got[grey] - np.repeat((stored[grey] / 1023 * 255)[:, None], 3, axis=-1)).max() <= 0.5001
    assert np.array_equal(got[~grey], COLOURS[stored[~grey] - 1024])


def test_percentiles_leave_colour_as_it_is():
    assert_colour(colour(RGB, "RGB"), RGB, 0, dicom_window="percentile")


@pytest.mark.parametrize(
    "segments",
    [
        [0, 1, 0, *[1, 65535, 65535] * 20_000],  # of which pydicom would make a list of 1.3 billion
        [0, 1, 0, *[2, 65535, 0, 0] * 1000],  # which repeat themselves
        [0, 1, 0, *[0, 0] * 40, *[2, 65535, 3, 0] * 40],  # which repeat what is of no length
    ],
    ids=["linear", "indirect", "empty"],
)
def test_few_segments_that_stand_for_a_huge_palette_are_not_expanded(segments):
    ds = dicom(GREY, PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"Segmented{name}PaletteColorLookupTableData", np.uint16(segments).tobytes())
    with pytest.raises(InvalidInput, match=r"Segmented Red Palette Color Lookup Table Data \(0028,1221\) is damaged"):
        shown(ds)
