"""DICOM objects made with pydicom: drawn radiographs of chests, slices of a volume, a text without pixels."""

from io import BytesIO

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
)

from medimage_export.phantoms.chest_study import chest_study

ROOT_UID = "1.2.826.0.1.3680043.10.1"  # of the examples' own


def uid(*parts):
    """Of a study, series or instance by its numbers; the same numbers give the same UID."""
    return ".".join([ROOT_UID, *map(str, parts)])


def dicom_object(sop_class, study, series, number, **attributes):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, series)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid(study, series, number)
    ds.PatientID, ds.PatientName = "4711", "Doe^Jane"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260102", "101500", "1", ""
    ds.SeriesNumber, ds.InstanceNumber = series, number
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def with_pixels(ds, pixels):
    """uint8 or uint16 (H, W)."""
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    ds.WindowCenter, ds.WindowWidth = 2 ** (ds.BitsStored - 1), 2**ds.BitsStored
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return ds


def radiograph(study=1, number=1, *, seed=1, lateral=False, series=1, **attributes):
    """One view of a drawn chest, 64 x 64 pixels."""
    drawn = chest_study(seed, size=64)
    ds = dicom_object(ComputedRadiographyImageStorage, study, series, number, **{"Modality": "CR", **attributes})
    return with_pixels(ds, drawn.lateral if lateral else drawn.frontal)


def ct_slice(z, number, *, study=2, series=1, value=0, normal=(1, 0, 0, 0, 1, 0), **attributes):
    """A grey square at a height in millimetres."""
    ds = dicom_object(CTImageStorage, study, series, number, Modality="CT")
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10.0, -20.0, float(z)], list(map(float, normal))
    for name, given in attributes.items():
        setattr(ds, name, given)
    return with_pixels(ds, np.full((8, 10), value, dtype=np.uint16))


def text_object(study=1, number=1, *, series=9):
    return dicom_object(BasicTextSRStorage, study, series, number, Modality="SR")


def file_of(ds):
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write(folder, **objects):
    """Files by name, without suffix, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ds in objects.items():
        (folder / name).write_bytes(file_of(ds))
    return folder
