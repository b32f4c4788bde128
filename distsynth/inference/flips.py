"""The mean prediction of a volume and its mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sharding.volumes.slabs import Empty, slabs

Predict = Callable[
    [NDArray[np.float32], str, bool, Empty, NDArray[np.float32] | None], NDArray[np.float32]
]
"""A call of a predictor with all its arguments, in order."""


def flipped(source: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    """A view of a source, (x, y, z) or (contrasts, x, y, z), flipped along axes of its grid."""
    return np.flip(source, tuple(axis - 3 for axis in axes))


def mean_of_flips(
    predict: Predict,
    axes: Sequence[int],
    source: NDArray[np.float32],
    title: str,
    quiet: bool,
    empty: Empty,
    variance: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """The mean prediction over all combinations of flips.

    Args:
        predict: Predicts one of them.
        axes: Those that are flipped.
        source: Shape (x, y, z), or (contrasts, x, y, z); standardised.
        title: Of the progress bars.
        quiet: No progress bars.
        empty: Makes the arrays that are as large as the volume.
        variance: Array that is filled with the mean of the variances of single flips: what their
            windows disagree about.

    Returns:
        Synthetic, shape (x, y, z).
    """
    turned = [part for count in range(len(axes) + 1) for part in combinations(axes, count)]
    shape = source.shape[-3:]
    mean = empty(shape)
    spread = None if variance is None else empty(shape)
    for slab in slabs(shape):
        mean[slab] = 0
        if variance is not None:
            variance[slab] = 0
    for number, part in enumerate(turned, start=1):
        name = f"{title}, flip {number} of {len(turned)}"
        found = predict(flipped(source, part), name, quiet, empty, spread)
        sums = [(mean, found)]
        if variance is not None and spread is not None:
            sums.append((variance, spread))
        for total, own in sums:
            back = np.flip(own, part)
            for slab in slabs(shape):
                total[slab] += back[slab] / np.float32(len(turned))
    return mean
