"""Registration of a source to its target: rigid, affine, deformable (section 5.1).

SimpleITK finds the linear maps, greedy the deformation. Both get images of a size that `max_voxels`
bounds, so that a volume of hundreds of millions of voxels is registered in the memory of a small
one. Everything runs in one thread: results do not depend on the machine's cores, and specimens are
what is done in parallel.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.errors import DataError
from sharding.registration import greedy, simpleitk
from sharding.registration.config import LEAST_VOXELS, Level, RegisterConfig
from sharding.registration.tool_errors import tool_errors
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume

__all__ = ["RegisterConfig", "register_affine", "register_deformable", "register_rigid"]

MARGIN = 8
"""Voxels around the target, at each level, in which a deformation may fade out."""
MASK_MARGIN = 3
"""Voxels by which a mask is widened, at each level: the object's surface is what aligns it."""


def register_rigid(
    source: Volume,
    target: Volume,
    config: RegisterConfig,
    mask: NDArray[np.bool_] | None = None,
) -> Transform:
    """Find the rotation and shift under which the source fits the target.

    It starts where the metric is best: at the headers' own alignment, at the fields of view's
    centres, or at the centres of mass.

    Args:
        source: Any grid, orientation and intensity units.
        target: Any grid, orientation and intensity units.
        config: Metric and levels.
        mask: Where the target counts, on its grid.

    Returns:
        Target world to source world.

    Raises:
        DataError: If there is no overlap.
    """
    levels = [_level(source, target, mask, shrink, config) for shrink in config.affine_shrink]
    with _may_give_up("SimpleITK"):
        return Transform(simpleitk.rigid(levels, _starts(levels[0]), config))


def register_affine(
    source: Volume,
    target: Volume,
    config: RegisterConfig,
    mask: NDArray[np.bool_] | None = None,
    start: Transform | None = None,
) -> Transform:
    """Find the affine map under which the source fits the target.

    Args:
        source: Any grid, orientation and intensity units.
        target: Any grid, orientation and intensity units.
        config: Metric and levels.
        mask: Where the target counts, on its grid.
        start: An affine map to start from; None finds a rigid one first.

    Returns:
        Target world to source world.

    Raises:
        DataError: If there is no overlap, or the map would mirror the source.
    """
    levels = [_level(source, target, mask, shrink, config) for shrink in config.affine_shrink]
    with _may_give_up("SimpleITK"):
        if start is None:
            start = Transform(simpleitk.rigid(levels, _starts(levels[0]), config))
        found = simpleitk.affine(levels, start.affine, config)
    determinant = float(np.linalg.det(found[:3, :3]))
    if determinant <= 0:
        raise DataError(
            "registration",
            f"the affine map would mirror the source: its determinant is {determinant:.3g}",
            "Check the orientation of both files, or leave out the step affine",
        )
    return Transform(found)


def register_deformable(
    source: Volume,
    target: Volume,
    start: Transform,
    config: RegisterConfig,
    mask: NDArray[np.bool_] | None = None,
) -> Transform:
    """Add the smooth deformation under which the source fits best.

    Args:
        source: Any grid, orientation and intensity units.
        target: Any grid, orientation and intensity units.
        start: Its affine map is kept.
        config: Levels, radius and smoothing.
        mask: Where the target counts, on its grid.

    Returns:
        The same affine map with a field on a grid of about `deform_shrink` voxels.

    Raises:
        DataError: If greedy gives up.
    """
    level = deformable_level(source, target, start, config, mask)
    with _may_give_up("greedy"):
        field = greedy.deformable(level, config)
    return Transform(start.affine, field, level[0].affine)


def deformable_level(
    source: Volume,
    target: Volume,
    start: Transform,
    config: RegisterConfig,
    mask: NDArray[np.bool_] | None = None,
) -> Level:
    """Target, source and mask on one padded grid, the source moved by the affine map of a start."""
    fixed, moving, inside = _level(source, target, mask, config.deform_shrink, config)
    fixed, inside = _padded(fixed, inside)
    # On one grid, so that neither obliqueness nor a shear of the source is the tool's concern.
    moved, _ = Transform(start.affine).apply(moving, fixed.shape, fixed.affine, order=1)
    return fixed, fixed.with_data(moved), inside


