"""Matched landmarks: each volume's percentiles of tissue brought to those of the training cohort.

After Nyul and Udupa (Magn Reson Med 1999). The landmarks of a volume are fitted on it alone; the
standard ones are the mean over the training specimens. Intensities between two landmarks follow
a straight line.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharding.io.records import STRICT

PERCENTILES = (1.0, *map(float, range(10, 100, 10)), 99.0)
"""Of tissue; 0 and 1, the ends of the scale, are landmarks too."""
GAP = 1e-3
"""Least distance of two landmarks on the scale of [0, 1]: slopes stay finite."""


@dataclass(frozen=True)
class Standards:
    """Standard landmarks on [0, 1] of a cohort's sources and of its targets; empty without any.

    Attributes:
        source: Of the source, or its first contrast.
        target: Of the target.
        further: Of each further contrast of the source.
    """

    __pydantic_config__ = STRICT

    source: tuple[float, ...] = ()
    target: tuple[float, ...] = ()
    further: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for values in (self.source, self.target, *self.further):
            check_landmarks(values)

    def of_source(self, contrast: int) -> tuple[float, ...]:
        """Those of a contrast of the source, by its number; empty without any."""
        if contrast == 0:
            return self.source
        return self.further[contrast - 1] if self.further else ()


def check_landmarks(values: Sequence[float]) -> None:
    """Raise ValueError unless landmarks rise within (0, 1), or there are none."""
    whole = (0.0, *values, 1.0)
    if values and (
        len(values) != len(PERCENTILES)
        or any(not low < high for low, high in itertools.pairwise(whole))
    ):
        raise ValueError(f"{len(PERCENTILES)} landmarks must rise from 0 to 1, got {whole}")


def separated(values: Sequence[float]) -> tuple[float, ...]:
    """Landmarks moved apart where they nearly coincide, within (0, 1)."""
    found = np.asarray(values, np.float64)
    steps = GAP * np.arange(1, len(found) + 1)
    rising = np.maximum.accumulate(np.maximum(found - steps, 0)) + steps
    far = 1 - steps[::-1]
    return tuple(np.minimum(rising, far).tolist())


def standard_landmarks(volumes: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean landmarks of some volumes; none if they have none."""
    if not volumes or not all(volumes):
        return ()
    return separated(np.mean(volumes, axis=0).tolist())


def move(values: NDArray, own: Sequence[float], other: Sequence[float]) -> NDArray:
    """Bring values from one set of landmarks to another; beyond [0, 1] they are left as they are.

    Args:
        values: On the scale of `own`, any shape.
        own: Landmarks within (0, 1); none leaves the values as they are.
        other: As many landmarks.
    """
    if not own or not other:
        return values
    moved = np.interp(values, (0.0, *own, 1.0), (0.0, *other, 1.0))
    beyond = values - np.clip(values, 0, 1)
    return (moved + beyond).astype(values.dtype)
