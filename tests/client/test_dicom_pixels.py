"""Which objects are read, and their Pixel Data in every compression, to the values that were compressed."""

import re
import subprocess
import sys
import zlib
from io import BytesIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.pixels import compress
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
    RTStructureSetStorage,
    SegmentationStorage,
)

from medimage_client import InvalidInput, MissingExtra, read_studies
from medimage_client.images.dicom import is_dicom
from medimage_client.images.encoding import encode_image
from tests.client.dicom_files import RAMP, assert_grey, big_endian, compressed, dicom, file_of, item, shown, u16, window
from tests.paths import ROOT

WINDOWED = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
EXPECTED = window(RAMP, 2048, 4096)
PREAMBLE = 132


def j2k(array, **options):
    return imagecodecs.jpeg2k_encode(array, reversible=True, codecformat="j2k", **options)


LOSSLESS = {
    "1.2.840.10008.1.2.4.57": lambda array: imagecodecs.jpeg8_encode(
        array, lossless=True, predictor=6, bitspersample=12
    ),
    "1.2.840.10008.1.2.4.70": lambda array: imagecodecs.jpeg8_encode(array, lossless=True, bitspersample=12),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.81": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": j2k,
    "1.2.840.10008.1.2.4.91": j2k,
    "1.2.840.10008.1.2.4.201": lambda array: imagecodecs.htj2k_encode(array, reversible=True),
    "1.2.840.10008.1.2.4.202": lambda array: imagecodecs.htj2k_encode(array, reversible=True),
    "1.2.840.10008.1.2.4.203": lambda array: imagecodecs.htj2k_encode(array, reversible=True),
}


def decoded(file):
    return np.asarray(Image.open(BytesIO(file)))


def ramp(**attributes):
    return dicom(RAMP, **WINDOWED | attributes)


def without_preamble(ds, syntax):
    ds.file_meta.TransferSyntaxUID = syntax
    file = file_of(big_endian(ds) if syntax == ExplicitVRBigEndian else ds)
    return file[PREAMBLE:]


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_frame_is_as_it_was(syntax):
    assert_grey(compressed(ramp(), [LOSSLESS[syntax](RAMP)], syntax), EXPECTED)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201"])
def test_signed_jpeg_2000_keeps_its_sign(syntax):
    signed = RAMP.astype(np.int16) - 2048
    ds = dicom(signed, BitsStored=16, WindowCenter=0, WindowWidth=4096)
    assert_grey(compressed(ds, [LOSSLESS[syntax](signed)], syntax), EXPECTED)


def test_signed_values_in_an_unsigned_codec_get_their_sign():
    """JPEG-LS knows no sign: 12 bits of two's complement."""
    bits = ((RAMP.astype(np.int32) - 2048) & 0xFFF).astype(np.uint16)
    ds = dicom(bits, BitsStored=12, WindowCenter=0, WindowWidth=4096)
    ds.PixelRepresentation = 1
    assert_grey(compressed(ds, [imagecodecs.jpegls_encode(bits)], "1.2.840.10008.1.2.4.80"), EXPECTED)


def test_12_bit_jpeg_is_read():
    frame = imagecodecs.jpeg8_encode(RAMP, level=100, bitspersample=12)
    assert frame[2:4] != b"\xff\xc3"  # not lossless
    assert_grey(compressed(ramp(), [frame], "1.2.840.10008.1.2.4.51"), EXPECTED, 1)


def test_values_that_a_lossy_codec_lifts_above_the_stored_bits_do_not_turn_black():
    stored = np.full((64, 64), 1030, np.uint16)  # of 10 bits, 1023 at most
    stored[0] = np.arange(64) * 16
    ds = dicom(stored, BitsStored=10, WindowCenter=512, WindowWidth=1024)
    frame = imagecodecs.jpeg8_encode(stored, level=100, bitspersample=12)
    assert shown(compressed(ds, [frame], "1.2.840.10008.1.2.4.51"))[32].min() == 255


@pytest.mark.parametrize("level", [8, 100])
def test_8_bit_jpeg_in_extended_and_baseline(level):
    grey = (RAMP >> 4).astype(np.uint8)
    for syntax in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"):
        ds = dicom(grey, WindowCenter=128, WindowWidth=256)
        assert_grey(compressed(ds, [imagecodecs.jpeg8_encode(grey, level=100)], syntax), grey, 2)


