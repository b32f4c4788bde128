"""How far overlapping windows disagree about one and the same voxel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import check_same_shapes
from distsynth.metrics.views import View
from sharding.volumes.slabs import slabs


@dataclass(frozen=True, eq=False)
class Overlap:
    """The spread of the windows' predictions around their mean, voxel by voxel.

    Attributes:
        variance: Weighted variance of what the windows predict at a voxel, sum w x² / sum w less
            the square of the mean, in standardised units squared; shape (x, y, z).
        freedom: 1 - sum w² / (sum w)², same shape: by how much that variance underestimates
            the one of single windows. 0 where only one window lies, 1 - 1/n for n equal weights.
    """

    variance: NDArray[np.float32]
    freedom: View

    def disagreement(self, mask: View | None = None) -> float:
        """Standard deviation of single windows around their mean, over a region.

        The variances of all voxels are summed and divided by the sum of their freedom, so that the
        result does not depend on how many windows overlap; voxels in a single window count nothing.
        0 means that all windows agree, as they do for a network that sees no border. It needs no
        target, finds what averaging hides from the seam index, and rises with any dependence on
        where a window lies.

        Args:
            mask: Where to look; None means everywhere.

        Returns:
            In standardised units; NaN if no voxel of the region lies in two windows.

        Raises:
            ValueError: If shapes differ.
        """
        check_same_shapes(self.variance, self.freedom, mask)
        spread, total, count = 0.0, 0.0, 0
        for slab in slabs(self.variance.shape):
            variance, freedom = self.variance[slab], self.freedom[slab]
            if mask is not None:
                variance, freedom = variance[mask[slab]], freedom[mask[slab]]
            spread += float(variance.sum(dtype=np.float64))
            total += float(freedom.sum(dtype=np.float64))
            count += variance.size
        # One window leaves exactly 0 with equal weights, and rounding with others.
        if total <= 1e-6 * count:
            return math.nan
        return math.sqrt(spread / total)
