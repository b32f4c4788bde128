"""The effect of windows on a prediction: their disagreement, and the prediction without them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distsynth.inference.memory_budget import memory_budget
from distsynth.inference.predictor import Predictor
from distsynth.inference.sliding_window import total_weight
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

    def sums(power: int) -> NDArray[np.float64]:
        total = np.zeros((1,) * len(shape))
        for axis in patch_axes(patch_size, config.stitch.axes):
            sides = [size for dim, size in enumerate(shape) if dim != axis]
            own = total_weight(
                sides, patch_size, config.stitch, config.data.start_multiple, power
            ).numpy()
            total = total + (own if axis == BLOCK else np.expand_dims(own, axis))
        return total

    freedom = (1 - sums(2) / sums(1) ** 2).astype(np.float32)
    return Overlap(variance, np.broadcast_to(freedom, shape))


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
