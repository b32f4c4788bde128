"""Seams: how much larger the jumps across patch borders are than those of comparable planes.

A seam is a step of the error between the two voxels on both sides of a patch border. Two numbers
describe it: the index, a ratio that tells whether borders stand out, and the excess, in units of
intensity, that tells how large the steps are and stays what it is when noise is added.

Either is compared with nearby planes. A pattern of period 2 or 4, as transposed convolutions leave
it, would make planes at a multiple of the period stand out, and patches begin there. What it adds
is estimated from the planes of the whole volume and subtracted, so that it does not count as a
seam; distsynth.metrics.checkerboard measures such patterns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, check_same_shapes
from distsynth.metrics.views import View
from sharding.volumes.slabs import slabs

PERIOD = 4
"""Period, in voxels, of the pattern that is distinguished from a seam: two transposed convolutions
leave it."""
CONTROL_REACH = 4
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
    synthetic: View,
    target: View | None,
    borders: Borders,
    regions: Sequence[View | None] = (None,),
) -> list[Seams]:
    """Compare the jumps across patch borders with those across control planes.

    Let e = synthetic - target, and a jump |e[p] - e[p - 1]| for each pair of voxels on both
    sides of plane p, both in the region. The index is

        sum over borders of the jumps across them
        -----------------------------------------------------------------------
        sum over borders of (their pairs x the jump that their controls lead one to expect)

    where the controls of a border are the planes within 4 voxels of it that are no borders. Of each
    control, the mean jump of all planes of the volume with the same remainder by 4 is taken off,
    and that of the border's own remainder is added to their mean; borders count for neither. So
    each border is compared with its own surroundings, and neither anatomy that changes through the
    volume, nor an axis that is rougher than another, nor a pattern of period 2 or 4 looks like a
    seam. Sums run over all axes. 1.2 says that jumps at borders are 20 % larger than those inside
    patches. The excess is formed in the same way from squared jumps, to which independent noise
    adds the same everywhere, so that it drops out.

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
    if not math.prod(synthetic.shape):
        raise ValueError("the volume is empty: there is no voxel to measure")
    if len(borders) != 3:
        raise ValueError(f"borders must be given for three axes, got {len(borders)}")
    totals = np.zeros((len(regions), 2, 2))  # region, (jump, square), (found, expected)
    pairs = np.zeros(len(regions), np.int64)
    planes: dict[int, NDArray[np.intp]] = {}
    for axis, given in enumerate(borders):
        size = synthetic.shape[axis]
        own = np.unique(np.asarray(given, np.intp))
        if not len(own):
            continue
        if own[0] < 1 or own[-1] >= size:
            raise ValueError(f"borders along axis {axis} must be in 1..{size - 1}, got {own}")
        planes[axis] = own
    jumps = plane_jumps(synthetic, target, regions, list(planes))
    for axis, own in planes.items():
        for number, (sums, counts) in enumerate(zip(*jumps[axis], strict=True)):
            phases = _phases(own, sums, counts)
            for plane in own[counts[own] > 0].tolist():
                expected = _expected(plane, own, sums, counts, phases)
                if not np.isnan(expected).any():
                    totals[number, :, 0] += sums[:, plane]
                    totals[number, :, 1] += counts[plane] * expected
                    pairs[number] += counts[plane]
    return [
        _seams(jumps, squares, count)
        for (jumps, squares), count in zip(totals, pairs.tolist(), strict=True)
    ]


def seam_index(
    synthetic: Array, target: Array | None, borders: Borders, mask: Mask | None = None
) -> float:
    """The index of `seams` in one region, which must not be empty."""
    if mask is not None and not mask.any():
        raise ValueError("the mask is empty: there is no voxel to measure")
    return seams(synthetic, target, borders, (mask,))[0].index


def _expected(
    plane: int,
    borders: NDArray[np.intp],
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    phases: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What the controls of a border lead one to expect of it: the mean a pair; NaN without any.

    Args:
        plane: The border.
        borders: All of this axis.
        sums: Of jumps and of squares at each plane, shape (2, size).
        counts: Pairs at each plane, shape (size,).
        phases: What the pattern of the strides adds at each plane, shape (2, size).
    """
    near = np.arange(max(1, plane - CONTROL_REACH), min(len(counts), plane + CONTROL_REACH + 1))
    near = near[~np.isin(near, borders)]
    pairs = counts[near].sum()
    if not pairs:
        return np.full(2, math.nan)
    level = (sums[:, near] - phases[:, near] * counts[near]).sum(axis=1) / pairs
    return np.maximum(level + phases[:, plane], 0)


def _phases(
    borders: NDArray[np.intp], sums: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean jump and square of all planes of the same remainder by PERIOD that are no borders.

    Returns:
        At each plane, shape (2, size). Where borders leave no plane of some remainder, PERIOD is
        halved until they do.
    """
    planes = np.arange(len(counts))
    free = (planes > 0) & ~np.isin(planes, borders)
    period = PERIOD
    while True:
        phase = planes % period
        pairs = np.bincount(phase, counts * free, period)
        if pairs.all() or period == 1:
            break
        period //= 2
    means = [np.bincount(phase, row * free, period) / np.maximum(pairs, 1) for row in sums]
    return np.array(means)[:, phase]


def plane_jumps(
    synthetic: View, target: View | None, regions: Sequence[View | None], axes: Sequence[int]
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Of each region sums of jumps and of their squares across planes, and numbers of pairs.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape; None takes the jumps of the synthetic volume itself.
        regions: Where pairs of voxels lie.
        axes: Across which planes are taken.

    Returns:
        Axis -> shapes (regions, 2, size) and (regions, size); 0 at plane 0.
    """
    found = {
        axis: (
            np.zeros((len(regions), 2, synthetic.shape[axis])),
            np.zeros((len(regions), synthetic.shape[axis]), np.int64),
        )
        for axis in axes
    }
    for slab in slabs(synthetic.shape) if axes else ():
        # The plane before the slab, for the jumps into it.
        low, first = slab[2].start, max(0, slab[2].start - 1)
        place = (*slab[:2], slice(first, slab[2].stop))
        error = synthetic[place] if target is None else synthetic[place] - target[place]
        inside = [None if region is None else region[place] for region in regions]
        for axis in axes:
            own = slice(None) if axis == 2 else slice(low - first, None)
            offset = first if axis == 2 else 0
            layers = np.moveaxis(error[..., own], axis, 0)
            within = [None if r is None else np.moveaxis(r[..., own], axis, 0) for r in inside]
            _add_jumps(layers, within, offset, *found[axis])
    return found


def _add_jumps(
    layers: Array,
    regions: Sequence[Mask | None],
    offset: int,
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    """Add the jumps between layers, the first of which is the plane `offset`."""
    for plane in range(1, len(layers)):
        every = np.abs(layers[plane] - layers[plane - 1])
        for number, region in enumerate(regions):
            jump = every if region is None else every[region[plane] & region[plane - 1]]
            jump = jump.ravel().astype(np.float64)
            sums[number, :, offset + plane] += jump.sum(), jump @ jump
            counts[number, offset + plane] += jump.size


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
