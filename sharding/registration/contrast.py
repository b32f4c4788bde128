"""The source in the target's contrast, so that the two may be correlated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BINS = 64
"""Bins of the source's intensities."""
SMOOTHING = 1.5
"""Standard deviation, in bins, of the Gaussian that smooths the histogram."""


def in_contrast_of(
    target: NDArray[np.float32], source: NDArray[np.float32], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Give each intensity of the source the mean of the target where the source has it.

    What this leaves apart of the two is what the correlation ratio measures (Roche et al., 1998).

    Args:
        target: Intensities in [0, 1], shape (x, y, z).
        source: Intensities in [0, 1] on the same grid, roughly aligned.
        mask: Where the two are compared; None for everywhere.

    Returns:
        The source in the target's units, shape (x, y, z).
    """
    inside = np.ones(target.shape, bool) if mask is None else mask
    index = np.clip((source[inside] * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(index, minlength=BINS).astype(float)
    total = np.bincount(index, target[inside].astype(float), minlength=BINS)
    count, total = (ndimage.gaussian_filter1d(each, SMOOTHING) for each in (count, total))
    filled = count > 1e-6 * count.sum()
    middle = (np.arange(BINS) + 0.5) / BINS
    return np.interp(source, middle[filled], total[filled] / count[filled]).astype(np.float32)
