"""DICOM series of a scan, made by pydicom, with recognisable text in every field of a patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom import Sequence as Items
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

PLANTED = "QUOKKA"
"""Stands in every free field; no output may hold it."""
PLANTED_DATE = "19330317"
PLANTED_UID = "1.2.840.99999.77341"
TEXT = {
    "PatientName": f"{PLANTED}^JANE",
    "PatientID": f"{PLANTED}-ID",
    "PatientBirthDate": PLANTED_DATE,
    "PatientAddress": f"{PLANTED} street",
    "OtherPatientIDs": f"{PLANTED}-OTHER",
    "PatientComments": f"{PLANTED} comment",
    "EthnicGroup": PLANTED,
    "StudyDate": PLANTED_DATE,
    "SeriesDate": PLANTED_DATE,
    "AcquisitionDate": PLANTED_DATE,
    "ContentDate": PLANTED_DATE,
    "StudyID": PLANTED,
    "AccessionNumber": f"{PLANTED}-ACC",
    "StudyDescription": f"{PLANTED} study",
    "SeriesDescription": f"{PLANTED} series",
    "ProtocolName": f"{PLANTED} protocol",
    "ReferringPhysicianName": f"{PLANTED}^DOC",
    "OperatorsName": f"{PLANTED}^OPERATOR",
    "InstitutionName": f"{PLANTED} hospital",
    "InstitutionAddress": f"{PLANTED} lane",
    "StationName": PLANTED,
    "Manufacturer": f"{PLANTED} works",
    "DeviceSerialNumber": f"{PLANTED}-SN",
    "ImageComments": f"{PLANTED} image",
}
"""Field -> text; every one is in every file."""


def header(number: int, series: int) -> Dataset:
    """A header with planted text, also in a sequence and in private fields."""
    image = Dataset()
    for name, text in TEXT.items():
        setattr(image, name, text)
    image.PatientSex, image.PatientAge = "O", "093Y"
    item = Dataset()
    item.ReferencedSOPInstanceUID = f"{PLANTED_UID}.5"
    item.PatientName = f"{PLANTED}^SEQUENCE"
    image.ReferencedImageSequence = Items([item])
    private = image.private_block(0x2001, f"{PLANTED} PRIVATE", create=True)
    private.add_new(1, "LO", f"{PLANTED} private")
    image.Modality, image.SeriesNumber = "MR", series
    image.StudyInstanceUID = UID(f"{PLANTED_UID}.1")
    image.FrameOfReferenceUID = UID(f"{PLANTED_UID}.2")
    image.SeriesInstanceUID = UID(f"{PLANTED_UID}.3.{series}")
    image.SOPInstanceUID = UID(f"{PLANTED_UID}.4.{series}.{number + 1}")
    image.InstanceNumber = number + 1
    image.EchoTime = 20
    return image


def pixels(image: Dataset, values: NDArray, syntax: UID) -> None:
    """Store values, shape (frames, rows, columns) or (rows, columns)."""
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = values.shape[-2:]
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 1 if values.dtype.kind == "i" else 0
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    image.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    image["PixelData"].VR = "OW"


def place(image: Dataset, affine: NDArray, number: int) -> tuple[list[float], list[float]]:
    """Orientation and position of a slice in DICOM's world, from a RAS affine."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    axes = lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)
    orientation = [round(float(value), 9) for value in axes.T.ravel()]
    position = [round(float(value), 8) for value in (lps @ [0, 0, number, 1])[:3]]
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    image.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    image.ImageOrientationPatient, image.ImagePositionPatient = orientation, position
    return orientation, position


def write_slices(
    folder: Path,
    data: NDArray,
    affine: NDArray,
    *,
    series: int = 1,
    syntax: UID = ExplicitVRLittleEndian,
    slopes: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """A series of MR images, one a file, named in an order that is not that of their places."""
    folder.mkdir(parents=True, exist_ok=True)
    count = data.shape[2]
    names = names or [f"IM{(number * 7 + 3) % count:04d}" for number in range(count)]
    files = []
    for number in range(count):
        image = header(number, series)
        image.SOPClassUID = MRImageStorage
        place(image, affine, number)
        if slopes:
            image.RescaleSlope, image.RescaleIntercept = slopes[number], 5
        compressed = syntax == RLELossless
        pixels(image, data[:, :, number].T, ExplicitVRLittleEndian if compressed else syntax)
        if compressed:
            image.compress(RLELossless)
        path = folder / f"{names[number]}-{series}"
        image.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def write_enhanced(path: Path, data: NDArray, affine: NDArray, slope: float = 1.0) -> Path:
    """One enhanced file of many frames, which are not in the order of their places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = header(0, 1)
    image.SOPClassUID = EnhancedMRImageStorage
    order = np.random.default_rng(1).permutation(data.shape[2])
    image.NumberOfFrames = len(order)
    frames = []
    for number in order:
        plane, where, measures, frame = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImageOrientationPatient, where.ImagePositionPatient = place(image, affine, number)
        measures.PixelSpacing = image.PixelSpacing
        frame.PlanePositionSequence = Items([where])
        frame.PlaneOrientationSequence = Items([plane])
        scale = Dataset()
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = slope, 0, "US"
        frame.PixelValueTransformationSequence = Items([scale])
        frames.append(frame)
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(image, name)
    image.SharedFunctionalGroupsSequence = Items([shared])
    image.PerFrameFunctionalGroupsSequence = Items(frames)
    pixels(image, np.stack([data[:, :, number].T for number in order]), ExplicitVRLittleEndian)
    image.save_as(path, enforce_file_format=True)
    return path
