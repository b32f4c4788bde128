"""The smooth field of N4 (Tustison et al., 2010), for volumes on a regular grid.

The logarithm of a scan is that of the tissue plus a smooth field. In each iteration the histogram
of the corrected logarithms is sharpened by a Wiener filter, what the sharpened values do not
explain is smoothed by cubic B-splines, and the result is added to the field; from level to level
the control points lie half as far apart. ITK's implementation is for scattered data. On a regular
grid every B-spline sum is three products of small matrices, in a thirtieth of its time or less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.volumes.resample import cubic_weights

ORDER = 3
"""Of the B-splines."""
BINS, PADDED = 200, 512
"""Bins of the histogram, and with empty ones on both sides."""
FULL_WIDTH = 0.15
"""Full width at half maximum of the Gaussian that blurs the histogram, in logarithms."""
WIENER_NOISE = 0.01
"""Of the filter that takes the blur away."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BiasField:
    """A smooth field, by its control points.

    Attributes:
        lattice: Coefficients of the field's logarithm, a control point each.
    """

    lattice: Array

    def log_field(self, shape: Sequence[int]) -> Array:
        """The field's logarithm on a grid of this shape, whose ends are those of the field."""
        bases = [basis(size, count) for size, count in zip(shape, self.lattice.shape, strict=True)]
        return product(self.lattice, bases)


def fit_field(
    image: NDArray[np.floating],
    mask: NDArray[np.bool_],
    control_points: Sequence[int],
    iterations: Sequence[int],
    convergence: float,
) -> BiasField:
    """Fit a field to an image.

    Args:
        image: Intensities, not negative, shape (x, y, z); what is 0 is left as logarithm 0.
        mask: Voxels to fit it to, at least one.
        control_points: Of the coarsest level along each axis, at least ORDER + 1.
        iterations: Most iterations of each level, coarse to fine.
        convergence: A level ends when the field changes by less than this share.
    """
    inside = mask.ravel()
    log = np.zeros(image.shape)
    np.log(image, out=log, where=mask & (image > 0))
    values = log.ravel()[inside]
    lattice = np.zeros(tuple(control_points))
    field = np.zeros_like(values)
    for level, most in enumerate(iterations):
        if level:
            lattice = refined(lattice)
        smooth = Smoother(mask, lattice.shape)
        for _ in range(most):
            corrected = values - field
            lattice = lattice + smooth.fit(corrected - sharpened(corrected))
            before, field = field, smooth.evaluate(lattice)
            if _change(before, field) <= convergence:
                break
    return BiasField(lattice)


def sharpened(values: Array) -> Array:
    """What each value is expected to be without the blur of the histogram."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return values.copy()
    width = (high - low) / (BINS - 1)
    places = (values - low) / width
    first = np.minimum(places.astype(np.int64), BINS - 1)
    share = places - first
    counts = np.bincount(first, 1 - share, BINS + 1) + np.bincount(first + 1, share, BINS + 1)
    margin = (PADDED - BINS) // 2
    histogram = np.zeros(PADDED)
    histogram[margin : margin + BINS] = counts[:BINS]

    blur = np.fft.fft(_gaussian(FULL_WIDTH / width))
    sharper = np.conj(blur) / (np.conj(blur) * blur + WIENER_NOISE)
    unblurred = np.maximum(np.fft.ifft(np.fft.fft(histogram) * sharper.real).real, 0)
    centres = low + (np.arange(PADDED) - margin) * width
    above, below = (
        np.fft.ifft(np.fft.fft(part) * blur).real for part in (centres * unblurred, unblurred)
    )
    expected = np.divide(above, below, out=np.zeros(PADDED), where=below != 0)
    expected = expected[margin : margin + BINS]
    return np.interp(places, np.arange(BINS), expected)


class Smoother:
    """Fits cubic B-splines to values in a mask, and evaluates them there.

    The fit is that of Lee et al. (1997): each value pulls at the control points around it, and a
    control point takes the mean of what they ask for, weighted by the square of their influence.

    Args:
        mask: Where there are values.
        control_points: Along each axis.
    """

    def __init__(self, mask: NDArray[np.bool_], control_points: Sequence[int]) -> None:
        self._mask = mask
        self._bases = [
            basis(size, count) for size, count in zip(mask.shape, control_points, strict=True)
        ]
        squares = [np.square(each) for each in self._bases]
        self._cubes = [(square * each).T for square, each in zip(squares, self._bases, strict=True)]
        lines = [square.sum(axis=1) for square in squares]
        self._influence = np.einsum("i,j,k->ijk", *lines)[mask]
        self._weights = product(mask.astype(np.float64), [square.T for square in squares])
        self._values = np.zeros(mask.shape)

    def fit(self, values: Array) -> Array:
        """Control points for the values in the mask, in its order."""
        self._values[self._mask] = values / self._influence
        asked = product(self._values, self._cubes)
        return np.divide(asked, self._weights, out=np.zeros_like(asked), where=self._weights > 0)

    def evaluate(self, lattice: Array) -> Array:
        """The spline in the mask, in its order."""
        return product(lattice, self._bases)[self._mask]


def basis(size: int, control_points: int) -> Array:
    """Weights of the control points at evenly spaced places: shape (size, control points).

    The first and the last place are the ends of the spline.
    """
    spans = control_points - ORDER
    places = np.linspace(0, spans, size) if size > 1 else np.zeros(1)
    span = np.minimum(places.astype(np.int64), spans - 1)
    t = places - span
    weights = np.zeros((size, control_points))
    for step, row in enumerate(cubic_weights(t)):
        weights[np.arange(size), span + step] = row
    return weights


def refined(lattice: Array) -> Array:
    """The same spline with twice as many spans along each axis."""
    for axis in range(lattice.ndim):
        old = np.moveaxis(lattice, axis, 0)
        spans = len(old) - ORDER
        new = np.empty((2 * spans + ORDER, *old.shape[1:]))
        new[0::2] = (old[:-1] + old[1:])[: len(new[0::2])] / 2
        new[1::2] = ((old[:-2] + 6 * old[1:-1] + old[2:]) / 8)[: len(new[1::2])]
        lattice = np.moveaxis(new, 0, axis)
    return lattice


def product(array: Array, matrices: Sequence[Array]) -> Array:
    """Each axis of an array multiplied by a matrix of shape (new side, side)."""
    for matrix in matrices:
        # The axis that is multiplied goes last, so that after all of them the order is the old.
        array = np.tensordot(array, matrix, (0, 1))
    return array


def _gaussian(width: float) -> Array:
    """The blur of a histogram about its first bin, of a full width at half maximum in bins."""
    distance = np.minimum(np.arange(PADDED), PADDED - np.arange(PADDED))
    height = 2 * math.sqrt(math.log(2) / math.pi) / width
    return height * np.exp(-4 * math.log(2) * np.square(distance / width))


def _change(before: Array, after: Array) -> float:
    """The coefficient of variation of the ratio of two fields, given by their logarithms."""
    ratio = np.exp(before - after)
    spread = float(ratio.std(ddof=1)) if len(ratio) > 1 else 0.0
    return spread / float(ratio.mean())
