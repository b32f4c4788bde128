"""Grids of another voxel size over the same field of view, and whether two grids overlap."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.resample import field_of_view, resample
from sharding.volumes.slabs import Empty, in_memory, slabs
from sharding.volumes.volume import Volume

SAME_SPACING = 0.01
"""Share by which voxel sizes may differ that count as the same."""
MOST_VOXELS = 10**9
"""Most voxels of a grid, unless an option allows more: 4 GB an array, and several are needed."""


def same_spacing(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two voxel sizes differ by rounding only."""
    return bool(np.abs(np.array(one) / np.array(other) - 1).max() < SAME_SPACING)


def spaced_grid(
    volume: Volume, spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """A grid of another voxel size along the axes of a volume, over its field of view.

    The first voxel's centre stays where it is, so that a volume downsampled from a finer grid
    comes back onto it.

    Returns:
        Shape and affine.
    """
    if same_spacing(volume.spacing_mm, spacing_mm):
        return volume.shape, volume.affine
    ratio = np.array(volume.spacing_mm) / np.array(spacing_mm)
    # The last voxel centre must not lie beyond the border of the volume's last voxel.
    sizes = np.floor((np.array(volume.shape) - 0.5) * ratio + 1e-3).astype(int) + 1
    x, y, z = (max(2, int(size)) for size in sizes)
    return (x, y, z), volume.affine @ np.diag([*(1 / ratio), 1])


def at_spacing(
    volume: Volume,
    spacing_mm: tuple[float, float, float],
    order: int = 3,
    empty: Empty = in_memory,
) -> Volume:
    """A volume resampled to another voxel size, within its own range of intensities."""
    shape, affine = spaced_grid(volume, spacing_mm)
    if shape == volume.shape and affine is volume.affine:
        return volume
    data = resample(volume, shape, affine, order, empty)
    low, high = volume.data.min(), volume.data.max()
    for slab in slabs(shape):
        np.clip(data[slab], low, high, out=data[slab])
    return Volume(data, affine, volume.header)


def check_grid_size(
    where: object,
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    most: int = MOST_VOXELS,
) -> None:
    """Refuse a grid that is larger than intended, before memory for it is allocated.

    Args:
        where: Names the file in the error.
        shape: Shape of the grid.
        spacing_mm: Its voxel size.
        most: Voxels that it may have.

    Raises:
        DataError: If it has more.
    """
    voxels = math.prod(shape)
    if voxels > most:
        sizes, sides = ("x".join(f"{value:.6g}" for value in row) for row in (shape, spacing_mm))
        raise DataError(
            str(where),
            f"the grid would have {sizes} voxels of {sides} mm, {voxels:.3g} in all and "
            f"{4 * voxels / 1e9:.3g} GB an array; at most {most:.3g} voxels are allowed",
            "Check that the model is meant for scans of this size; give a grid by --like, or "
            "raise --max-voxels",
        )


def check_grids_meet(where: object, source: Volume, grid: Volume, least: float) -> None:
    """Refuse a grid that hardly overlaps the source that is to be resampled onto it.

    Args:
        where: Names the grid in the error.
        source: What is resampled onto the grid.
        grid: A volume whose shape and affine define the grid.
        least: Share that the source must cover of the grid, or the grid of the source.

    Raises:
        DataError: If both shares are smaller.
    """
    shares = (
        float(field_of_view(source, grid.shape, grid.affine).mean()),
        float(field_of_view(grid, source.shape, source.affine).mean()),
    )
    refuse_apart(where, *shares, least)


def refuse_apart(where: object, of_grid: float, of_source: float, least: float) -> None:
    """Raise DataError if neither covers a sufficient share of the other."""
    if max(of_grid, of_source) < least:
        raise DataError(
            str(where),
            f"the grid and the source must overlap: the source covers {of_grid:.0%} of the grid, "
            f"which covers {of_source:.0%} of the source; one must be at least {least:.0%}",
            "Check the affines, or that the files belong together",
        )