def test_rle_and_deflate_and_deflated_frames_and_big_endian_and_implicit():
    rle = ramp()
    rle.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    compress(rle, RLELossless, encoding_plugin="pydicom")
    assert_grey(rle, EXPECTED)
    for syntax in (DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds = ramp()
        ds.file_meta.TransferSyntaxUID = syntax
        assert_grey(ds, EXPECTED)
    assert_grey(big_endian(ramp()), EXPECTED)


def test_deflated_frame_is_read():
    deflate = zlib.compressobj(wbits=-15)
    frame = deflate.compress(RAMP.tobytes()) + deflate.flush()
    file = file_of(compressed(ramp(), [frame + b"\0" * (len(frame) % 2)], "1.2.840.10008.1.2.4.50"))
    file = file.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.8.1\0")  # which pydicom 3.0 does not know
    assert np.abs(decoded(encode_image(file)) - EXPECTED).max() <= 0.5001


def test_every_frame_of_a_compressed_object_is_itself():
    frames = [j2k(RAMP), j2k(RAMP[::-1].copy())]
    ds = compressed(dicom(np.stack([RAMP, RAMP]), **WINDOWED), frames, "1.2.840.10008.1.2.4.90")
    assert_grey(ds, EXPECTED, frame=0)
    assert_grey(ds, EXPECTED[::-1], frame=1)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_damaged_frame_is_refused_or_shown_and_nothing_else(syntax):
    """Also by the size that its own header says, of which a decoder would make minutes of garbage."""
    rng = np.random.default_rng(0)
    frame = bytes(LOSSLESS[syntax](RAMP))
    for _ in range(25):
        changed = bytearray(frame)
        for position in rng.integers(0, min(len(frame), 200), 3):
            changed[position] = rng.integers(0, 256)
        end = rng.integers(1, len(frame)) if rng.random() < 0.3 else len(frame)
        try:
            shown(compressed(ramp(), [bytes(changed[:end])], syntax))
        except InvalidInput as error:
            assert "Pixel Data (7FE0,0010)" in str(error) or "(0028,0" in str(error)


def test_frame_of_another_size_names_the_elements():
    with pytest.raises(
        InvalidInput, match=r"frame has 32 x 64 pixels.*expected 64 x 64 of 1, as Columns \(0028,0011\)"
    ):
        shown(compressed(ramp(), [j2k(RAMP[:, :32].copy())], "1.2.840.10008.1.2.4.90"))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.94"])
def test_compression_that_is_not_read_is_named(syntax):
    name = dcmread(BytesIO(file_of(compressed(ramp(), [b"1234"], syntax)))).file_meta.TransferSyntaxUID.name
    with pytest.raises(InvalidInput, match=re.escape(f"compressed as {name}, Transfer Syntax UID (0002,0010)")):
        shown(compressed(ramp(), [b"1234"], syntax))


def test_missing_imagecodecs_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingExtra) as missing:
        shown(compressed(ramp(), [j2k(RAMP)], "1.2.840.10008.1.2.4.90"))
    assert str(missing.value) == "reading compressed DICOM needs imagecodecs: pip install 'medimage-triton[dicom]'"


@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian, ExplicitVRBigEndian],
    ids=["explicit", "implicit", "big-endian"],
)
@pytest.mark.parametrize("with_meta", [True, False], ids=["meta", "bare"])
def test_file_without_preamble_is_read(syntax, with_meta, tmp_path):
    file = without_preamble(ramp(), syntax)
    if not with_meta:  # from group 0008 on: past the length of group 0002, its value, and what it counts
        file = file[12 + int.from_bytes(file[8:12], "little") :]
    assert is_dicom(file[:PREAMBLE])
    assert np.abs(decoded(encode_image(file)) - EXPECTED).max() <= 0.5001


@pytest.mark.parametrize(
    "head",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"II*\x00",
        b"MM\x00*",
        b"GIF89a",
        b"BM6\x00",
        b"RIFF",
        b"\0\0\0\x0cjP",
    ],
)
def test_other_images_are_not_taken_for_dicom(head):
    assert not is_dicom(head + bytes(200))


@pytest.mark.parametrize(
    ("sop_class", "name"),
    [
        (BasicTextSRStorage, "Basic Text SR Storage"),
        (GrayscaleSoftcopyPresentationStateStorage, "Grayscale Softcopy Presentation State Storage"),
        (RTStructureSetStorage, "RT Structure Set Storage"),
        (EncapsulatedPDFStorage, "Encapsulated PDF Storage"),
        (MediaStorageDirectoryStorage, "a DICOMDIR"),
        (CTImageStorage, "CT Image Storage"),
    ],
)
def test_object_without_pixels_is_named_for_what_it_is(sop_class, name):
    ds = ramp()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
    del ds.PixelData
    with pytest.raises(InvalidInput, match=rf"{name}, without Pixel Data \(7FE0,0010\)"):
        shown(ds)


@pytest.mark.parametrize("bits", [1, 8])
def test_segmentation_is_refused_as_a_mask(bits):
    ds = dicom(np.zeros((8, 8), np.uint8))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    ds.BitsAllocated = ds.BitsStored = bits
    with pytest.raises(InvalidInput, match="Segmentation Storage, whose pixels are a mask"):
        shown(ds)


