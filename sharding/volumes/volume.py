"""A NIfTI volume: array and affine, checked when read, its geometry kept when written."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
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

from sharding.io.atomic import atomic_path
from sharding.io.errors import DataError, file_errors
from sharding.volumes.header import Orientation, aligned_by_array, codes_of, geometry
from sharding.volumes.slabs import Empty, in_memory, slabs

FREE_TEXT_FIELDS = ("descrip", "aux_file", "db_name", "data_type", "intent_name")
"""Header fields that scanners fill with names, dates and hosts; outputs leave them empty."""

SUFFIXES = (".nii", ".nii.gz", ".nii.bz2")
GZIP, BZIP2 = b"\x1f\x8b", b"BZh"
"""How packed files begin."""
# Neither can expand a byte to more than this, so a header that claims more is wrong.
MAX_DEFLATE_RATIO, MAX_BZIP2_RATIO = 1032, 22_500
SCAN_DEFLATE_RATIO = 200
"""No scan of a GiB is compressed by more than this; the noise alone prevents it."""
MOST_TRAILING_BYTES = 2**20
"""Most bytes that may follow the last voxel of a file."""

UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
)
"""The exceptions that nibabel raises for a damaged file."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar 3D image in world space.

    Attributes:
        data: Intensity, float32, shape (x, y, z).
        affine: Voxel index to world millimetres, shape (4, 4).
        header: The NIfTI header that it was read with, if any; its lengths are in mm.
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
    """Read a NIfTI file and refuse what cannot be used. Lengths are converted to millimetres.

    Args:
        path: The file.
        constant: Accept a volume whose voxels are all equal, as those of a mask may be.
        empty: Makes the array of voxels.
        orientation: What to do with a file that has no orientation, see
            sharding.volumes.header.geometry; any other file is not affected.

    Raises:
        DataError: If the file is missing, is no NIfTI, is cut short or claims more data than it
            can hold, is not 3D, is complex or coloured, has no orientation, a singular affine or
            voxels of an implausible size, holds NaN or Inf, or is constant and may not be.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "the file does not exist", "Check the path")
    with file_errors(path):
        return _read(path, constant, empty, orientation)


def _read(path: Path, constant: bool, empty: Empty, orientation: Orientation) -> Volume:
    if not path.name.lower().endswith(SUFFIXES):
        rule = f"must be a NIfTI file named {', '.join(SUFFIXES)}, found {path.name}"
        unpacked = path.name.lower().endswith((".zst", ".xz", ".zip"))
        raise DataError(path, rule, "Unpack it" if unpacked else "Convert it to .nii.gz")
    try:
        image = nib.load(path)
    except UNREADABLE as error:
        raise DataError(path, f"not a readable NIfTI file ({error})", "Export it again") from error
    if not isinstance(image, nib.Nifti1Image):
        found = type(image).__name__
        raise DataError(path, f"must be a NIfTI file, found {found}", "Convert it to .nii.gz")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise DataError(
            path,
            f"must be a 3D volume with at least 2 voxels a side, found shape {image.shape}",
            "Give one 3D volume in each file",
        )
    dtype = np.dtype(image.get_data_dtype())
    if dtype.kind not in "iuf":
        raise DataError(path, f"voxels must be real numbers, found {dtype}", "Export magnitudes")
    check_claimed_size(path, image)
    affine, header = geometry(path, image, orientation)
    try:
        with np.errstate(
            over="ignore"
        ):  # Values that float32 cannot hold become Inf, which is refused.
            data = _read_voxels(path, image, shape, empty)
    except UNREADABLE as error:
        raise DataError(
            path,
            f"the voxels cannot be read, the file is cut short or damaged ({error})",
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
    if ours.has_orientation and theirs.has_orientation:
        return ours, theirs
    affine = aligned_by_array(ours.shape, ours.spacing_mm, theirs.shape, theirs.affine)
    return replace(ours, affine=affine), theirs


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a float32 NIfTI file in one atomic step, without any free-text header field.

    The qform and sform codes are those that the volume's header was read with: a file without
    orientation gives outputs without orientation.
    """
    path = Path(path)
    image = nib.Nifti1Image(volume.data, volume.affine, volume.header)
    if volume.header is not None and codes_of(image.header) != codes_of(volume.header):
        # nibabel gives another affine codes of its own.
        qform, sform = codes_of(volume.header)
        image.set_sform(volume.affine, sform)
        image.set_qform(volume.affine, qform)
    image.set_data_dtype(np.float32)
    image.header.set_slope_inter(1.0, 0.0)
    for field in FREE_TEXT_FIELDS:
        image.header[field] = b""
    # Extensions may hold whole DICOM headers.
    image.header.extensions.clear()
    image.header["cal_min"] = image.header["cal_max"] = 0
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with atomic_path(path, suffix) as partial:
        nib.save(image, partial)


def check_claimed_size(path: Path, image: nib.Nifti1Image) -> None:
    """Refuse a header that claims more bytes than the file can hold, before memory is taken.

    Raises:
        DataError: If it does, or if a small file would unpack to gigabytes.
    """
    claimed = int(np.prod(image.shape, dtype=object)) * np.dtype(image.get_data_dtype()).itemsize
    held = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(3)
    packed = start.startswith((GZIP, BZIP2))
    if packed:
        held *= MAX_DEFLATE_RATIO if start.startswith(GZIP) else MAX_BZIP2_RATIO
    if claimed > held:
        raise DataError(
            path,
            f"the header claims {claimed} bytes of voxels, more than the file can hold",
            "The file is cut short or its header is damaged: copy or export it again",
        )
    if claimed > 2**30 and claimed > path.stat().st_size * SCAN_DEFLATE_RATIO and packed:
        raise DataError(
            path,
            f"{path.stat().st_size / 1e6:.3g} MB would unpack to {claimed / 1e9:.3g} GB, which no "
            "scan does",
            "If the file is meant, unpack it to .nii",
        )


def _read_voxels(
    path: Path, image: nib.Nifti1Image, shape: tuple[int, int, int], empty: Empty
) -> NDArray[np.float32]:
    """Scaled intensities, read once from the first voxel to the end of the file.

    nibabel stops at the last voxel, before the checksum of a compressed file.
    """
    proxy = image.dataobj
    assert isinstance(proxy, ArrayProxy)
    plane = shape[0] * shape[1] * proxy.dtype.itemsize
    data = empty(shape, np.float32, "F")
    with ImageOpener(str(path), "rb") as file:
        for slab in slabs(shape):
            low, high = slab[2].start, slab[2].stop
            part = ((*shape[:2], high - low), proxy.dtype, proxy.offset + low * plane)
            scaled = ArrayProxy(file, (*part, proxy.slope, proxy.inter), mmap=False)
            data[slab] = np.asarray(scaled, dtype=np.float32)
        trailing = 0
        while rest := file.read(MOST_TRAILING_BYTES):
            trailing += len(rest)
            if trailing > MOST_TRAILING_BYTES:
                raise ValueError("the file holds more than its header says")
    return data


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
