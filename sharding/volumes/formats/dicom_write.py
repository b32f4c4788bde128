"""A volume as a DICOM series that was derived from another one.

The series is marked as derived, synthetic where it is, and for research only. It gets UIDs of its
own. No field of the source is copied: patient, study and dates stay behind. On request the patient
and the study are copied, so that an archive files the series beside its source: an archive refuses
a known study of another patient, so that it is both or neither.

Without them the UIDs of study and frame of reference are digests of the source's. Series that are
derived from one study are therefore of one study again, and lie in one space.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from sharding.io.atomic import atomic_folder
from sharding.io.errors import DataError
from sharding.volumes.formats.dicom_headers import quiet
from sharding.volumes.formats.dicom_series import read_series
from sharding.volumes.header import RAS_TO_LPS
from sharding.volumes.volume import Volume

Kind = Literal["synthetic", "corrected"]
DESCRIPTIONS: dict[Kind, str] = {
    "synthetic": "SYNTHETIC, research only",
    "corrected": "Bias corrected, research only",
}
COMMENT = "Computed by distsynth. For research only, not for diagnosis or treatment."
FIRST_FILE = "slice-0001.dcm"
LEVELS = 65535
LINK = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "FrameOfReferenceUID",
)
"""What is copied on request: by these an archive files a series under its patient and study."""
SHEARED = 1e-3
"""Cosine of the angle between two axes, at most."""


@dataclass(frozen=True)
class Derivation:
    """How a series came about.

    Attributes:
        source: The DICOM folder or file that it was computed from.
        kind: Whether its voxels are a network's or the scanner's.
        keep_patient: Copy the patient and the study of the source.
    """

    source: Path
    kind: Kind = "synthetic"
    keep_patient: bool = False


def write_series(folder: Path, volume: Volume, derived: Derivation, overwrite: bool) -> None:
    """Write a folder of MR images, one a slice along the volume's last axis, in one atomic step.

    Intensities are stored as 16-bit integers with the slope and intercept that span their range.

    Args:
        folder: It must not exist, or be a series written before.
        volume: Shape (x, y, z); x counts columns and y rows.
        derived: What it was computed from.
        overwrite: Replace a series.

    Raises:
        DataError: If the axes are not at right angles, or the folder may not be replaced.
    """
    axes = volume.affine[:3, :3] / volume.spacing_mm
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEARED:
        rule = "the axes of a DICOM series must be at right angles, these are sheared"
        raise DataError(folder, rule, "Write .nii.gz")
    first = read_series(derived.source)[0].path
    with quiet():
        source = dcmread(first, specific_tags=[*LINK, "SeriesInstanceUID"])
        common = _common(source, volume, derived)
    low, high = float(volume.data.min()), float(volume.data.max())
    slope = (high - low) / LEVELS or 1.0
    # Decimal strings hold sixteen characters; what is written is what readers multiply by.
    slope, low = float(f"{slope:.9e}"), float(f"{low:.9e}")
    stored = np.clip(np.rint((volume.data.astype(np.float64) - low) / slope), 0, LEVELS)
    with atomic_folder(folder, FIRST_FILE, overwrite) as made:
        for number in range(volume.shape[2]):
            image = Dataset()
            image.update(common)
            _place(image, volume, number)
            image.RescaleSlope, image.RescaleIntercept = f"{slope:.9e}", f"{low:.9e}"
            image.RescaleType = "US"
            image.PixelData = stored[:, :, number].T.astype("<u2").tobytes()
            image["PixelData"].VR = "OW"
            with quiet():
                image.save_as(made / f"slice-{number + 1:04d}.dcm", enforce_file_format=True)


def _common(source: Dataset, volume: Volume, derived: Derivation) -> Dataset:
    """What all images of the series state."""
    study, frame, series = (
        str(source.get(name, ""))
        for name in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")
    )
    content = hashlib.sha256(np.ascontiguousarray(volume.data).tobytes()).hexdigest()
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    value = "SYNTHETIC" if derived.kind == "synthetic" else "BIAS_CORRECTED"
    image.ImageType = ["DERIVED", "SECONDARY", "OTHER", value]
    image.SOPClassUID, image.Modality = MRImageStorage, "MR"
    for name in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        setattr(image, name, "")
    image.Manufacturer, image.ManufacturerModelName = "distsynth", "distsynth"
    image.SeriesDescription = DESCRIPTIONS[derived.kind]
    image.DerivationDescription = f"{DESCRIPTIONS[derived.kind]}. {COMMENT}"
    image.ImageComments = f"{DESCRIPTIONS[derived.kind]}. {COMMENT}"
    image.BurnedInAnnotation, image.ContentQualification = "NO", "RESEARCH"
    image.PatientName = "Research^Derived"
    image.PatientID = f"derived-{_digest('patient', study)[:12]}"
    image.PatientBirthDate = image.PatientSex = ""
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = "No field of the source was copied"
    image.StudyInstanceUID = _uid("study", study)
    image.StudyID, image.SeriesNumber = "", "9400"
    image.SeriesInstanceUID = _uid("series", series, derived.kind, content)
    image.FrameOfReferenceUID = _uid("frame of reference", frame or study)
    image.PositionReferenceIndicator = ""
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""
    image.MRAcquisitionType = image.EchoTime = image.RepetitionTime = image.EchoTrainLength = None
    image.PatientPosition = ""
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    low, high = np.percentile(volume.data, [0.5, 99.5])
    image.WindowCenter, image.WindowWidth = f"{(low + high) / 2:.6g}", f"{high - low or 1:.6g}"
    if derived.keep_patient:
        for name in LINK:
            if name in source:
                image[name] = source[name]
        image.PatientIdentityRemoved = "NO"
        del image.DeidentificationMethod
    return image


def _place(image: Dataset, volume: Volume, number: int) -> None:
    """Where a slice lies, and what makes it another image than the rest."""
    lps, spacing = RAS_TO_LPS @ volume.affine, volume.spacing_mm
    axes = lps[:3, :3] / spacing
    image.Columns, image.Rows = volume.shape[:2]
    image.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    image.SliceThickness = image.SpacingBetweenSlices = _decimal(spacing[2])
    image.ImageOrientationPatient = [_decimal(value) for value in _exact(axes)]
    image.ImagePositionPatient = [_decimal(value) for value in (lps @ [0, 0, number, 1])[:3]]
    image.InstanceNumber = number + 1
    image.SOPInstanceUID = _uid("image", image.SeriesInstanceUID, str(number))
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationClassUID = _uid("implementation", "distsynth")


def _exact(axes: NDArray[np.float64]) -> list[float]:
    """The directions of the columns and of the rows."""
    return [*axes[:, 0], *axes[:, 1]]


def _decimal(value: float) -> str:
    """A decimal string of at most sixteen characters."""
    for digits in range(15, 5, -1):
        text = f"{value + 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.8e}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(("distsynth", *parts)).encode()).hexdigest()


def _uid(*parts: str) -> UID:
    """A UID that the parts determine, as UUIDs are written."""
    return UID(f"2.25.{uuid.UUID(_digest(*parts)[:32], version=5).int}")
