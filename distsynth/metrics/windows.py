"""Moments in the Gaussian windows of SSIM, and SSIM from them.

A window of 11 voxels along each axis is a product of matrices that hold its weights, in blocks of
rows, which takes a third of the time of a filter of lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SSIM_WINDOW = 11
"""Voxels along a side of the window of SSIM: Gaussian, sigma 1.5, cut at 3.5 sigma."""
SIGMA, REACH = 1.5, SSIM_WINDOW // 2
BLOCK = 48
"""Rows of a matrix that are multiplied at once."""

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and population variance of an image in the window around each voxel.

    Attributes:
        mean: Shape of the image.
        variance: Same shape.
    """

    mean: Array
    variance: Array

    def __getitem__(self, part: tuple[slice, ...]) -> Moments:
        """Those of a part of the image."""
        return Moments(self.mean[part], self.variance[part])


def moments(values: Array) -> Moments:
    """Moments of an image of two or three axes, each of SSIM_WINDOW voxels or more."""
    mean = window_means(values)
    variance = window_means(np.square(values))
    variance -= np.square(mean)
    return Moments(mean, variance)


def similarity(first: Moments, second: Moments, mean_product: Array, data_range: float) -> Array:
    """SSIM around each voxel (Wang et al. 2004, eq. 13).

    Args:
        first: Of one image.
        second: Of the other, same shape.
        mean_product: Window means of the product of both.
        data_range: L of the constants, in the units of the images.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    means = first.mean * second.mean
    found = 2 * (mean_product - means) + c2
    found *= 2 * means + c1
    found /= np.square(first.mean) + np.square(second.mean) + c1
    found /= first.variance + second.variance + c2
    return found


def window_means(values: Array) -> Array:
    """The weighted mean of the window around each voxel; the image is reflected at its faces.

    Args:
        values: Two or three axes.

    Raises:
        ValueError: If a side is under SSIM_WINDOW voxels.
    """
    if min(values.shape) < SSIM_WINDOW:
        raise ValueError(
            f"windows of SSIM need {SSIM_WINDOW} voxels along each axis, got {values.shape}"
        )
    values = np.ascontiguousarray(values)
    for axis in range(values.ndim):
        values = _along(values, axis)
    return values


def _along(values: Array, axis: int) -> Array:
    """Window means along one axis of a contiguous array."""
    side, out = values.shape[axis], np.empty_like(values)
    weights = _weights(side).astype(values.dtype, copy=False)
    for low in range(0, side, BLOCK):
        high = min(low + BLOCK, side)
        read, write = slice(max(0, low - REACH), min(side, high + REACH)), slice(low, high)
        block = weights[write, read]
        if axis == 0:
            np.matmul(
                block,
                values[read].reshape(block.shape[1], -1),
                out=out[write].reshape(block.shape[0], -1),
            )
        elif axis == values.ndim - 1:
            np.matmul(values[..., read], block.T, out=out[..., write])
        else:
            np.matmul(block, values[:, read], out=out[:, write])
    return out


@cache
def _weights(side: int) -> NDArray[np.float64]:
    """What each voxel of a line counts in the window around each, shape (side, side)."""
    steps = np.arange(-REACH, REACH + 1)
    window = np.exp(-0.5 * np.square(steps / SIGMA))
    window /= window.sum()
    places = np.arange(side)[:, None] + steps
    places = np.where(places < 0, -places - 1, places)
    places = np.where(places >= side, 2 * side - 1 - places, places)
    found = np.zeros((side, side))
    np.add.at(found, (np.arange(side)[:, None], places), window)
    found.flags.writeable = False
    return found
