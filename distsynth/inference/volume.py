"""A volume as planes that are predicted some at a time; along several axes, their mean.

Planes are the slices along an axis or, for 3D patches, the volume itself: a stack of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distsynth.inference.memory_budget import Forward
from sharding.shards.patches import BLOCK
from sharding.volumes.slabs import Empty, in_memory, slabs


class Method(Protocol):
    """A way to predict planes of one size.

    Attributes:
        images: Planes to give at once.
        forwards: Forwards that these take.
    """

    images: int
    forwards: int

    def __call__(
        self, planes: NDArray[np.float32], forward: Forward, out: NDArray[np.float32]
    ) -> None:
        """Predict planes (n, channels, *sides) into an array (n, *sides)."""
        ...


def predict_volume(
    source: NDArray[np.float32],
    methods: Mapping[int, Method],
    neighbours: int,
    forward: Forward,
    weight: Callable[[Sequence[int]], Tensor],
    empty: Empty = in_memory,
) -> NDArray[np.float32]:
    """Predict a volume along one axis, or the weighted mean of several.

    Args:
        source: Shape (x, y, z).
        methods: Axis, BLOCK for 3D, to how its planes are predicted.
        neighbours: Slices on each side that a plane carries as channels.
        forward: The generator.
        weight: Sides of a plane to how much each of its voxels counts beside those of other axes;
            not asked for a single axis.
        empty: Makes the arrays that are as large as the volume.

    Returns:
        Synthetic, same shape.
    """
    if min(source.strides) < 0 or not source.flags.writeable:
        source = source.copy()  # torch takes neither
    mean = empty(source.shape)
    if len(methods) == 1:
        ((axis, method),) = methods.items()
        for part, planes in _parts(source, axis, method, neighbours):
            method(planes, forward, stack(mean, axis)[part])
        return mean
    total = empty(source.shape, np.float64)
    for slab in slabs(source.shape):
        total[slab] = 0
    weights = []
    for axis, method in methods.items():
        own = weight(stack(source, axis).shape[1:]).numpy()
        for part, planes in _parts(source, axis, method, neighbours):
            predicted = np.empty((len(planes), *planes.shape[2:]), np.float32)
            method(planes, forward, predicted)
            stack(total, axis)[part] += predicted * own
        weights.append(np.broadcast_to(np.expand_dims(own, axis), source.shape))
    for slab in slabs(source.shape):  # so that the weights never fill a volume
        mean[slab] = total[slab] / sum(own[slab] for own in weights)
    return mean


def stack(volume: NDArray, axis: int) -> NDArray:
    """The planes of a volume as a view of shape (n, *sides)."""
    return volume[None] if axis == BLOCK else np.moveaxis(volume, axis, 0)


def forwards(shape: Sequence[int], methods: Mapping[int, Method]) -> int:
    """How often the generator is called for a volume of this shape."""
    return sum(
        math.ceil((1 if axis == BLOCK else shape[axis]) / method.images) * method.forwards
        for axis, method in methods.items()
    )


def _parts(
    source: NDArray[np.float32], axis: int, method: Method, neighbours: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield which planes, and these with their channels: (n, channels, *sides)."""
    planes = stack(source, axis)
    steps = np.arange(-neighbours, neighbours + 1)
    for low in range(0, len(planes), method.images):
        part = slice(low, min(low + method.images, len(planes)))
        if neighbours:  # beyond a face the outermost
            channels = (np.arange(len(planes))[part, None] + steps).clip(0, len(planes) - 1)
            yield part, planes[channels]
        else:
            yield part, planes[part, None]
