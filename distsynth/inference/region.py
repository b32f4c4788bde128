"""The part of a grid where a scan has data: all that is predicted with `region`.

What is kept is the foreground's bounding box and, around it, what the network sees of the
foreground from outside. What is predicted is larger, so that every voxel that is kept is predicted
from all that it depends on: windows lie where they would lie in the whole grid, and a network of
known reach sees as far as it looks. Then the kept voxels are those of the whole prediction, within
float rounding. A network without a known reach that takes whole slices depends on all of a slice;
there they differ.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from sharding.shards.patches import patch_axes
from sharding.volumes.masks import otsu_foreground
from sharding.volumes.slabs import Empty, in_memory, slabs
from sharding.volumes.volume import Volume

if TYPE_CHECKING:
    from distsynth.inference.predictor import Predictor

Box = tuple[slice, slice, slice]
MOST_VOXELS = 2**23
"""Of larger scans every second, third ... voxel along each axis is looked at."""
MARGIN = 1
"""Voxels of the scan around its foreground that count as data too."""


@dataclass(frozen=True)
class Region:
    """A part of a grid.

    Attributes:
        shape: Of the grid.
        kept: The voxels that are kept.
        read: The voxels that are predicted for that.
        exact: Whether the kept voxels are those of the whole prediction, within rounding.
    """

    shape: tuple[int, int, int]
    kept: Box
    read: Box
    exact: bool

    @property
    def read_shape(self) -> tuple[int, int, int]:
        """Voxels that are predicted, along each axis."""
        x, y, z = (part.stop - part.start for part in self.read)
        return x, y, z

    def put_back(
        self, found: NDArray[np.float32], background: float, empty: Empty = in_memory
    ) -> NDArray[np.float32]:
        """The whole grid: what was predicted where it is kept, elsewhere the background.

        Args:
            found: Of the voxels that were read.
            background: The value of all others.
            empty: Makes the array.
        """
        whole = empty(self.shape)
        for slab in slabs(self.shape):
            whole[slab] = background
        inner = tuple(
            slice(kept.start - read.start, kept.stop - read.start)
            for kept, read in zip(self.kept, self.read, strict=True)
        )
        whole[self.kept] = found[inner]
        return whole


def find_region(predictor: Predictor, source: Volume, grid: Volume, *further: Volume) -> Region:
    """Where to predict on a grid.

    Args:
        predictor: The model; patches must fit the grid.
        source: The scan, or its first contrast.
        grid: A volume whose shape and affine count.
        further: The other contrasts of the scan; the region is where any of them has data.
    """
    shape = grid.shape
    boxes = [_box_on_grid(contrast, grid) for contrast in (source, *further)]
    box = [
        (min(low for low, _ in sides), max(high for _, high in sides))
        for sides in zip(*boxes, strict=True)
    ]
    spans = [
        _span(box[axis], _reach(predictor, axis), shape[axis], *_margin(predictor, axis))
        for axis in range(3)
    ]
    kept, read = ((one, two, three) for one, two, three in zip(*spans, strict=True))
    exact = not predictor.whole_images or predictor.generator.reach is not None
    return Region(shape, kept, read, exact or read == tuple(map(slice, (0, 0, 0), shape)))


def _box_on_grid(source: Volume, grid: Volume) -> list[tuple[int, int]]:
    """First voxel and the one after the last of the foreground along each axis of a grid."""
    every = math.ceil((source.data.size / MOST_VOXELS) ** (1 / 3))
    tissue = otsu_foreground(np.asarray(source.data[::every, ::every, ::every], np.float32))
    # Single bright voxels of noise are no data.
    opened = np.asarray(ndimage.binary_opening(tissue), bool)
    tissue = opened if opened.any() else tissue
    places = [
        np.flatnonzero(tissue.any(axis=tuple(other for other in range(3) if other != axis)))
        for axis in range(3)
    ]
    if not all(place.size for place in places):
        return [(0, size) for size in grid.shape]
    ends = [
        (place[0] * every - MARGIN - 0.5, (place[-1] + 1) * every - 1 + MARGIN + 0.5)
        for place in places
    ]
    corners = np.array([*itertools.product(*ends)])
    found = apply_affine(np.linalg.inv(grid.affine) @ source.affine, corners)
    lows, highs = np.floor(found.min(axis=0)), np.ceil(found.max(axis=0)) + 1
    return [
        (int(np.clip(low, 0, size - 1)), int(np.clip(high, 1, size)))
        for low, high, size in zip(lows, highs, grid.shape, strict=True)
    ]


def _reach(predictor: Predictor, axis: int) -> int:
    """How far the network looks along an axis; half a patch where that is not known."""
    data, stitch = predictor.checkpoint.config.data, predictor.checkpoint.config.stitch
    across = data.slices // 2
    reach = predictor.generator.reach
    inside = max(data.sides) // 2 if reach is None else reach
    axes = patch_axes(data.sides, stitch.axes)
    return max(across if axis == slicing else inside for slicing in axes)


def _margin(predictor: Predictor, axis: int) -> tuple[int, int, int]:
    """What is predicted around what is kept, what it starts at multiples of, and its least size."""
    config = predictor.checkpoint.config
    data, stitch = config.data, config.stitch
    axes = patch_axes(data.sides, stitch.axes)
    if tuple(axes) == (axis,):
        return data.slices // 2, 1, 1  # Slices are predicted one by one.
    side = max(data.sides)
    if predictor.whole_images and len(axes) == 1:
        margin = side if predictor.generator.reach is None else predictor.generator.reach
        return margin, math.lcm(predictor.generator.multiple, data.start_multiple), side
    # The weights of several axes are those of windows, even if slices are predicted as wholes.
    steps = math.lcm(stitch.stride, predictor.generator.multiple, data.start_multiple)
    return max(side, predictor.generator.reach or 0), steps, side


def _span(
    box: tuple[int, int], reach: int, size: int, margin: int, step: int, least: int
) -> tuple[slice, slice]:
    """What is kept and what is predicted along an axis.

    Both ends of what is predicted lie at multiples of the step, the far one counted from the far
    face, so that mirror images have the same windows too.
    """
    low, high = max(0, box[0] - reach), min(size, box[1] + reach)
    first = max(0, low - margin) // step * step
    last = size - (size - min(size, high + margin)) // step * step
    if last - first < least:
        first, last = 0, size
    return slice(low, high), slice(first, last)
