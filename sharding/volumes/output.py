"""Where a result goes: what its ending names, or a DICOM series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from sharding.io.atomic import refuse_existing
from sharding.io.errors import DataError, file_errors
from sharding.volumes.formats.registry import FOLDERS, WRITERS, is_dicom_volume, output_suffix
from sharding.volumes.volume import Volume, check_writable, write_volume

if TYPE_CHECKING:
    from sharding.volumes.formats.dicom_write import Kind

Dtype = Literal["float32", "int16", "uint16"]
"""Types of stored voxels. Integers are rounded intensities, without a scale."""
DTYPES: Mapping[str, Sequence[str]] = dict.fromkeys(WRITERS, get_args(Dtype)) | {
    ".mgz": ("float32", "int16"),
    ".mgh": ("float32", "int16"),
}
"""Ending of an output to the types that it can hold."""
LEAST_LEVELS = 200
"""Integers that the intensities of an output must span, so that rounding does not show."""


@dataclass(frozen=True)
class Output:
    """A result to be written.

    Attributes:
        path: A name with an ending of sharding.volumes.formats.registry.WRITERS; or a folder
            without one, for a DICOM series, where one came in.
        source: The volume that the result is computed from.
        kind: Whether its voxels are a network's or the scanner's; a DICOM series says so.
        keep_patient: Copy the patient and the study of the source into a DICOM series.
        overwrite: Replace what is there.
        dtype: Type of the voxels of a file; a DICOM series has its own.
    """

    path: Path
    source: Path
    kind: Kind = "synthetic"
    keep_patient: bool = False
    overwrite: bool = False
    dtype: Dtype = "float32"

    def check(self) -> None:
        """Refuse what cannot be written, before anything is computed.

        Raises:
            DataError: If the path exists, its ending is not one that is written, a folder is asked
                for where no DICOM series came in, or a patient where none can be kept.
        """
        if not self._is_series:
            suffix = output_suffix(self.path)
            if self.dtype not in DTYPES[suffix]:
                held = " or ".join(DTYPES[suffix])
                rule = f"a file ending in {suffix} holds {held}, not {self.dtype}"
                raise DataError(self.path, rule, "Give another --dtype, or write .nii.gz")
            if self.keep_patient:
                rule = "only a DICOM series holds a patient, and this output is a file"
                raise DataError(self.path, rule, "Give a folder, or leave out --keep-patient")
        elif self.dtype != "float32":
            rule = "the voxels of a DICOM series are 16-bit integers of its own scale"
            raise DataError(self.path, rule, "Leave out --dtype, or write .nii.gz")
        elif not self.source.exists():
            raise DataError(self.source, "the file does not exist", "Check the path")
        elif not is_dicom_volume(self.source):
            rule = (
                f"the output must end in {', '.join(WRITERS)}, or be a folder where the source is "
                "a DICOM series"
            )
            raise DataError(self.path, rule, "Rename it")
        elif self.path.resolve() in (self.source.resolve(), *self.source.resolve().parents):
            raise DataError(self.path, "the source lies in this folder", "Give another folder")
        refuse_existing([self.path], self.overwrite)

    def check_grid(self, grid: Volume) -> None:
        """Refuse a grid that the format cannot hold, before a result on it is computed.

        Args:
            grid: A volume whose axes and header are those of the result.

        Raises:
            DataError: If it has no orientation or oblique axes, and the format cannot say so.
        """
        if not self._is_series:
            check_writable(self.path, grid)
        elif not grid.has_orientation:
            rule = "the volume has no orientation, which a DICOM series cannot say"
            raise DataError(self.path, rule, "Write .nii.gz")

    def write(self, volume: Volume) -> None:
        """Write the result in one atomic step.

        Raises:
            DataError: As check, or if the format cannot hold the volume.
        """
        self.check_grid(volume)
        if not self._is_series:
            write_volume(self.path, as_stored(self.path, volume, self.dtype))
            return
        from sharding.volumes.formats.dicom_write import Derivation, write_series

        derived = Derivation(self.source, self.kind, self.keep_patient)
        with file_errors(self.path):
            write_series(self.path, volume, derived, self.overwrite)

    @property
    def _is_series(self) -> bool:
        if self.path.name.lower().endswith(tuple(FOLDERS)):
            return False
        return not self.path.suffix or self.path.is_dir()


def as_stored(path: Path, volume: Volume, dtype: Dtype) -> Volume:
    """The volume with voxels of the type in which they are stored.

    Raises:
        DataError: If integers cannot hold the intensities, or would be too coarse for them.
    """
    if dtype == "float32":
        return volume
    low, high = float(volume.data.min()), float(volume.data.max())
    limits = np.iinfo(dtype)
    found = f"the intensities run from {low:.4g} to {high:.4g}"
    if round(low) < limits.min or round(high) > limits.max:
        rule = f"{found}, and {dtype} holds {limits.min} to {limits.max}"
        raise DataError(path, rule, "Give --units scaled, or leave out --dtype")
    if high - low < LEAST_LEVELS:
        rule = f"{found}, fewer than {LEAST_LEVELS} integers apart: rounding would show"
        raise DataError(path, rule, "Give --units scaled, or leave out --dtype")
    # Writers store integers as they are.
    return replace(volume, data=np.rint(volume.data).astype(dtype))