def _may_give_up(tool: str) -> contextlib.AbstractContextManager[None]:
    remedy = "Check that the files belong together, or change the --register options"
    return tool_errors("registration", f"{tool} cannot register this pair", remedy)


def _level(
    source: Volume,
    target: Volume,
    mask: NDArray[np.bool_] | None,
    shrink: int,
    config: RegisterConfig,
) -> Level:
    """Both volumes with voxels of about `shrink` of the target's."""
    size_mm = shrink * min(target.spacing_mm)
    fixed = shrunken(target, size_mm, config.max_voxels)
    moving = shrunken(source, size_mm, config.max_voxels)
    if mask is None:
        return fixed, moving, None
    share = shrunken(target.with_data(mask), size_mm, config.max_voxels, scale=False).data
    wide = ndimage.binary_dilation(share > 0.25, iterations=MASK_MARGIN)
    return fixed, moving, np.asarray(wide, bool)


def shrunken(volume: Volume, size_mm: float, max_voxels: int, scale: bool = True) -> Volume:
    """Means over blocks of voxels.

    Args:
        volume: What to shrink.
        size_mm: Voxel size to come close to; an axis that is coarser stays as it is.
        max_voxels: Blocks grow until there are no more.
        scale: Clip to the 0.1 and 99.9 percentiles and map to [0, 1].
    """
    largest = [max(1, size // LEAST_VOXELS) for size in volume.shape]
    while True:
        blocks = [
            max(1, min(round(size_mm / side), most))
            for side, most in zip(volume.spacing_mm, largest, strict=True)
        ]
        sizes = [size // block for size, block in zip(volume.shape, blocks, strict=True)]
        if np.prod(sizes) <= max_voxels or blocks == largest:
            break
        size_mm *= 1.26
    kept = volume.data[tuple(slice(n * k) for n, k in zip(sizes, blocks, strict=True))]
    (x, y, z), (a, b, c) = sizes, blocks
    data = kept.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5), dtype=np.float32)
    # The mean belongs to the block's centre, not to its first voxel.
    to_voxel = np.diag([*map(float, blocks), 1.0])
    to_voxel[:3, 3] = (np.array(blocks) - 1) / 2
    if scale:
        low, high = np.percentile(data, (0.1, 99.9))
        data = np.clip((data - low) / max(high - low, 1e-12), 0, 1)
    return Volume(data.astype(np.float32), volume.affine @ to_voxel)


def _starts(level: Level) -> list[NDArray[np.float64]]:
    """Shifts to begin from: none, centre to centre, mass to mass."""
    target, source, _ = level
    shifts = [
        np.zeros(3),
        _world(source, (np.array(source.shape) - 1) / 2)
        - _world(target, (np.array(target.shape) - 1) / 2),
        _world(source, np.array(ndimage.center_of_mass(source.data)))
        - _world(target, np.array(ndimage.center_of_mass(target.data))),
    ]
    starts = []
    for shift in shifts:
        start = np.eye(4)
        start[:3, 3] = shift
        starts.append(start)
    return starts


def _world(volume: Volume, index: NDArray[np.float64]) -> NDArray[np.float64]:
    return volume.affine[:3, :3] @ index + volume.affine[:3, 3]


def _padded(
    volume: Volume, mask: NDArray[np.bool_] | None
) -> tuple[Volume, NDArray[np.bool_] | None]:
    """Pad a volume: its border, where a field is held, must not be the object's."""
    shift = np.eye(4)
    shift[:3, 3] = -MARGIN
    data = np.pad(volume.data, MARGIN, mode="edge")
    wide = replace(volume, data=data, affine=volume.affine @ shift)
    return wide, None if mask is None else np.pad(mask, MARGIN).astype(bool)
