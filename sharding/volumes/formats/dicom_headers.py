"""What the headers of DICOM files say of each slice: its series, its place and its intensities.

Only the fields that are needed are read. None of them names a patient.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from sharding.io.errors import DataError

UNREADABLE_HEADER = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    struct.error,
)
"""What pydicom raises for a damaged file. Its words may quote the header: only its kind is said."""
FIELDS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "EchoTime",
    "TemporalPositionIdentifier",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: an image, or a frame of one.

    Attributes:
        path: Its file.
        frame: Its number within the file, from 0.
        series: SeriesInstanceUID.
        number: SeriesNumber and modality, for messages.
        size: Columns and rows.
        spacing_mm: From one column to the next, and from one row to the next.
        position: Of the first voxel's centre in DICOM's world (left, posterior, superior).
        columns: Direction in which the columns follow each other, a unit vector.
        rows: Direction in which the rows follow each other, a unit vector.
        slope: Intensity of a stored 1, less that of a 0.
        intercept: Intensity of a stored 0.
        dtype: Type of the stored voxels.
        packed: Whether the voxels are compressed.
        contrast: Echo time and temporal position, for messages.
    """

    path: Path
    frame: int
    series: str
    number: str
    size: tuple[int, int]
    spacing_mm: tuple[float, float]
    position: NDArray[np.float64]
    columns: NDArray[np.float64]
    rows: NDArray[np.float64]
    slope: float
    intercept: float
    dtype: np.dtype
    packed: bool
    contrast: str

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the slice."""
        return np.cross(self.columns, self.rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings of values that the standard does not allow: they quote them."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def slices_of(path: Path) -> list[Slice]:
    """The slices of one file; none if it holds no image.

    Raises:
        DataError: If the header is damaged, the file is coloured, or a field that places a slice
            is missing.
    """
    with quiet():
        header = _header(path)
        try:
            if "Rows" in header and "Columns" in header:
                return _slices(path, header)
            kind = str(header.get("SOPClassUID", ""))
        except DataError:
            raise
        except (*UNREADABLE_HEADER, IndexError) as error:
            rule = f"a field of the DICOM header cannot be read ({type(error).__name__})"
            raise DataError(path, rule, "Export the series again") from error
        name = UID(kind).name
    if name == kind or name.endswith("Image Storage"):
        # A report or an index holds no image; of an unknown kind that cannot be said.
        rule = (
            "the DICOM file holds no image, and it is not of a kind that holds none: it is damaged"
        )
        raise DataError(path, rule, "Copy or export it again")
    return []


def _header(path: Path) -> Dataset:
    try:
        # What is deflated would be unpacked as a whole, however large it is.
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            rule = "the transfer syntax Deflated Explicit VR is not read"
            raise DataError(path, rule, "Export the series uncompressed")
        return dcmread(path, stop_before_pixels=True, specific_tags=FIELDS)
    except DataError:
        raise
    except UNREADABLE_HEADER as error:
        rule = f"not a readable DICOM file ({type(error).__name__})"
        raise DataError(path, rule, "Export it again") from error


def _slices(path: Path, header: Dataset) -> list[Slice]:
    if int(header.get("SamplesPerPixel", 1)) != 1:
        raise DataError(path, "voxels must be real numbers, found colours", "Export magnitudes")
    found = header.get("PhotometricInterpretation", "MONOCHROME2")
    if found != "MONOCHROME2":
        rule = f"the PhotometricInterpretation must be MONOCHROME2, found {found}"
        raise DataError(path, rule, "Export the series again")
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames = header.get("PerFrameFunctionalGroupsSequence") or [Dataset()]
    if int(header.get("NumberOfFrames") or 1) != len(frames):
        rule = (
            f"holds {header.NumberOfFrames} frames and says of {len(frames)} where they lie, so "
            "they cannot be placed"
        )
        raise DataError(path, rule, "Export the series as MR images, one a file")
    return [_slice(path, number, header, shared, frame) for number, frame in enumerate(frames)]


def _slice(path: Path, number: int, header: Dataset, shared: Dataset, frame: Dataset) -> Slice:
    def field(group: str, name: str) -> Any:
        """A field of the frame's group, of the group that all frames share, or of the header."""
        for groups in (frame, shared):
            value = _first(groups, group).get(name)
            if value is not None:
                return value
        return header.get(name)

    orientation = _numbers(path, field("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    position = _numbers(path, field("PlanePositionSequence", "ImagePositionPatient"), 3)
    # From one row to the next comes first.
    down, across = _numbers(path, field("PixelMeasuresSequence", "PixelSpacing"), 2)
    slope = field("PixelValueTransformationSequence", "RescaleSlope")
    intercept = field("PixelValueTransformationSequence", "RescaleIntercept")
    echo = field("MREchoSequence", "EffectiveEchoTime") or header.get("EchoTime")
    time = header.get("TemporalPositionIdentifier")
    contrast = f"echo time {echo} ms" if echo is not None else "no echo time"
    bits, signed = int(header.BitsAllocated), int(header.PixelRepresentation)
    if bits not in (8, 16, 32) or int(header.get("HighBit", bits - 1)) != header.BitsStored - 1:
        rule = f"voxels of {header.BitsStored} bits in {bits} are not read"
        raise DataError(path, rule, "Export the series again")
    syntax = header.file_meta.TransferSyntaxUID
    return Slice(
        path=path,
        frame=number,
        series=str(header.get("SeriesInstanceUID", "")),
        number=f"series {header.get('SeriesNumber', '?')}, {header.get('Modality', '?')}",
        size=(int(header.Columns), int(header.Rows)),
        spacing_mm=(across, down),
        position=np.array(position),
        columns=np.array(orientation[:3]),
        rows=np.array(orientation[3:]),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        dtype=np.dtype(f"{'i' if signed else 'u'}{bits // 8}"),
        packed=syntax.is_compressed,
        contrast=contrast + (f", time {time}" if time is not None else ""),
    )


def _first(dataset: Dataset, name: str) -> Dataset:
    """The only item of a sequence; an empty one if there is none."""
    items = dataset.get(name)
    return items[0] if items else Dataset()


def _numbers(path: Path, value: Any, count: int) -> list[float]:
    """Numbers of a field that places a slice.

    Raises:
        DataError: If it is missing.
    """
    numbers = [] if value is None else [float(number) for number in value]
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DataError(
            path,
            "the DICOM header does not say where the slice lies: it needs ImageOrientationPatient, "
            "ImagePositionPatient and PixelSpacing",
            "Export the series as it came from the scanner, not as a screenshot or report",
        )
    return numbers
