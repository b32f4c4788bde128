"""A volume: array and affine, checked when read, its geometry kept when written."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sharding.io.atomic import atomic_folder, atomic_path
from sharding.io.errors import DataError, file_errors, one_line
from sharding.volumes.formats.packed import MAX_RATIO, UNPACKING_ERRORS, Packing
from sharding.volumes.formats.registry import (
    CHECKS,
    FOLDERS,
    KEEPS_NO_ORIENTATION,
    WRITERS,
    format_of,
    output_suffix,
)
from sharding.volumes.header import Orientation, aligned_by_array, codes_of, geometry
from sharding.volumes.slabs import Empty, in_memory, slabs

MOST_UNPACKED = 2**30
"""Bytes that any file may unpack to."""
SCAN_RATIO = 200
"""No scan of a GiB is compressed by more than this; the noise alone prevents it."""

UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    KeyError,
    RuntimeError,
    zlib.error,
    *UNPACKING_ERRORS,
)
"""The exceptions that the libraries raise for a damaged file."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar 3D image in world space.

    Attributes:
        data: Intensity, float32, shape (x, y, z).
        affine: Voxel index to world millimetres, shape (4, 4).
        header: The NIfTI header that it was read with, or one with the codes of another format's
            file; its lengths are in mm. None for a volume made in memory.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        x, y, z = self.data.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis in millimetres."""
        x, y, z = voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    @property
    def has_orientation(self) -> bool:
        """Whether its file said where the axes point; volumes made in memory always do."""
        return self.header is None or codes_of(self.header) != (0, 0)

    @property
    def orientation(self) -> str:
        """Where the axes point, nearest first: RAS is right, anterior, superior."""
        return "".join(str(code) for code in aff2axcodes(self.affine))

    def reoriented(self, orientation: str) -> Volume:
        """The same image with axes flipped and permuted: a view, nothing is interpolated."""
        change = ornt_transform(io_orientation(self.affine), axcodes2ornt(orientation))
        affine = self.affine @ inv_ornt_aff(change, self.shape)
        return Volume(apply_orientation(self.data, change), affine, self.header)

    def with_data(self, data: NDArray) -> Volume:
        """Another image on the same grid."""
        return replace(self, data=np.asarray(data, np.float32))


def read_volume(
    path: str | Path,
    constant: bool = False,
    empty: Empty = in_memory,
    orientation: Orientation = "header",
) -> Volume:
    """Read a volume and refuse what cannot be used. Lengths are converted to millimetres.

    Args:
        path: The file, in any format of sharding.volumes.formats.registry.
        constant: Accept a volume whose voxels are all equal, as those of a mask may be.
        empty: Makes the array of voxels.
        orientation: What to do with a file that has no orientation, see
            sharding.volumes.header.geometry; any other file is not affected.

    Raises:
        DataError: If the file is missing, has no known format, is cut short or claims more data
            than it can hold, is not 3D, is complex or coloured, has no orientation, a singular
            affine or voxels of an implausible size, holds NaN or Inf, or is constant and may not
            be.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(path, "the file does not exist", "Check the path")
    with file_errors(path):
        return _read(path, constant, empty, orientation)


def _read(path: Path, constant: bool, empty: Empty, orientation: Orientation) -> Volume:
    kind = format_of(path)
    try:
        stated = kind.open(path)
    except DataError:
        raise
    except UNREADABLE as error:
        rule = f"not a readable {kind.name} file ({one_line(error)})"
        raise DataError(path, rule, "Export it again") from error
    shape = stated.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise DataError(
            path,
            f"must be a 3D volume with at least 2 voxels a side, found shape {stated.shape}",
            "Give one 3D volume in each file",
        )
    if stated.dtype.kind not in "iuf":
        rule = f"voxels must be real numbers, found {stated.dtype}"
        raise DataError(path, rule, "Export magnitudes")
    claimed = math.prod(stated.shape) * stated.dtype.itemsize
    check_claimed_size(path, claimed, stated.held, stated.packing)
    affine, header = geometry(path, stated, orientation)
    try:
        # Values that float32 cannot hold become Inf, which is refused.
        with np.errstate(over="ignore"):
            data = stated.read(shape, empty)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(
            path,
            f"the voxels cannot be read, the file is cut short or damaged ({one_line(error)})",
            "Copy or export it again",
        ) from error
    _check_values(path, data, constant)
    return Volume(data, affine, header)


