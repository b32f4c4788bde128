"""The geometry in a header: units, orientation codes and voxel size, checked before use."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sharding.io.errors import DataError

if TYPE_CHECKING:
    from sharding.volumes.formats.format import Stated

logger = logging.getLogger(__name__)

Orientation = Literal["header", "array"]
"""Where the directions of an image's axes come from: its header's codes, or the array itself."""

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From this program's and NIfTI's world axes to those of DICOM and ITK, and back."""
UNITS_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
"""Unit of a header's lengths to millimetres; unknown stands for mm, as is usual in the field."""
LEAST_MM, MOST_MM = 0.001, 50.0
"""Voxel sizes that scanners and microscopes have."""
OPPOSITE = {"L": "R", "P": "A", "I": "S"}
LEAST_DISAGREEMENT = 0.01
"""Share by which two voxel sizes of one header may differ before that is reported."""
MOST_VOXELS_APART = 0.5
"""How far apart the two affines of a header may place a voxel before that is reported."""


def is_orientation(name: str) -> bool:
    """Whether a name such as RAS gives each of the three axes one direction."""
    return sorted(OPPOSITE.get(letter, letter) for letter in name) == ["A", "R", "S"]


def codes_of(header: nib.Nifti1Header) -> tuple[int, int]:
    """The qform and sform codes; both zero means that the file has no orientation."""
    return int(header["qform_code"]), int(header["sform_code"])  # type: ignore[arg-type]


def geometry(
    path: Path, stated: Stated, orientation: Orientation
) -> tuple[NDArray[np.float64], nib.Nifti1Header]:
    """The affine in millimetres, and a header that states millimetres.

    Args:
        path: For messages.
        stated: What the file states.
        orientation: "header" refuses an image without orientation; "array" lets the axes of its
            array point right, anterior and superior, with the world's origin in its middle.

    Raises:
        DataError: If the image has no orientation and none is to be assumed, its two affines
            mirror each other, its affine is singular or not finite, or its voxels have an
            implausible size.
    """
    header = stated.header
    qform, sform = codes_of(header)
    if not qform and not sform:
        if orientation == "header":
            raise DataError(
                path,
                f"the file has no orientation: {stated.no_orientation}, so left and right cannot "
                "be told apart",
                "Restore the header from the scanner's export; or give the option orientation "
                "array, if the axes of both arrays of each pair point the same way",
            )
        affine = centred_affine(stated.shape[:3], np.abs(header["pixdim"][1:4]))
    else:
        affine = stated.affine
    if qform and sform:
        _check_one_handedness(path, header)
    if sform:
        _say_what_disagrees(path, stated.shape[:3], header)
    unit = _length_unit(path, header)
    scale = UNITS_MM[unit]
    if scale != 1:
        logger.info("%s: lengths in the header are in %ss, converted to mm", path, unit)
        affine = np.diag([scale, scale, scale, 1.0]) @ affine
    if not np.isfinite(affine).all() or not _is_invertible(affine):
        raise DataError(
            path,
            "the affine must be finite and invertible",
            f"Repair the {stated.geometry_fields}",
        )
    _check_voxel_size(path, affine, unit)
    header = header.copy()
    header.set_xyzt_units("mm", header.get_xyzt_units()[1])
    return affine, header


def centred_affine(shape: tuple[int, ...], spacing: NDArray) -> NDArray[np.float64]:
    """Axes that point right, anterior and superior; the world's origin in the array's middle."""
    affine = np.diag([*np.asarray(spacing, np.float64), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape[:3]) - 1) / 2
    return affine


def aligned_by_array(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    target_shape: tuple[int, int, int],
    target_affine: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The affine that lays an array's axes along those of a target, middle on middle.

    Args:
        shape: Shape of the array.
        spacing_mm: Its voxel size along its own axes.
        target_shape: Shape of the target.
        target_affine: Index to world millimetres, shape (4, 4).
    """
    scale = np.array(spacing_mm) / voxel_sizes(target_affine)
    to_target = np.diag([*scale, 1.0])
    to_target[:3, 3] = (np.array(target_shape) - 1) / 2 - scale * (np.array(shape) - 1) / 2
    return target_affine @ to_target


def _check_one_handedness(path: Path, header: nib.Nifti1Header) -> None:
    """Refuse a header whose two affines mirror each other: programs would differ in the side."""
    try:
        affines = [np.asarray(header.get_qform()), np.asarray(header.get_sform())]
        signs = [np.sign(np.linalg.det(affine[:3, :3])) for affine in affines]
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return  # An affine that cannot be read is refused elsewhere, if it is used.
    if signs[0] * signs[1] < 0:
        raise DataError(
            path,
            "the qform and the sform of the header mirror each other, so left and right cannot be "
            "told apart",
            "Restore the header from the scanner's export, or remove the wrong one of the two",
        )


def _say_what_disagrees(path: Path, shape: tuple[int, ...], header: nib.Nifti1Header) -> None:
    """Warn of a header that says two things of where its voxels lie; the sform counts here."""
    try:
        sform, qform = np.asarray(header.get_sform()), np.asarray(header.get_qform())
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return
    ours, theirs = voxel_sizes(sform), np.abs(header["pixdim"][1:4])
    if not (np.isfinite(sform).all() and np.isfinite(qform).all()) or not min(*ours, *theirs) > 0:
        return
    if np.abs(theirs / ours - 1).max() > LEAST_DISAGREEMENT:
        found = [" x ".join(f"{side:.4g}" for side in sides) for sides in (ours, theirs)]
        logger.warning(
            "%s: the voxels have %s by the header's sform and %s by its pixdim; the sform is used",
            path,
            *found,
        )
    elif header["qform_code"]:
        corners = np.array([*itertools.product(*((0, size - 1) for size in shape))])
        apart = apply_affine(sform, corners) - apply_affine(qform, corners)
        voxels = np.linalg.norm(apart, axis=1).max() / ours.min()
        if voxels > MOST_VOXELS_APART:
            logger.warning(
                "%s: the sform and the qform of the header place the same voxel up to %.3g voxels "
                "apart; the sform is used",
                path,
                voxels,
            )


def _length_unit(path: Path, header: nib.Nifti1Header) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        code = int(header["xyzt_units"]) % 8  # type: ignore[arg-type]
        rule = f"the unit of length in the header (xyzt_units) is not one of NIfTI's: {code}"
        raise DataError(path, rule, "Write the header again, in mm") from None


def _is_invertible(affine: NDArray[np.float64]) -> bool:
    """Whether no axis is missing or lies in the plane of the others, whatever the voxel size."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(sides.min() > 0 and abs(np.linalg.det(affine[:3, :3] / sides)) > 1e-6)


def _check_voxel_size(path: Path, affine: NDArray[np.float64], unit: str) -> None:
    sides = voxel_sizes(affine)
    if sides.min() < LEAST_MM * (1 - 1e-6) or sides.max() > MOST_MM * (1 + 1e-6):
        found = " x ".join(f"{side:.3g}" for side in sides)
        stated = "the header does not name its unit" if unit == "unknown" else f"its unit is {unit}"
        raise DataError(
            path,
            f"voxels must be from {LEAST_MM} to {MOST_MM:g} mm, found {found} mm; {stated}",
            "Correct the unit of length (NIfTI: xyzt_units) or the voxel size in the header",
        )
