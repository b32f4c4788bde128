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
from sharding.volumes.header import Orientation, aligned_by_array
from sharding.volumes.holes import fill_holes
from sharding.volumes.slabs import Empty, in_memory, slabs
from sharding.volumes.volume import Volume, read_volume

GRID_TOLERANCE = 0.1
"""Share of a voxel by which the corners of the same grid may differ between two headers."""
TOLERANCE = 1e-3
"""Rounding of a mask's values, as a share of the one that marks the inside."""
ZERO = 1e-6
"""A mask whose values are all smaller marks nothing."""
PROBABLE = 0.5
"""A voxel of at least this probability lies inside."""
MOST_DISTINCT = 10**5
"""Distinct values of what is no mask up to which they are counted."""


def specimen_foreground(
    specimen: Specimen, scaled: Volume, config: PreprocessConfig, empty: Empty = in_memory
) -> NDArray[np.bool_]:
    """The specimen's mask, or else the voxels of the target over the threshold.

    Args:
        specimen: Names the mask, if any.
        scaled: The target, intensities in [0, 1].
        config: Gives the threshold.
        empty: Makes the arrays that are as large as the volume.

    Raises:
        DataError: If it is empty, or the mask is bad or lies on another grid.
    """
    if specimen.mask is not None:
        return read_mask(specimen.mask, scaled, config.orientation, empty)
    foreground = foreground_mask(scaled.data, config.foreground_threshold, empty)
    if not foreground.any():
        raise DataError(
            specimen.target,
            f"no voxel of the scaled target exceeds {config.foreground_threshold}",
            "Lower --preprocess.foreground-threshold",
        )
    return foreground


def read_mask(
    path: Path, grid: Volume, orientation: Orientation = "header", empty: Empty = in_memory
) -> NDArray[np.bool_]:
    """Read a mask: a binary image, or a probability, which is taken at 0.5.

    Args:
        path: The file.
        grid: The target, on whose grid the mask lies.
        orientation: See sharding.volumes.volume.read_volume.
        empty: Makes the arrays that are as large as the volume.

    Raises:
        DataError: If the file is bad, lies on another grid, has other values than a mask, or is
            empty.
    """
    mask = read_volume(path, constant=True, empty=empty, orientation=orientation)
    _check_same_grid(path, mask, grid)
    inside = _inside(path, mask.data, empty)
    if not inside.any():
        raise DataError(path, "no voxel lies in the mask", "Mark the specimen with ones")
    return inside


def _check_same_grid(path: Path, mask: Volume, grid: Volume) -> None:
    if mask.shape != grid.shape:
        rule = f"a mask must have the target's shape {grid.shape}, found {mask.shape}"
        raise DataError(path, rule, "Draw or resample it on the target's grid")
    corners = np.array([*itertools.product(*((0, size - 1) for size in grid.shape))])
    affine = mask.affine
    if not mask.has_orientation or not grid.has_orientation:
        # Paired by their arrays, on request.
        affine = aligned_by_array(mask.shape, mask.spacing_mm, grid.shape, grid.affine)
    shifts = apply_affine(affine, corners) - apply_affine(grid.affine, corners)
    apart = np.linalg.norm(shifts, axis=1).max()
    if apart > GRID_TOLERANCE * min(grid.spacing_mm):
        rule = f"a mask must have the target's affine, its corners are up to {apart:.3g} mm away"
        raise DataError(path, rule, "Draw or resample it on the target's grid")


def _inside(path: Path, values: NDArray[np.float32], empty: Empty) -> NDArray[np.bool_]:
    """Which voxels the values of a mask mark.

    Raises:
        DataError: If they are neither 0 and one other value nor probabilities.
    """
    low, high = float(values.min()), float(values.max())
    mark = high if abs(high) >= abs(low) else low
    inside, binary = empty(values.shape, np.bool_), True
    for slab in slabs(values.shape):
        if abs(mark) < ZERO:
            inside[slab] = False
            continue
        marked = np.abs(values[slab] - mark) <= TOLERANCE * abs(mark)
        binary &= bool((marked | (np.abs(values[slab]) <= TOLERANCE * abs(mark))).all())
        inside[slab] = marked
    if binary:
        return inside
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        for slab in slabs(values.shape):
            inside[slab] = values[slab] >= PROBABLE
        return inside
    distinct = np.empty(0, np.float32)
    for slab in slabs(values.shape):
        if len(distinct) <= MOST_DISTINCT:
            distinct = np.unique(np.append(distinct, np.unique(values[slab])))
    listed = ", ".join(f"{value:.4g}" for value in distinct[:5])
    more = f" and {len(distinct) - 5} more" if len(distinct) > 5 else ""
    raise DataError(
        path,
        "a mask must hold 0 and one other value, or probabilities from 0 to 1; found "
        f"{len(distinct)} values from {low:.4g} to {high:.4g}: {listed}{more}",
        "Resample masks by nearest neighbour; turn labels into one mask of zeros and ones",
    )


def foreground_mask(
    scaled: NDArray[np.float32], threshold: float, empty: Empty = in_memory
) -> NDArray[np.bool_]:
    """Voxels over the threshold, with enclosed holes (dark ventricles, vessels) filled.

    Args:
        scaled: Volume scaled to [0, 1], shape (x, y, z).
        threshold: Between 0 and 1.
        empty: Makes the mask.
    """
    foreground = empty(scaled.shape, np.bool_)
    for slab in slabs(scaled.shape):
        foreground[slab] = scaled[slab] > threshold
    fill_holes(foreground)
    return foreground


def otsu_foreground(data: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Everything but the dark surroundings, for any contrast and noise level.

    Otsu's threshold separates bright from dark tissue if there are both. So the threshold lies a
    quarter of the way from the mean of the part that Otsu finds dark to that of the bright part.
    Noise is blurred first, and enclosed holes are filled.
    """
    from skimage.filters import threshold_otsu  # Loads slowly, and few need it.

    if data.min() == data.max():
        return np.zeros(data.shape, bool)
    # Flattened: the threshold is the same, and a volume of four slices is not taken for a picture
    # with colours.
    bright = data > threshold_otsu(data.ravel())
    means = [float(data[part].mean(dtype=np.float64)) for part in (~bright, bright)]
    blurred = np.asarray(ndimage.gaussian_filter(data, 1, mode="nearest"))
    threshold = means[0] + (means[1] - means[0]) / 4
    return np.asarray(ndimage.binary_fill_holes(blurred > threshold), bool)
