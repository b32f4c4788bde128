"""Whether a registration step is kept: only where it brings source and target closer.

A deformation can always lower its own cost, and displaces a pair that lies right already. So the
alignment is measured before and after every step, on the target's grid, by the mutual information
of the intensities in the foreground that both cover. A step is kept if it raises that by more than
`LEAST_GAIN`, or brings clearly more of the foreground into the source's field of view; else the
step before it, or the identity, stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.registration.quality import mutual_information
from sharding.volumes.intensities import SCALED_MAX
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume

LEAST_GAIN = 0.005
"""Share by which a step must raise the mutual information."""
LESS_COVERED = 0.75
"""A start that covers less than this share of what the step covers is not compared with it."""
SPLINE_ORDER = 3


@dataclass(frozen=True)
class Comparison:
    """The effect of a registration step.

    Attributes:
        kept: Whether the step is kept.
        information_before: Mutual information before the step, nats; None where the step before
            covered too little to be compared.
        information_after: After the step.
    """

    kept: bool
    information_before: float | None
    information_after: float


def compare(
    source: Volume,
    target: Volume,
    before: Transform,
    after: Transform,
    foreground: NDArray[np.bool_],
) -> Comparison:
    """Measure a pair before and after a step, and decide whether the step is kept.

    Args:
        source: Intensities in [0, 1000], on its own grid.
        target: Intensities in [0, 1000].
        before: The registration so far, target world to source world.
        after: The registration with the step.
        foreground: Where the target counts, on its grid.
    """
    placed, seen = zip(
        *(
            transform.apply(source, target.shape, target.affine, SPLINE_ORDER)
            for transform in (before, after)
        ),
        strict=True,
    )
    common = foreground & seen[0] & seen[1]
    covered = int((foreground & seen[1]).sum())
    if int((foreground & seen[0]).sum()) < LESS_COVERED * covered or not common.any():
        inside = foreground & seen[1]
        found = mutual_information(_clipped(placed[1][inside]), target.data[inside])
        return Comparison(True, None, found if inside.any() else 0.0)
    old, new = (mutual_information(_clipped(data[common]), target.data[common]) for data in placed)
    return Comparison(bool(new > old * (1 + LEAST_GAIN)), old, new)


def information(
    source: Volume, target: Volume, transform: Transform, foreground: NDArray[np.bool_]
) -> float:
    """Mutual information of a pair in the foreground that the source covers, nats.

    Args:
        source: Intensities in [0, 1000], on its own grid.
        target: Intensities in [0, 1000].
        transform: Target world to source world.
        foreground: Where the target counts, on its grid.
    """
    placed, seen = transform.apply(source, target.shape, target.affine, SPLINE_ORDER)
    inside = foreground & seen
    return (
        mutual_information(_clipped(placed[inside]), target.data[inside]) if inside.any() else 0.0
    )


def mirror(volume: Volume) -> Volume:
    """A volume whose left and right are exchanged, on the same grid."""
    upright = volume.reoriented("RAS")
    return Volume(np.ascontiguousarray(upright.data[::-1]), upright.affine, volume.header)


def _clipped(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.clip(values, 0, SCALED_MAX)
