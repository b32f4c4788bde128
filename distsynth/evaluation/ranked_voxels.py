"""The voxels of a mask by their number, found slab by slab."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.views import View
from sharding.volumes import slabs as slab_sizes
from sharding.volumes.slabs import slabs

Voxels = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def count_voxels(mask: View) -> int:
    """How many voxels lie in a mask."""
    return sum(int(np.count_nonzero(mask[slab])) for slab in slabs(mask.shape))


def voxels_of_ranks(mask: View, ranks: NDArray[np.int64]) -> Voxels:
    """The indices of the voxels of a mask with these ranks.

    Args:
        mask: Shape (x, y, z).
        ranks: Rising numbers of voxels of the mask, counted from 0 in the order of np.flatnonzero:
            z changes fastest, then y.

    Returns:
        x, y, z of each.
    """
    lines = np.zeros(mask.shape[:2], np.int64)
    for slab in slabs(mask.shape):
        lines += np.count_nonzero(mask[slab], axis=2)
    ends = np.cumsum(lines)
    line = np.searchsorted(ends, ranks, side="right")
    within = ranks - (ends - lines.ravel())[line]
    x, y = np.divmod(line, mask.shape[1])
    z = np.empty(len(ranks), np.int64)
    before = np.zeros(mask.shape[:2], np.int64)
    for slab in slabs(mask.shape):
        part = mask[slab]
        after = before + np.count_nonzero(part, axis=2)
        here = np.flatnonzero((within >= before[x, y]) & (within < after[x, y]))
        step = max(1, slab_sizes.SLAB // part.shape[2])
        for low in range(0, len(here), step):
            some = here[low : low + step]
            left = within[some] - before[x[some], y[some]]
            counted = np.cumsum(part[x[some], y[some]], axis=1, dtype=np.int32)
            z[some] = slab[2].start + (counted > left[:, None]).argmax(axis=1)
        before = after
    return x, y, z
