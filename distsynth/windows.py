"""Planes through a generator by overlapping windows, whose mean is taken (section 5.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.config import StitchConfig
from distsynth.room import MEGABYTE, Forward, Room, evenly
from distsynth.stitch import Place, Stitcher, places, smooth_window
from sharding.patches import dense_locations, window

PLANE_BYTES = 24
"""Of a voxel of a plane while its windows are summed, besides those of its source."""


class Windows:
    """Predicts planes as the Stitcher joins a dense grid of their patches.

    All planes have the same grid: a window is cut from several of them, and added to their sums,
    at once; the sums of weights are one plane's.

    Args:
        sides: Of a plane in voxels: two of a slice, three of the volume that blocks are cut from.
        count: Planes that there are.
        patch_size: Sides of a window.
        channels: Of a source.
        stitch: Stride, trim, weights, and the memory that the sums may take.
        room: Of the generator.

    Attributes:
        images: Planes to give at once.
        forwards: Forwards that these take.

    Raises:
        ValueError: If a voxel is left uncovered.
    """

    def __init__(
        self,
        sides: Sequence[int],
        count: int,
        patch_size: Sequence[int],
        channels: int,
        stitch: StitchConfig,
        room: Room,
    ) -> None:
        self._weight = plane_weight(sides, patch_size, stitch)
        smooth = stitch.weights == "smooth"
        self._window = smooth_window(patch_size, stitch.trim) if smooth else None
        windows = _windows(sides, patch_size, stitch)
        together = room.images(math.prod(patch_size))
        plane_bytes = math.prod(sides) * (PLANE_BYTES + 4 * channels)
        self.images = evenly(count, min(together, stitch.memory_mb * MEGABYTE // plane_bytes))
        each = max(1, together // self.images)
        self._batches = [windows[at : at + each] for at in range(0, len(windows), each)]
        self.forwards = len(self._batches)

    def __call__(self, planes: Tensor, forward: Forward) -> Tensor:
        """Predict planes (n, channels, *sides) as (n, *sides), float32."""
        count, device = len(planes), planes.device
        weights = None if self._window is None else self._window.to(device)
        total = torch.zeros((count, *self._weight.shape), dtype=torch.float64, device=device)
        for batch in self._batches:
            patches = forward(torch.cat([planes[(..., *cut)] for cut, _, _ in batch]))
            if weights is not None:
                patches = patches * weights
            for (_, place, part), patch in zip(batch, patches.split(count), strict=True):
                total[(..., *place)] += patch[(..., *part)]
        return (total / self._weight.to(device)).float()


def plane_weight(sides: Sequence[int], patch_size: Sequence[int], stitch: StitchConfig) -> Tensor:
    """What the weights of all windows at a voxel of a plane sum to: float64, shape `sides`.

    Raises:
        ValueError: If a voxel is left uncovered.
    """
    shape, locations = _grid(sides, patch_size, stitch.stride)
    stitcher = Stitcher(shape, patch_size, stitch.trim, stitch.weights)
    stitcher.add(torch.ones(()).expand(len(locations), *patch_size), locations)
    stitcher.volume()  # refuses gaps
    return stitcher.weight.view(*sides)


def _windows(
    sides: Sequence[int], patch_size: Sequence[int], stitch: StitchConfig
) -> list[tuple[Place, Place, Place]]:
    """Of each window of a plane: where it is cut, where it counts, and that part within it."""
    shape, locations = _grid(sides, patch_size, stitch.stride)
    dims = len(sides)
    return [
        (window(patch_size, axis, corner)[-dims:], place[-dims:], part[-dims:])
        for (axis, *corner), (place, part) in zip(
            locations.tolist(), places(locations, shape, patch_size, stitch.trim), strict=True
        )
    ]


def _grid(
    sides: Sequence[int], patch_size: Sequence[int], stride: int
) -> tuple[tuple[int, ...], NDArray[np.int32]]:
    """A plane as a volume, of one slice along axis 0 unless it is one, and its dense patches."""
    shape = (1, *sides)[-3:]
    return shape, dense_locations(shape, patch_size, stride, (0,))
