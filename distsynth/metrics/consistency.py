"""Consistency: whether a synthetic volume agrees with its source at the source's resolution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, masked_parts

PART = 2**18
"""Voxels that are worked on at a time: four polynomials of each, in float64, and copies of them."""


def consistency_error(degraded: Array, source: Array, mask: Mask | None = None) -> float:
    """Does the synthetic volume, seen at the source's resolution, agree with the source?

    Contrasts differ between fields, so the cubic polynomial of the degraded synthetic intensity
    that explains the source best (least squares, in the mask, fitted on this specimen) is taken
    off first. What remains, over the spread of the source, is the error.

    It finds structure that was moved, lost or invented at the source's resolution, without any
    target. It says nothing on detail finer than the source's voxels, and little on contrast: a
    blurred copy of the source scores near 0. Noise of the source and contrast that no global map
    explains keep it above 0 even for a perfect synthetic volume: compare with the same
    number for the degraded target. The polynomial need not be monotone.

    Args:
        degraded: Synthetic volume brought to the source's resolution, on the source's own grid.
        source: The source as scanned, same shape.
        mask: Voxels to compare.

    Returns:
        Root mean squared residual over the standard deviation of the source, unitless: 0 = fully
        explained by the source's contrast, 1 = nothing explained.

    Raises:
        ValueError: Also if the source is constant in the mask.
    """
    return consistency_fit(degraded, source, mask).error


@dataclass(frozen=True, eq=False)
class ConsistencyFit:
    """The polynomial of a degraded synthetic volume that explains the source best.

    Attributes:
        middle: Of the degraded intensities.
        half: Half of their range; 0 if they are all equal.
        weights: Of Legendre's polynomials up to the third.
        mean: Of the source.
        spread: Its standard deviation.
        error: Root mean squared residual.
    """

    middle: float
    half: float
    weights: NDArray[np.float64]
    mean: float
    spread: float
    error: float = math.nan

    def terms(self, degraded: Array) -> NDArray[np.float64]:
        """The polynomials at some intensities, a row each."""
        apart = degraded.astype(np.float64).ravel() - self.middle
        scaled = apart / self.half if self.half > 0 else np.zeros_like(apart)
        return np.asarray(np.polynomial.legendre.legvander(scaled, 3), np.float64)

    def residual(self, degraded: Array, source: Array) -> NDArray[np.float64]:
        """What of the source is not explained, in its standard deviations, a value a voxel."""
        centred = source.astype(np.float64).ravel() - self.mean
        return (centred - self.terms(degraded) @ self.weights) / self.spread


def consistency_fit(degraded: Array, source: Array, mask: Mask | None = None) -> ConsistencyFit:
    """The fit behind consistency_error, which has its arguments and errors."""

    def parts() -> Iterator[list[NDArray[np.float64]]]:
        for part in masked_parts(mask, degraded, source):
            first, second = (values.ravel() for values in part)
            for low in range(0, max(first.size, 1), PART):
                piece = slice(low, low + PART)
                yield [values[piece].astype(np.float64) for values in (first, second)]

    low, high, total, count = math.inf, -math.inf, 0.0, 0
    for a, b in parts():
        if a.size:
            low, high = min(low, float(a.min())), max(high, float(a.max()))
        total += float(b.sum())
        count += b.size
    mean = total / count
    spread = math.sqrt(sum(float(np.square(b - mean).sum()) for _, b in parts()) / count)
    if spread == 0:
        raise ValueError("the source is constant in the mask: there is nothing to agree with")
    fit = ConsistencyFit((high + low) / 2, (high - low) / 2, np.zeros(4), mean, spread)
    gram, moment = np.zeros((4, 4)), np.zeros(4)
    for a, b in parts():
        terms = fit.terms(a)
        gram += terms.T @ terms
        moment += terms.T @ (b - mean)
    fit = replace(fit, weights=np.linalg.lstsq(gram, moment, rcond=None)[0])
    left = sum(float((fit.residual(a, b) ** 2).sum()) for a, b in parts())
    return replace(fit, error=math.sqrt(left / count))
