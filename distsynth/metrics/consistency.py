"""Consistency: whether a synthetic volume agrees with its source at the source's resolution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, masked


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
    residual = consistency_residual(degraded, source, mask)
    return float(np.sqrt(np.mean(residual**2)))


def consistency_residual(
    degraded: Array, source: Array, mask: Mask | None = None
) -> NDArray[np.float64]:
    """The residual at each voxel of the mask, in order, of which consistency_error is the summary.

    In standard deviations of the source; arguments and errors as there.
    """
    a, b = (values.astype(np.float64).ravel() for values in masked(mask, degraded, source))
    spread = b.std()
    if spread == 0:
        raise ValueError("the source is constant in the mask: there is nothing to agree with")
    middle, half = (a.max() + a.min()) / 2, (a.max() - a.min()) / 2
    scaled = (a - middle) / half if half > 0 else np.zeros_like(a)
    terms = np.polynomial.legendre.legvander(scaled, 3)
    centred = b - b.mean()
    weights = np.linalg.lstsq(terms.T @ terms, terms.T @ centred, rcond=None)[0]
    return (centred - terms @ weights) / spread
