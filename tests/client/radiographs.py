"""DICOM files of a drawn patient's radiographs."""

from io import BytesIO

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
)

STUDY = "1.2.826.0.1.3680043.8.498.1"
MULTI_FRAME = MultiFrameGrayscaleByteSecondaryCaptureImageStorage


def radiograph(size=(640, 800), *, number=1, frames=None, dropped=(), **attributes):
    """A DICOM file of one patient's study: a grey ramp, of (width, height)."""
    width, height = size
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation if frames is None else MULTI_FRAME
    ds.SOPInstanceUID = f"{STUDY}.9.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = STUDY, f"{STUDY}.8"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Müller^Zoë", "P-42", "19600229", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260102", "101112.5", "7", "A-9"
    ds.ReferringPhysicianName, ds.PatientAge = "Novak^Jan", "065Y"
    ds.Modality, ds.PatientOrientation = "DX", ["L", "F"]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = height, width, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.WindowCenter, ds.WindowWidth = 128, 256
    if frames is not None:
        ds.NumberOfFrames = frames
    ramp = np.linspace(0, 120, width).astype(np.uint8)
    ds.PixelData = np.tile(ramp, (frames or 1, height, 1)).tobytes()
    ds["PixelData"].VR = "OB"
    for name, value in attributes.items():
        setattr(ds, name, value)
    for name in dropped:
        delattr(ds, name)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()
