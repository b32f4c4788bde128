"""A volume as planes that are predicted some at a time; along several axes, their mean.

Planes are the slices along an axis or, for 3D patches, the volume itself: a stack of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.room import Forward
from sharding.patches import BLOCK


class Method(Protocol):
    """A way to predict planes of one size.

    Attributes:
        images: Planes to give at once.
        forwards: Forwards that these take.
    """

    images: int
    forwards: int

    def __call__(self, planes: Tensor, forward: Forward) -> Tensor:
        """Predict planes (n, channels, *sides) as (n, *sides), float32."""
        ...


def predict_volume(
    source: NDArray[np.float32],
    methods: Mapping[int, Method],
    neighbours: int,
    forward: Forward,
    device: torch.device,
    weight: Callable[[Sequence[int]], Tensor],
) -> NDArray[np.float32]:
    """Predict a volume along one axis, or the weighted mean of several.

    Args:
        source: Shape (x, y, z).
        methods: Axis, BLOCK for 3D, to how its planes are predicted.
        neighbours: Slices on each side that a plane carries as channels.
        forward: The generator.
        device: Where it computes; the volume stays on the CPU.
        weight: Sides of a plane to how much each of its voxels counts beside those of other axes;
            not asked for a single axis.

    Returns:
        Synthetic, same shape.
    """
    mean = np.empty(source.shape, np.float32)
    if len(methods) == 1:
        ((axis, method),) = methods.items()
        for part, planes in _predicted(source, axis, method, neighbours, forward, device):
            stack(mean, axis)[part] = planes
        return mean
    total = np.zeros(source.shape)
    weights = []
    for axis, method in methods.items():
        own = weight(stack(source, axis).shape[1:]).numpy()
        for part, planes in _predicted(source, axis, method, neighbours, forward, device):
            stack(total, axis)[part] += planes * own
        weights.append(np.broadcast_to(np.expand_dims(own, axis), source.shape))
    for x in range(len(mean)):  # so that the weights never fill a volume
        mean[x] = total[x] / sum(own[x] for own in weights)
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


def _predicted(
    source: NDArray[np.float32],
    axis: int,
    method: Method,
    neighbours: int,
    forward: Forward,
    device: torch.device,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield which planes, and their predictions; a neighbour beyond a face is the outermost."""
    planes = stack(source, axis)
    steps = np.arange(-neighbours, neighbours + 1)
    for low in range(0, len(planes), method.images):
        part = slice(low, min(low + method.images, len(planes)))
        channels = (np.arange(len(planes))[part, None] + steps).clip(0, len(planes) - 1)
        given = torch.from_numpy(np.ascontiguousarray(planes[channels])).to(device)
        yield part, method(given, forward).cpu().numpy()
