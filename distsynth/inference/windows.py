"""The effect of windows on a prediction: their disagreement, and the prediction without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsynth.inference.memory_budget import memory_budget
from distsynth.inference.predictor import Predictor
from distsynth.inference.sliding_window import weight_lines
from distsynth.metrics.overlap import Overlap
from sharding.shards.patches import BLOCK, patch_axes


def overlap(predictor: Predictor, variance: NDArray[np.float32]) -> Overlap:
    """What the `variance` of a prediction tells of the disagreement between its windows.

    Args:
        predictor: The model that made the prediction, with its stride, trim, weights and axes.
        variance: As the predictor filled it, shape (x, y, z).
    """
    config = predictor.checkpoint.config
    shape, patch_size = variance.shape, config.data.sides

    def lines(power: int) -> list[_Lines]:
        found = []
        for axis in patch_axes(patch_size, config.stitch.axes):
            sides = [size for dim, size in enumerate(shape) if dim != axis]
            own = weight_lines(sides, patch_size, config.stitch, config.data.start_multiple, power)
            along = [line.numpy() for line in own]
            if axis != BLOCK:
                along.insert(axis, np.ones(shape[axis]))
            found.append(along)
        return found

    return Overlap(variance, _Freedom(shape, lines(1), lines(2)))


_Lines = Sequence[NDArray[np.float64]]
"""A line along each axis, whose products are the weights of windows at each voxel."""


@dataclass(frozen=True, eq=False)
class _Freedom:
    """Overlap's freedom, computed where it is read."""

    shape: tuple[int, ...]
    weights: Sequence[_Lines]
    squares: Sequence[_Lines]

    def __getitem__(self, place: Any, /) -> NDArray[np.float32]:
        def product(along: _Lines) -> NDArray[np.float64]:
            lines = (line[part] for line, part in zip(along, place, strict=True))
            return reduce(np.multiply, np.ix_(*lines))

        total, square = (
            reduce(np.add, map(product, rows)) for rows in (self.weights, self.squares)
        )
        return (1 - square / total**2).astype(np.float32)


def without_windows(predictor: Predictor, shape: tuple[int, int, int]) -> Predictor | None:
    """The same generator on whole slices, or on the whole volume where patches are blocks.

    Args:
        predictor: A model that predicts in windows.
        shape: Shape of the volume (x, y, z).

    Returns:
        None if it uses no windows anyway, or if a volume of this shape is too large for one forward
        pass of blocks.
    """
    if predictor.whole_images:
        return None
    config = predictor.checkpoint.config
    data, generator = config.data, predictor.generator
    if len(data.sides) == 3 and generator.reach is None:
        budget = memory_budget(
            config.generator, data.sides, data.channels, config.stitch.memory_mb, predictor.device
        )
        if math.prod(shape) > budget.max_voxels:
            return None
    return predictor.stitched(method="whole")
