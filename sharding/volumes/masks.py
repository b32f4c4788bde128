"""Where the specimen lies: its mask, or the voxels over a threshold."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.errors import DataError
from sharding.volumes.cohort import Specimen
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.volume import Volume, read_volume

GRID_TOLERANCE = 0.1
"""Share of a voxel by which the corners of one grid may differ in two headers."""


def specimen_foreground(
    specimen: Specimen, scaled: Volume, config: PreprocessConfig
) -> NDArray[np.bool_]:
    """The specimen's mask, or else the voxels of the target over the threshold.

    Args:
        specimen: Names the mask, if any.
        scaled: The target, intensities in [0, 1].
        config: Gives the threshold.

    Raises:
        DataError: If it is empty, or the mask is bad or lies on another grid.
    """
    if specimen.mask is not None:
        return read_mask(specimen.mask, scaled)
    foreground = foreground_mask(scaled.data, config.foreground_threshold)
    if not foreground.any():
        raise DataError(
            specimen.target,
            f"no voxel of the scaled target exceeds {config.foreground_threshold}",
            "Lower --preprocess.foreground-threshold",
        )
    return foreground


def read_mask(path: Path, grid: Volume) -> NDArray[np.bool_]:
    """Read a mask: inside is where it is not zero.

    Raises:
        DataError: If the file is bad, lies on another grid, or is zero everywhere.
    """
    mask = read_volume(path, constant=True)
    if mask.shape != grid.shape:
        rule = f"a mask must have the target's shape {grid.shape}, found {mask.shape}"
        raise DataError(path, rule, "Draw or resample it on the target's grid")
    corners = np.array([*itertools.product(*((0, size - 1) for size in grid.shape))])
    shifts = apply_affine(mask.affine, corners) - apply_affine(grid.affine, corners)
    apart = np.linalg.norm(shifts, axis=1).max()
    if apart > GRID_TOLERANCE * min(grid.spacing_mm):
        rule = f"a mask must have the target's affine, its corners are up to {apart:.3g} mm away"
        raise DataError(path, rule, "Draw or resample it on the target's grid")
    inside = mask.data != 0
    if not inside.any():
        raise DataError(path, "the mask is zero everywhere", "Mark the specimen with ones")
    return inside


def foreground_mask(scaled: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Voxels over the threshold, with enclosed holes (dark ventricles, vessels) filled.

    Args:
        scaled: Volume scaled to [0, 1], shape (x, y, z).
        threshold: Between 0 and 1.
    """
    return np.asarray(ndimage.binary_fill_holes(scaled > threshold), bool)
