"""Seams: how much larger the jumps across patch borders are than those of comparable planes.

A seam is a step of the error between the two voxels on both sides of a patch border. Two numbers
describe it: the index, a ratio that tells whether borders stand out, and the excess, in units of
intensity, that tells how large the steps are and stays what it is when noise is added.

Either is compared with control planes a multiple of PERIOD voxels away, so that a pattern of
period 2 or 4, as transposed convolutions leave it, is the same at a border and at its controls
and reads as no seam; distsynth.metrics.checkerboard measures such patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, check_not_empty, check_same_shapes

PERIOD = 4
"""Controls lie this many voxels, or a multiple, from their border, wherever there are such."""
CONTROL_REACH = 8
"""Voxels from a border within which planes are compared with it."""
Borders = Sequence[NDArray[np.integer[Any]]]
"""Plane indices for each of the three axes: see distsynth.inference.stitching.border_planes."""


@dataclass(frozen=True)
class Seams:
    """What the borders of a volume's patches show.

    Attributes:
        index: Mean jump at borders over that at their controls: 1 means no seam. NaN if there is
            nothing to compare, 1 if there is no jump at all, infinity if all jumps are at borders.
        excess: Root of the mean square jump at borders less that at their controls, in the units
            of the volume: 0 means no seam, d is what steps of size d everywhere read, however
            much noise there is beside them. Negative (the root of the amount by which it is
            lower) where borders are smoother than their surroundings, as under smooth weights.
            NaN if there is nothing to compare.
    """

    index: float
    excess: float


def seams(
    synthetic: Array,
    target: Array | None,
    borders: Borders,
    regions: Sequence[Mask | None] = (None,),
) -> list[Seams]:
    """Compare the jumps across patch borders with those across control planes.

    Let e = synthetic - target, and a jump |e[p] - e[p - 1]| for each pair of voxels on both
    sides of plane p, both in the region. The index is

        sum over borders of the jumps across them
        -----------------------------------------------------------------------
        sum over borders of (their pairs x the mean jump across their controls)

    where the controls of a border are the planes at 4 and 8 voxels from it that are no borders;
    if all of those are, the ones at 2 and 6, and if those are too, all within 8. So each border
    is compared with its own surroundings, and neither anatomy that changes through the volume, nor
    an axis that is rougher than another, nor a pattern of period 2 or 4 looks like a seam. Sums run
    over all axes. 1.2 says that jumps at borders are 20 % larger than those inside patches. The
    excess is formed in the same way from squared jumps, to which independent noise adds the same
    everywhere, so that it drops out.

    Overlaps hide seams: with stride s and side n, averaging n / s patches divides the offset of
    each by that number. Borders without pairs or controls are left out, so that patches whose
    borders lie on every plane (stride 1) give NaN. A network that is worse near patch borders,
    but smoothly so, is not seen here; nor is a pattern of another period than 1, 2 or 4 told from
    a seam, unless the same planes of a prediction without windows are at hand.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape; None looks at the synthetic volume's own jumps, when there is no
            target: less sensitive, as its anatomy then is part of every jump.
        borders: Plane indices for each of the three axes.
        regions: Where to look, each by itself; None means everywhere. An empty region has NaN.

    Returns:
        One for each region.

    Raises:
        ValueError: If shapes differ, the volume is empty, or borders are not three arrays of
            planes inside the volume.
    """
    check_same_shapes(synthetic, target, *regions)
    check_not_empty(synthetic, None)
    error = synthetic if target is None else synthetic - target
    if len(borders) != 3:
        raise ValueError(f"borders must be given for three axes, got {len(borders)}")
    totals = np.zeros((len(regions), 2, 2))  # region, (jump, square), (found, expected)
    pairs = np.zeros(len(regions), np.int64)
    for axis, given in enumerate(borders):
        size = error.shape[axis]
        own = np.unique(np.asarray(given, np.intp))
        if len(own) and (own[0] < 1 or own[-1] >= size):
            raise ValueError(f"borders along axis {axis} must be in 1..{size - 1}, got {own}")
        controls = {int(plane): control_planes(int(plane), own, size) for plane in own}
        wanted = sorted({*controls, *(p for found in controls.values() for p in found)})
        sums, counts = _jumps(error, regions, axis, wanted)
        for plane, found in controls.items():
            compared = counts[:, found].sum(axis=1)
            usable = (counts[:, plane] > 0) & (compared > 0)
            pairs += np.where(usable, counts[:, plane], 0)
            share = np.where(usable, counts[:, plane] / np.maximum(compared, 1), 0)
            totals[..., 0] += np.where(usable[:, None], sums[:, :, plane], 0)
            totals[..., 1] += share[:, None] * sums[:, :, found].sum(axis=2)
    return [
        _seams(jumps, squares, count)
        for (jumps, squares), count in zip(totals, pairs.tolist(), strict=True)
    ]


def seam_index(
    synthetic: Array, target: Array | None, borders: Borders, mask: Mask | None = None
) -> float:
    """The index of `seams` in one region, which must not be empty."""
    check_not_empty(synthetic, mask)
    return seams(synthetic, target, borders, (mask,))[0].index


def control_planes(plane: int, borders: NDArray[np.intp], size: int) -> list[int]:
    """The planes that a border is compared with: see seams."""
    taken = set(borders.tolist())
    for period in (PERIOD, 2, 1):
        steps = range(period, CONTROL_REACH + 1, period)
        near = (plane + sign * step for step in steps for sign in (-1, 1))
        if found := sorted(p for p in near if 0 < p < size and p not in taken):
            return found
    return []


def _jumps(
    error: Array, regions: Sequence[Mask | None], axis: int, planes: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of each region sums of jumps and of their squares across planes, and numbers of pairs.

    Returns:
        Shapes (regions, 2, size) and (regions, size); 0 at planes that were not asked for.
    """
    layers = np.moveaxis(error, axis, 0)
    inside = [None if region is None else np.moveaxis(region, axis, 0) for region in regions]
    sums = np.zeros((len(regions), 2, len(layers)))
    counts = np.zeros((len(regions), len(layers)), np.int64)
    for plane in planes:
        every = np.abs(layers[plane] - layers[plane - 1])
        for number, region in enumerate(inside):
            jump = every if region is None else every[region[plane] & region[plane - 1]]
            jump = jump.ravel().astype(np.float64)
            sums[number, :, plane] = jump.sum(), jump @ jump
            counts[number, plane] = jump.size
    return sums, counts


def _seams(jumps: NDArray[np.float64], squares: NDArray[np.float64], pairs: int) -> Seams:
    """From (found, expected) of jumps and of squared jumps over so many pairs."""
    if not pairs:
        return Seams(math.nan, math.nan)
    found, expected = jumps.tolist()
    more = float(squares[0] - squares[1]) / pairs
    excess = math.copysign(math.sqrt(abs(more)), more)
    if expected == 0:
        return Seams(1.0 if found == 0 else math.inf, excess)
    return Seams(found / expected, excess)
