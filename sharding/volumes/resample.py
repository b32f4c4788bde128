"""A volume on another grid in the same world space, slab by slab."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sharding.volumes.slabs import Empty, by_slabs, filter_lines, in_memory, slabs
from sharding.volumes.volume import Volume

FWHM_TO_SIGMA = 1 / 2.355
"""A Gaussian of one voxel's full width at half maximum stands for a scanner's point spread."""

SPLINE_PAD = 12
"""Voxels by which a volume is continued before it is turned into spline coefficients, so that the
border has no echo: the pole's 12th power is below 2e-7."""


BLOCK = 256
"""Rows of an interpolation's matrix that are multiplied at once."""


def field_of_view(
    source: Volume,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    empty: Empty = in_memory,
) -> NDArray[np.bool_]:
    """Grid voxels whose centre lies within the source's voxels, borders included."""
    matrix = np.linalg.inv(source.affine) @ affine
    inside = empty(shape, np.bool_)
    for slab in slabs(shape):
        grid = np.ogrid[slab]
        part = np.ones(inside[slab].shape, bool)
        for row, size in zip(matrix[:3], source.shape, strict=True):
            # An axis that does not count is left out: then a row is computed in place of a volume.
            index = sum(step * axis for step, axis in zip(row[:3], grid, strict=True) if step)
            index = index + row[3]
            part &= (index > -0.5 - 1e-3) & (index < size - 0.5 + 1e-3)
        inside[slab] = part
    return inside


def resample(
    volume: Volume,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    order: int,
    empty: Empty = in_memory,
) -> NDArray[np.float32]:
    """Interpolate a volume on another grid in the same world space.

    Where the grid is coarser than the volume, the volume is first blurred by a Gaussian whose full
    width at half maximum is one voxel of the grid.

    Args:
        volume: What to sample.
        shape: Shape of the grid.
        affine: Grid index to world millimetres, shape (4, 4).
        order: 0 nearest, 1 linear, 3 cubic B-spline.
        empty: Makes the arrays that are as large as a volume.

    Returns:
        float32, shape `shape`; the volume's border value beyond its field of view.
    """
    matrix = np.linalg.inv(volume.affine) @ affine
    # Rounding in an inverted affine would otherwise turn the identity into an interpolation.
    matrix = np.where(np.abs(matrix - matrix.round()) < 1e-6, matrix.round(), matrix)
    data = volume.data
    steps = np.abs(matrix[:3, :3]).max(axis=1)
    if order > 0 and (steps > 1.01).any():
        data = blurred(data, np.where(steps > 1.01, steps * FWHM_TO_SIGMA, 0), empty)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    on_grid = empty(shape)
    if np.array_equal(linear, np.eye(3)) and not offset.any() and shape == volume.shape:
        for slab in slabs(shape):
            on_grid[slab] = data[slab]
        return on_grid
    if order > 1:
        data, offset = spline_coefficients(data, order, empty), offset + SPLINE_PAD
    diagonal = np.array_equal(linear, np.diag(np.diag(linear)))
    if diagonal and order == 3:
        places = [
            start + step * np.arange(size)
            for start, step, size in zip(offset, np.diag(linear), shape, strict=True)
        ]
        for slab in slabs(shape):
            part = [line[cut] for line, cut in zip(places, slab, strict=True)]
            on_grid[slab] = _cubic_along_axes(data, part)
        return on_grid
    for slab in slabs(shape):
        ndimage.affine_transform(
            data,
            np.diag(linear) if diagonal else linear,
            (offset + linear[:, 2] * slab[2].start).tolist(),
            output=on_grid[slab],
            order=order,
            mode="nearest",
            prefilter=False,
        )
    return on_grid


def _cubic_along_axes(data: NDArray, places: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Cubic splines at the product of places along each axis: three products of matrices.

    Each voxel of a grid whose axes are those of the data has 12 weights so, instead of 64.

    Args:
        data: Coefficients, shape (x, y, z); the outermost ones continue them.
        places: Along each axis, in voxels of the data; those beyond it are moved to its border.
    """
    matrices, cut = [], []
    for line, size in zip(places, data.shape, strict=True):
        at = np.clip(line, 0, size - 1)
        first = np.floor(at).astype(np.int64)
        t = at - first
        low, high = max(0, int(first.min()) - 1), min(size, int(first.max()) + 3)
        matrix = np.zeros((len(at), high - low))
        for step, weight in enumerate(cubic_weights(t), start=-1):
            index = np.clip(first + step, 0, size - 1) - low
            np.add.at(matrix, (np.arange(len(at)), index), weight)
        matrices.append(matrix)
        cut.append(slice(low, high))
    values = np.ascontiguousarray(data[tuple(cut)], np.float64)
    # The axes that lose most voxels come first, so that the arrays between are small.
    for axis in sorted(range(3), key=lambda axis: len(places[axis]) / values.shape[axis]):
        values = _multiplied(values, matrices[axis], axis)
    return values


def cubic_weights(t: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Weights of the four cubic B-splines around places that lie a share `t` after the second."""
    rows = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    return [row / 6 for row in rows]


def _multiplied(
    values: NDArray[np.float64], matrix: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """An axis of an array multiplied by a banded matrix of shape (new side, side).

    Long ones go by blocks of rows, each with the columns that it uses.
    """
    if len(matrix) <= BLOCK:
        return _product(values, matrix, axis)
    parts = []
    for low in range(0, len(matrix), BLOCK):
        rows = matrix[low : low + BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        columns = slice(used[0], used[-1] + 1)
        cut = (*[slice(None)] * axis, columns)
        parts.append(_product(values[cut], rows[:, columns], axis))
    return np.concatenate(parts, axis)


def _product(
    values: NDArray[np.float64], matrix: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """An axis of an array multiplied by a matrix, without transposing."""
    if axis == 0:
        return (matrix @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
    return matrix @ values if axis == 1 else values @ matrix.T


def blurred(
    data: NDArray[np.float32], sigma: NDArray[np.float64], empty: Empty = in_memory
) -> NDArray[np.float32]:
    """A volume blurred by a Gaussian of this many voxels along each axis."""
    found = by_slabs(lambda slab: slab, data, empty)

    def blur(lines: NDArray, axis: int, out: NDArray) -> None:
        if sigma[axis] > 0:
            ndimage.gaussian_filter1d(lines, sigma[axis], axis, output=out, mode="nearest")

    filter_lines(blur, found)
    return found


def spline_coefficients(
    data: NDArray[np.float32], order: int, empty: Empty = in_memory
) -> NDArray[np.float64]:
    """B-spline coefficients of a volume that its border continues by SPLINE_PAD voxels."""
    pad = SPLINE_PAD
    found = empty([size + 2 * pad for size in data.shape], np.float64)
    for slab in slabs(found.shape):
        planes = (np.arange(found.shape[2])[slab[2]] - pad).clip(0, data.shape[2] - 1)
        found[slab] = np.pad(data[:, :, planes], ((pad, pad), (pad, pad), (0, 0)), mode="edge")

    def coefficients(lines: NDArray, axis: int, out: NDArray) -> None:
        ndimage.spline_filter1d(lines, order, axis, out, "nearest")  # type: ignore

    filter_lines(coefficients, found)
    return found