def test_image_of_one_bit_that_is_no_segmentation_is_shown():
    bits = np.arange(64).reshape(8, 8) % 3 == 0
    ds = dicom(np.zeros((8, 8), np.uint8))
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    ds.PixelData = np.packbits(bits, bitorder="little").tobytes()
    assert shown(ds).tolist() == (bits * 255).tolist()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("Rows", 0, r"Rows \(0028,0010\) is 0; expected a whole number of at least 1"),
        ("BitsAllocated", 12, r"Bits Allocated \(0028,0100\) is 12"),
        ("BitsStored", 17, r"Bits Stored \(0028,0101\) is 17; expected at most 16"),
        ("HighBit", 3, r"High Bit \(0028,0102\) is 3; expected 11 to 15"),
        ("PixelRepresentation", 2, r"Pixel Representation \(0028,0103\) is 2"),
        ("PhotometricInterpretation", "CMYK", r"Photometric Interpretation \(0028,0004\) is missing or unknown"),
        ("PhotometricInterpretation", "RGB", r"Photometric Interpretation \(0028,0004\) is RGB, with 1"),
        ("SamplesPerPixel", 3, r"Photometric Interpretation \(0028,0004\) is MONOCHROME2, with 3"),
        ("PixelData", b"", r"Pixel Data \(7FE0,0010\) is empty"),
        ("PixelData", b"1234", r"Pixel Data \(7FE0,0010\) has 4 bytes; expected 8192"),
    ],
)
def test_element_that_makes_no_sense_is_named(name, value, message):
    ds = ramp()
    setattr(ds, name, value)
    with pytest.raises(InvalidInput, match=message):
        shown(ds)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_value_of_an_unknown_kind_is_not_shown():
    ds = ramp()
    ds.PhotometricInterpretation = "DOE^JANE"
    with pytest.raises(InvalidInput) as refused:
        shown(ds)
    assert "DOE" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.parametrize("name", ["SOPClassUID", "TransferSyntaxUID"])
def test_uid_that_is_none_is_not_shown(name):
    """It may be the rest of a damaged file."""
    ds = compressed(ramp(), [b"1234"], "1.2.840.10008.1.2.4.100")
    if name == "SOPClassUID":
        del ds.PixelData
        ds.SOPClassUID = "1.2.DOE^JANE"
        file = file_of(ds)
    else:
        file = file_of(ds).replace(b"1.2.840.10008.1.2.4.100", b"1.2.DOE^JANE.8.1.2.4.100"[:23])
    with pytest.raises(InvalidInput, match="unknown") as refused:
        encode_image(file)
    assert "DOE" not in str(refused.value)


def test_pydicom_logs_and_warns_of_nothing():
    """Its words quote values: here of a window, as easily of a name."""
    code = """
import sys
from medimage_client.images.encoding import encode_image
encode_image(sys.stdin.buffer.read())
"""
    ds = ramp(PatientName="Doe^Jane")
    file = file_of(ds).replace(b"2048.0", b"nan   ")
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], input=file, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("case", ["D1", "D2", "D4", "D4c", "D7", "D9j2k", "D11b", "D14", "D22b", "D33", "D0", "D3"])
def test_kinds_of_faults_that_people_reported(case):
    path = ROOT.parent / "shared" / "cases" / "dicom" / f"{case}.dcm"
    if not path.exists():
        pytest.skip("the small inputs are not beside this checkout")
    got = decoded(encode_image(path))
    assert got.ndim == 2
    assert len(np.unique(got)) > 200


def test_pixels_that_are_white_space_as_text_are_no_empty_element():
    ds = dicom(np.full((4, 4), 0x20, np.uint8), WindowCenter=128, WindowWidth=256)
    assert shown(ds).tolist() == np.full((4, 4), 0x20).tolist()


def test_sequence_of_frames_without_groups_is_no_fault():
    ds = ramp()
    ds.SharedFunctionalGroupsSequence = Sequence([item()])
    ds.PerFrameFunctionalGroupsSequence = Sequence([])
    assert_grey(ds, EXPECTED)
    assert shown(dicom(u16(7, 7, 7))).tolist() == [[0, 0, 0]]


def test_few_bytes_that_stand_for_a_huge_frame_are_not_decoded():
    ds = compressed(dicom(RAMP), [imagecodecs.jpegls_encode(np.zeros((8, 8), np.uint16))], "1.2.840.10008.1.2.4.80")
    ds.Rows = ds.Columns = 20_000
    with pytest.raises(InvalidInput) as refused:
        encode_image(file_of(ds))
    assert str(refused.value) == (
        "is a DICOM file of 20000 x 20000 pixels, as Columns (0028,0011) and Rows (0028,0010) say; expected at most "
        "178956970 in all"
    )


def test_deflated_file_is_not_inflated_beyond_its_bound(monkeypatch, tmp_path):
    ds = dicom(RAMP)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = file_of(ds)
    assert np.asarray(Image.open(BytesIO(encode_image(file)))).shape == (64, 64)
    monkeypatch.setattr("medimage_client.images.dicom.MAX_OBJECT_BYTES", 2**12)
    with pytest.raises(InvalidInput, match=r"is a deflated DICOM file of more than 0 MiB"):
        encode_image(file)
    (tmp_path / "large").write_bytes(file)
    assert read_studies(tmp_path).left_out == (f"{tmp_path}/large: is a deflated DICOM file of more than 0 MiB",)
