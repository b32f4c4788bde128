"""Seams: how much larger the jumps across patch borders are than those nearby."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, check_not_empty, check_same_shapes

CONTROL_REACH = 4
"""Voxels from a border within which the seam index looks for planes to compare it with."""


def seam_index(
    synthetic: Array,
    target: Array | None,
    borders: Sequence[NDArray[np.integer[Any]]],
    mask: Mask | None = None,
) -> float:
    """How much larger the jumps across patch borders are than those nearby: 1 means no seam.

    Let e = synthetic - target, and a jump |e[p] - e[p - 1]| for each pair of voxels on both
    sides of plane p, both in the mask. The index is

        sum over borders of the jumps across them
        -----------------------------------------------------------------------
        sum over borders of (their pairs x the mean jump across their controls)

    where the controls of a border are the planes within 4 voxels of it that are no borders. So
    each border is compared with its own surroundings, and neither anatomy that changes through
    the volume nor an axis that is rougher than another looks like a seam. Sums run over all axes.
    1.2 says that jumps at borders are 20 % larger than those inside patches.

    Overlaps hide seams: with stride s and side n, averaging n / s patches divides the offset of
    each by that number. Borders without pairs or controls are left out, so that patches whose
    borders lie on every plane (stride 1) give NaN. A network that is worse near patch borders,
    but smoothly so, is not seen here.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape; None looks at the synthetic volume's own jumps, when there is no
            target: less sensitive, as its anatomy then is part of every jump.
        borders: Plane indices for each of the three axes: see stitch.border_planes.
        mask: Where to look.

    Returns:
        >= 0; NaN if there is no border to compare; 1 if there is no jump at all, and infinity if
        all jumps are at borders.

    Raises:
        ValueError: Also if borders are not three arrays of planes inside the volume.
    """
    check_same_shapes(synthetic, target, mask)
    check_not_empty(synthetic, mask)
    error = synthetic if target is None else synthetic - target
    if len(borders) != 3:
        raise ValueError(f"borders must be given for three axes, got {len(borders)}")
    found = expected = 0.0
    compared = False
    for axis, given in enumerate(borders):
        size = error.shape[axis]
        own = np.unique(np.asarray(given, np.intp))
        if len(own) and (own[0] < 1 or own[-1] >= size):
            raise ValueError(f"borders along axis {axis} must be in 1..{size - 1}, got {own}")
        distance = np.abs(np.arange(1, size)[:, None] - own)
        near = 1 + np.flatnonzero((distance <= CONTROL_REACH).any(axis=1))
        inside = np.setdiff1d(near, own)
        sums, counts = _jumps(error, mask, axis, near)
        for plane in own:
            controls = inside[np.abs(inside - plane) <= CONTROL_REACH]
            pairs = counts[controls].sum()
            if counts[plane] and pairs:
                found += sums[plane]
                expected += counts[plane] * sums[controls].sum() / pairs
                compared = True
    if not compared:
        return math.nan
    if expected == 0:
        return 1.0 if found == 0 else math.inf
    return float(found / expected)


def _jumps(
    error: Array, mask: Mask | None, axis: int, planes: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of jumps across each of the planes, and the number of voxel pairs; 0 elsewhere."""
    layers = np.moveaxis(error, axis, 0)
    inside = None if mask is None else np.moveaxis(mask, axis, 0)
    sums, counts = np.zeros(len(layers)), np.zeros(len(layers), np.int64)
    for plane in planes:
        jump = np.abs(layers[plane] - layers[plane - 1])
        if inside is not None:
            jump = jump[inside[plane] & inside[plane - 1]]
        sums[plane], counts[plane] = jump.sum(dtype=np.float64), jump.size
    return sums, counts