def read_pair(
    source: str | Path,
    target: str | Path,
    orientation: Orientation = "header",
    empty: Empty = in_memory,
) -> tuple[Volume, Volume]:
    """Read a source and a target in one world.

    Args:
        source: The low-field file.
        target: The high-field file.
        orientation: With "array", if either file has no orientation, the array of the source is
            laid along the axes of the target's array, middle on middle.
        empty: Makes the arrays of voxels.

    Raises:
        DataError: As read_volume.
    """
    ours = read_volume(source, empty=empty, orientation=orientation)
    theirs = read_volume(target, empty=empty, orientation=orientation)
    return in_world_of(ours, theirs), theirs


def in_world_of(volume: Volume, other: Volume) -> Volume:
    """A volume in the world of another: as it is, or aligned by its array.

    Args:
        volume: If it or the other has no orientation, its array is laid along the axes of the
            other's array, middle on middle.
        other: Another volume of the same specimen.
    """
    if volume.has_orientation and other.has_orientation:
        return volume
    affine = aligned_by_array(volume.shape, volume.spacing_mm, other.shape, other.affine)
    return replace(volume, affine=affine)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a float32 volume in one atomic step, in the format of the path's ending.

    No text of the file that the volume was read from is written. The qform and sform codes of a
    NIfTI file are those that the volume's header was read with: a file without orientation gives
    outputs without orientation.

    Raises:
        DataError: As check_writable.
    """
    path = Path(path)
    suffix = output_suffix(path)
    check_writable(path, volume)
    whole = (
        atomic_folder(path, FOLDERS[suffix], overwrite=True)
        if suffix in FOLDERS
        else atomic_path(path, suffix)
    )
    with whole as partial:
        WRITERS[suffix](partial, volume)


def check_writable(path: Path, volume: Volume) -> None:
    """Refuse a volume that the format of the path's ending cannot hold.

    Args:
        path: What is to be written.
        volume: Only its grid and its header are looked at.

    Raises:
        DataError: If nothing is written with this ending, or the volume has no orientation or
            oblique axes and the format cannot say so.
    """
    suffix = output_suffix(path)
    if not volume.has_orientation and suffix not in KEEPS_NO_ORIENTATION:
        rule = f"the volume has no orientation, which a file ending in {suffix} cannot say"
        raise DataError(path, rule, "Write .nii.gz")
    if suffix in CHECKS:
        CHECKS[suffix](path, volume)


def check_claimed_size(path: Path, claimed: int, held: int, packing: Packing | None) -> None:
    """Refuse a header that claims more bytes than the file can hold, before memory is taken.

    Args:
        path: For messages.
        claimed: Bytes of voxels by the header.
        held: Bytes of the file.
        packing: How it is packed.

    Raises:
        DataError: If it does, or if a small file would unpack to gigabytes.
    """
    if claimed > held * (MAX_RATIO[packing] if packing else 1):
        raise DataError(
            path,
            f"the header claims {claimed} bytes of voxels, more than the file can hold",
            "The file is cut short or its header is damaged: copy or export it again",
        )
    if packing and claimed > MOST_UNPACKED and claimed > held * SCAN_RATIO:
        raise DataError(
            path,
            f"{held / 1e6:.3g} MB would unpack to {claimed / 1e9:.3g} GB, which no scan does",
            "If the file is meant, unpack it to .nii",
        )


def _check_values(path: Path, data: NDArray[np.float32], constant: bool) -> None:
    parts = [data[slab] for slab in slabs(data.shape)]
    bad = sum(int((~np.isfinite(part)).sum()) for part in parts)
    if bad:
        raise DataError(
            path,
            f"voxels must be finite, found {bad} NaN or Inf",
            "Repair or mask them out, then write the file again",
        )
    if not constant and min(part.min() for part in parts) == max(part.max() for part in parts):
        raise DataError(
            path,
            f"voxels must not all be equal, found {float(data[0, 0, 0])} everywhere",
            "Check the export of this volume",
        )
