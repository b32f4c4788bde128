"""A volume as images that are predicted in batches; along several axes, their mean.

Images are the slices along an axis or, for 3D patches, the volume itself as a stack of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distsynth.inference.memory_budget import Forward
from sharding.shards.patches import BLOCK
from sharding.volumes.slabs import Empty, in_memory, slabs


@dataclass(frozen=True)
class ImageStack:
    """The size of a stack of images.

    Attributes:
        sides: Sides of an image in voxels: two of a slice, three of a volume.
        count: Images in the stack.
        channels: Channels of the generator's input: an image and its neighbours.
    """

    sides: tuple[int, ...]
    count: int
    channels: int

    @property
    def voxels(self) -> int:
        """Voxels of one image."""
        return math.prod(self.sides)


class ImageMethod(Protocol):
    """A way to predict images of one size.

    Attributes:
        batch_size: Images to predict at once.
        forwards: Forwards that a batch takes.
    """

    batch_size: int
    forwards: int

    def __call__(
        self, images: NDArray[np.float32], forward: Forward, out: NDArray[np.float32]
    ) -> None:
        """Predict images (n, channels, *sides) into an array (n, *sides)."""
        ...


def predict_volume(
    source: NDArray[np.float32],
    methods: Mapping[int, ImageMethod],
    neighbours: int,
    forward: Forward,
    weight: Callable[[Sequence[int]], Tensor],
    empty: Empty = in_memory,
) -> NDArray[np.float32]:
    """Predict a volume along one axis, or the weighted mean of several.

    Args:
        source: Shape (x, y, z).
        methods: Axis (BLOCK for 3D) to how its images are predicted.
        neighbours: Slices on each side that an image carries as channels.
        forward: The generator.
        weight: Sides of an image to the weight of each of its voxels relative to those along the
            other axes; not called for a single axis.
        empty: Makes the arrays that are as large as the volume.

    Returns:
        Synthetic, same shape.
    """
    if min(source.strides) < 0 or not source.flags.writeable:
        source = source.copy()  # torch takes neither
    mean = empty(source.shape)
    if len(methods) == 1:
        ((axis, method),) = methods.items()
        for part, images in _parts(source, axis, method, neighbours):
            method(images, forward, as_images(mean, axis)[part])
        return mean
    total = empty(source.shape, np.float64)
    for slab in slabs(source.shape):
        total[slab] = 0
    weights = []
    for axis, method in methods.items():
        own = weight(as_images(source, axis).shape[1:]).numpy()
        for part, images in _parts(source, axis, method, neighbours):
            predicted = np.empty((len(images), *images.shape[2:]), np.float32)
            method(images, forward, predicted)
            as_images(total, axis)[part] += predicted * own
        weights.append(np.broadcast_to(np.expand_dims(own, axis), source.shape))
    for slab in slabs(source.shape):  # so that the weights never fill a volume
        mean[slab] = total[slab] / sum(own[slab] for own in weights)
    return mean


def as_images(volume: NDArray, axis: int) -> NDArray:
    """A view of a volume as images, shape (n, *sides)."""
    return volume[None] if axis == BLOCK else np.moveaxis(volume, axis, 0)


def forwards(shape: Sequence[int], methods: Mapping[int, ImageMethod]) -> int:
    """How often the generator is called for a volume of this shape."""
    return sum(
        math.ceil((1 if axis == BLOCK else shape[axis]) / method.batch_size) * method.forwards
        for axis, method in methods.items()
    )


def _parts(
    source: NDArray[np.float32], axis: int, method: ImageMethod, neighbours: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield a batch of images: which they are, and their input (n, channels, *sides)."""
    images = as_images(source, axis)
    steps = np.arange(-neighbours, neighbours + 1)
    for low in range(0, len(images), method.batch_size):
        part = slice(low, min(low + method.batch_size, len(images)))
        if neighbours:  # beyond a face the outermost
            channels = (np.arange(len(images))[part, None] + steps).clip(0, len(images) - 1)
            yield part, images[channels]
        else:
            yield part, images[part, None]
