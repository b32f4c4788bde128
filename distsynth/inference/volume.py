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
from sharding.volumes.slabs import Empty, by_slabs, in_memory, slabs


@dataclass(frozen=True)
class ImageStack:
    """The size of a stack of images.

    Attributes:
        sides: Sides of an image in voxels: two of a slice, three of a volume.
        count: Images in the stack.
        channels: Channels of the generator's input: of each contrast an image and its neighbours.
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
        voxels: Voxels that go through the generator for an image, those of overlaps several times.
    """

    batch_size: int
    forwards: int
    voxels: int

    def __call__(
        self,
        images: NDArray[np.float32],
        forward: Forward,
        out: NDArray[np.float32],
        variance: NDArray[np.float32] | None = None,
    ) -> None:
        """Predict images (n, channels, *sides) into an array (n, *sides).

        The variance of overlapping windows at each voxel goes into `variance`, if it is given.
        """
        ...


def predict_volume(
    source: NDArray[np.float32],
    methods: Mapping[int, ImageMethod],
    neighbours: int,
    forward: Forward,
    weight: Callable[[Sequence[int]], Tensor],
    empty: Empty = in_memory,
    variance: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Predict a volume along one axis, or the weighted mean of several.

    Args:
        source: Shape (x, y, z), or (contrasts, x, y, z).
        methods: Axis (BLOCK for 3D) to how its images are predicted.
        neighbours: Slices on each side that an image carries as channels.
        forward: The generator.
        weight: Sides of an image to the weight of each of its voxels relative to those along the
            other axes; not called for a single axis.
        empty: Makes the arrays that are as large as the volume.
        variance: Array of the volume's shape that is filled with the weighted variance, at each
            voxel, of all windows along all axes around their mean.

    Returns:
        Synthetic, shape (x, y, z).
    """
    if min(source.strides) < 0 or not source.flags.writeable:
        source = by_slabs(lambda slab: slab, source, empty)  # torch takes neither
    shape, contrasts = source.shape[-3:], source if source.ndim == 4 else source[None]
    mean = empty(shape)
    if len(methods) == 1:
        ((axis, method),) = methods.items()
        spread = None if variance is None else as_images(variance, axis)
        for part, images in _parts(contrasts, axis, method, neighbours):
            own_spread = None if spread is None else spread[part]
            method(images, forward, as_images(mean, axis)[part], own_spread)
        return mean
    total = empty(shape, np.float64)
    squares = None if variance is None else empty(shape, np.float64)
    for slab in slabs(shape):
        total[slab] = 0
        if squares is not None:
            squares[slab] = 0
    weights = []
    for axis, method in methods.items():
        own = weight(as_images(mean, axis).shape[1:]).numpy()
        for part, images in _parts(contrasts, axis, method, neighbours):
            predicted = np.empty((len(images), *images.shape[2:]), np.float32)
            spread = None if squares is None else np.empty_like(predicted)
            method(images, forward, predicted, spread)
            as_images(total, axis)[part] += predicted * own
            if squares is not None and spread is not None:
                square = np.square(predicted, dtype=np.float64) + spread
                as_images(squares, axis)[part] += square * own
        weights.append(np.broadcast_to(np.expand_dims(own, axis), shape))
    for slab in slabs(shape):  # so that the weights never fill a volume
        together = sum(own[slab] for own in weights)
        average = total[slab] / together
        mean[slab] = average
        if variance is not None and squares is not None:
            variance[slab] = np.maximum(squares[slab] / together - average**2, 0)
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


def voxels_through(shape: Sequence[int], methods: Mapping[int, ImageMethod]) -> int:
    """How many voxels go through the generator for a volume of this shape."""
    return sum(
        (1 if axis == BLOCK else shape[axis]) * method.voxels for axis, method in methods.items()
    )


def _parts(
    contrasts: NDArray[np.float32], axis: int, method: ImageMethod, neighbours: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield a batch of images: which they are, and their input (n, channels, *sides)."""
    stacks = [as_images(contrast, axis) for contrast in contrasts]
    count, steps = len(stacks[0]), np.arange(-neighbours, neighbours + 1)
    for low in range(0, count, method.batch_size):
        part = slice(low, min(low + method.batch_size, count))
        if neighbours:  # beyond a face the outermost
            channels = (np.arange(count)[part, None] + steps).clip(0, count - 1)
            images = [stack[channels] for stack in stacks]
        else:
            images = [stack[part, None] for stack in stacks]
        yield part, images[0] if len(images) == 1 else np.concatenate(images, axis=1)
