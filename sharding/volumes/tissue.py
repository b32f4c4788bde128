"""Which voxels hold signal, by a rule that does not depend on how much background there is.

How much background a scan holds depends on its field of view and on skull-stripping. A percentile,
mean or deviation over all voxels changes with it; over tissue it does not. Tissue are the voxels
above t in intensity over the volume's low percentile, where t is the largest intensity with

    t <= SHARE * (median intensity of all voxels above t)                            (ours)

The rule walks from the brightest voxel down and never looks at what lies below t, so that voxels
may be added or removed there without changing one bit of the result. The low percentile itself is
the background's intensity where background is constant, however much of it there is.

The high percentile is taken as if tissue filled TISSUE_SHARE of the volume: 99.9 % of all voxels of
such a volume are 99.75 % of tissue. So the clip is about the paper's, and a few bright vessels do
not decide it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARE = 0.2
"""Tissue begins at this share of the median intensity of tissue. Noise of an unstripped scan lies
below it, the darkest fluid of the usual contrasts above."""
LEAST = 0.01
"""Share of the volume that tissue has at least: a few very bright voxels are not all there is."""
TISSUE_SHARE = 0.4
"""Share of a head's scan that is tissue; that of the skull-stripped heads that were tried."""
CHUNK = 2**20
"""Voxels that are looked at together."""


def tissue_start(ascending: NDArray[np.float32], low: float) -> int:
    """Where tissue begins in the sorted intensities of a volume.

    Args:
        ascending: All intensities, sorted.
        low: Intensity of the background.

    Returns:
        The index of the darkest voxel of tissue; 0 if all are.
    """
    count = len(ascending)
    least = max(1, int(LEAST * count))
    for high in range(count - least, 0, -CHUNK):
        darker = np.arange(high - 1, max(0, high - CHUNK) - 1, -1)
        # The middle one of the voxels above each of these.
        median = ascending[count - 1 - (count - 1 - darker) // 2].astype(np.float64)
        dark = ascending[darker] - low <= SHARE * (median - low)
        if dark.any():
            return high - int(np.argmax(dark))
    return 0


def quantile(ascending: NDArray[np.float32], percentile: float) -> float:
    """A percentile of sorted values, by linear interpolation between neighbours."""
    place = percentile / 100 * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    low, high = float(ascending[below]), float(ascending[above])
    return low + (place - below) * (high - low)


def mean_and_deviation(ascending: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and standard deviation of sorted values, summed from the brightest as float64."""
    chunks = [slice(max(0, high - CHUNK), high) for high in range(len(ascending), 0, -CHUNK)]
    mean = sum(float(ascending[part][::-1].sum(dtype=np.float64)) for part in chunks)
    mean /= len(ascending)
    squares = sum(
        float(np.square(ascending[part][::-1].astype(np.float64) - mean).sum()) for part in chunks
    )
    return mean, (squares / len(ascending)) ** 0.5
