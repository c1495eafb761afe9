"""DICOM files made with pydicom, and the pixels that are sent for them."""

from io import BytesIO

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medimage_client.images.encoding import encode_image

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def dicom(stored, **attributes):
    """A dataset of stored values (H, W), (frames, H, W), or (H, W, 3) if SamplesPerPixel=3."""
    stored = np.asarray(stored)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    samples = attributes.pop("SamplesPerPixel", 1)
    high_bit = attributes.pop("HighBit", None)
    frames = stored if samples == 3 or stored.ndim == 3 else stored[None]
    if stored.ndim == 3 and samples == 1:
        ds.NumberOfFrames = len(stored)
    ds.Rows, ds.Columns = stored.shape[:2] if samples == 3 else frames.shape[1:]
    ds.SamplesPerPixel = samples
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored = ds.BitsAllocated
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds.HighBit = ds.BitsStored - 1 if high_bit is None else high_bit
    data = stored.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    return ds


def item(**attributes):
    ds = Dataset()
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def file_of(ds):
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def shown(ds, **options):
    """The pixels that are sent for a dataset."""
    return np.asarray(Image.open(BytesIO(encode_image(file_of(ds), **options))))


def u16(*values):
    return np.array([values], dtype=np.uint16)


def compressed(ds, frames, syntax):
    """The dataset with these frames as its pixels."""
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def big_endian(ds):
    """The dataset with its words, of pixels and of tables, the other way round."""
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian

    def swap(dataset, element):
        if "OW" in element.VR and len(element.value) % 2 == 0:
            element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()

    ds.walk(swap)
    return ds


def window(values, center, width):
    """The linear function of PS3.3 C.11.2.1.2.1, to 0 … 255."""
    return np.clip(((np.asarray(values, float) - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def assert_grey(ds, expected, tolerance=0.5001, **options):
    assert np.abs(shown(ds, **options).astype(float) - expected).max() <= tolerance
