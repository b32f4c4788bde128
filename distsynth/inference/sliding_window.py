"""Planes through a generator by overlapping windows, whose mean is taken (section 5.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.config import StitchConfig
from distsynth.inference.memory_budget import MEGABYTE, Forward, Room, evenly
from distsynth.inference.stitching import smooth_window
from sharding.shards.patches import grid_starts
from sharding.volumes.slabs import Empty, in_memory

PLANE_BYTES = 24
"""Of a voxel of a plane while its windows are summed, besides those of its source."""
Interval = tuple[slice, slice, slice]
"""Of a window along one side: where it is cut, where it counts, and that part within it."""


class Windows:
    """Predicts planes as the Stitcher joins a dense grid of their patches.

    All planes have the same grid: a window is cut from several of them, and added to their sums,
    at once. Windows are the product of intervals along each side, and so are their weights and
    the sum of all weights at a voxel.

    Args:
        sides: Of a plane in voxels: two of a slice, three of the volume that blocks are cut from.
        count: Planes that there are.
        patch_size: Sides of a window.
        channels: Of a source.
        stitch: Stride, trim, weights, and the memory that the sums may take.
        room: Of the generator.
        device: Of the generator.
        empty: Makes the sums of a plane that exceeds the memory.

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
        device: torch.device,
        empty: Empty = in_memory,
    ) -> None:
        self._intervals = intervals(sides, patch_size, stitch)
        self._lines = weight_lines(sides, patch_size, stitch)
        smooth = stitch.weights == "smooth"
        self._window = smooth_window(patch_size, stitch.trim).to(device) if smooth else None
        together = room.images(math.prod(patch_size))
        most = stitch.memory_mb * MEGABYTE // (math.prod(sides) * (PLANE_BYTES + 4 * channels))
        self._fits, self._device, self._empty = most > 0, device, empty
        self.images = evenly(count, min(together, most))
        self._each = max(1, together // self.images)
        self.forwards = math.ceil(math.prod(map(len, self._intervals)) / self._each)

    def __call__(
        self, planes: NDArray[np.float32], forward: Forward, out: NDArray[np.float32]
    ) -> None:
        """Predict planes (n, channels, *sides) into an array (n, *sides)."""
        given, count = torch.from_numpy(planes), len(planes)
        if self._fits:
            given = given.contiguous().to(self._device)
        total = self._zeros(count, planes.shape[2:])
        for batch in self._batches():
            sources = torch.cat([given[(..., *cut)] for cut, _, _ in batch])
            patches = forward(sources.to(self._device))
            if self._window is not None:
                patches = patches * self._window
            patches = patches.to(total.device)
            for (_, place, part), patch in zip(batch, patches.split(count), strict=True):
                total[(..., *place)] += patch[(..., *part)]
        for part, weight in self._weights():
            mean = total[..., part] / weight.to(total.device)
            out[..., part] = mean.float().cpu().numpy()

    def _batches(self) -> Iterator[list[tuple[tuple[slice, ...], ...]]]:
        """Windows that go together: of each the slices along all sides, in Interval's order."""
        windows = (zip(*sides, strict=True) for sides in itertools.product(*self._intervals))
        while batch := [tuple(window) for window in itertools.islice(windows, self._each)]:
            yield batch

    def _zeros(self, count: int, sides: Sequence[int]) -> Tensor:
        """The sums, where the generator is if they fit."""
        if self._fits:
            return torch.zeros((count, *sides), dtype=torch.float64, device=self._device)
        return torch.from_numpy(self._empty(sides, np.float64)).zero_()[None]

    def _weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs along the last side and the sums of weights there: all at once if they fit."""
        *others, last = self._lines
        step = len(last) if self._fits else 1
        for low in range(0, len(last), step):
            yield slice(low, low + step), _product([*others, last[low : low + step]])


def plane_weight(sides: Sequence[int], patch_size: Sequence[int], stitch: StitchConfig) -> Tensor:
    """What the weights of all windows at a voxel of a plane sum to: float64, shape `sides`.

    Raises:
        ValueError: If a voxel is left uncovered.
    """
    return _product(weight_lines(sides, patch_size, stitch))


def weight_lines(
    sides: Sequence[int], patch_size: Sequence[int], stitch: StitchConfig
) -> list[Tensor]:
    """The factors of plane_weight, float64: a line for each side.

    Raises:
        ValueError: If a voxel is left uncovered.
    """
    lines = []
    for side, patch, found in zip(
        sides, patch_size, intervals(sides, patch_size, stitch), strict=True
    ):
        smooth = stitch.weights == "smooth"
        profile = smooth_window([patch], stitch.trim) if smooth else torch.ones(patch)
        line = torch.zeros(side, dtype=torch.float64)
        for _, place, part in found:
            line[place] += profile[part]
        lines.append(line)
    voxels, covered = math.prod(sides), math.prod(int((line > 0).sum()) for line in lines)
    if covered < voxels:
        rule = f"{voxels - covered} of {voxels} voxels lie in no patch"
        raise ValueError(f"{rule}: use a smaller stride or trim, or cover every slice")
    return lines


def intervals(
    sides: Sequence[int], patch_size: Sequence[int], stitch: StitchConfig
) -> list[list[Interval]]:
    """Along each side, those whose products are the windows of a plane; trim as in Stitcher."""
    found = []
    for side, patch in zip(sides, patch_size, strict=True):
        along: list[Interval] = []
        for start in grid_starts(side, patch, stitch.stride):
            low = start + stitch.trim if start > 0 else 0
            high = start + patch - stitch.trim if start + patch < side else side
            part = slice(low - start, high - start)
            along.append((slice(start, start + patch), slice(low, high), part))
        found.append(along)
    return found


def _product(lines: Sequence[Tensor]) -> Tensor:
    return reduce(lambda product, line: product.unsqueeze(-1) * line, lines)
