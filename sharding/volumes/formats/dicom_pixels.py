"""The stored values of DICOM files, by numpy or, if they are compressed, by GDCM."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian

from sharding.volumes.formats.dicom_headers import UNREADABLE_HEADER, quiet

PIXEL_FIELDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)
MULTI_FRAME_CAPTURE = "1.2.840.10008.5.1.4.1.1.7.3"
"""A kind of image whose stored values GDCM never rescales."""


def read_frames(path: Path) -> NDArray:
    """The stored values of a file, shape (frames, rows, columns), without rescaling.

    Raises:
        ValueError, RuntimeError: If they are damaged or cut short.
    """
    try:
        return _frames(path)
    except UNREADABLE_HEADER as error:
        raise ValueError(f"a field of {path.name} cannot be read") from error


def _frames(path: Path) -> NDArray:
    with quiet():
        image = dcmread(path, specific_tags=list(PIXEL_FIELDS))
        if "PixelData" not in image:
            raise ValueError("it has no PixelData")
        shape = (int(image.get("NumberOfFrames") or 1), int(image.Rows), int(image.Columns))
        if image.file_meta.TransferSyntaxUID.is_compressed:
            return _unpacked(image, shape)
        return _stored(image, shape)


def _stored(image: Dataset, shape: tuple[int, int, int]) -> NDArray:
    """Values that are stored as they are; bits above the highest one are not part of them."""
    bits, signed = int(image.BitsAllocated), int(image.PixelRepresentation)
    dtype = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    count = math.prod(shape)
    big = image.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    held = len(image.PixelData) // dtype.itemsize
    if held < count:
        raise ValueError(f"it holds {held} of {count} voxels")
    order = dtype.newbyteorder(">" if big else "<")
    values = np.frombuffer(image.PixelData, order, count).astype(dtype)
    unused = bits - int(image.BitsStored)
    return ((values << unused) >> unused).reshape(shape)


def _unpacked(image: Dataset, shape: tuple[int, int, int]) -> NDArray:
    """Values that GDCM unpacks, from a file with the pixels and nothing else of the image."""
    import SimpleITK as sitk  # noqa: N813

    bare = Dataset()
    for name in PIXEL_FIELDS:
        if name in image:
            bare[name] = image[name]
    bare.NumberOfFrames = shape[0]
    bare.SOPClassUID = MULTI_FRAME_CAPTURE
    bare.SOPInstanceUID = "2.25.1"
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pixels.dcm")
        bare.save_as(path, enforce_file_format=True)
        values = sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO="GDCMImageIO"))
    if values.size != math.prod(shape):
        raise ValueError(f"it unpacks to {values.size} of {math.prod(shape)} voxels")
    return values.reshape(shape)
