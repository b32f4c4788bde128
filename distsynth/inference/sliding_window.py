"""Images through a generator by overlapping windows, which are averaged (section 5.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distsynth.config import StitchConfig
from distsynth.inference.memory_budget import MEGABYTE, Forward, MemoryBudget, evenly
from distsynth.inference.stitching import PatchSum, gaps_message, smooth_window, trimmed
from distsynth.inference.volume import ImageStack
from sharding.shards.patches import extended, grid_starts
from sharding.volumes.slabs import Empty, in_memory

VOXEL_BYTES = 24
"""Bytes for each voxel of an image while its windows are summed, besides those of its source."""
Interval = tuple[slice, slice, slice]
"""A window along one side: where it is cut, where it counts, and that part within the window."""


class SlidingWindows:
    """Predicts images from a dense grid of overlapping windows, joined as by the Stitcher.

    All images have the same grid: a window is cut from a batch of them, and added to their sums,
    at once. Windows are the product of intervals along each side, and so are their weights and
    the sum of all weights at a voxel.

    Args:
        images: Their size.
        patch_size: Sides of a window.
        stitch: Stride, trim, weights, and the memory that the sums may take.
        budget: The memory budget of the generator.
        device: The device of the generator.
        empty: Allocates the sums of an image that exceeds the memory.
        alignment: Windows start at multiples of it, in images that are extended to one by
            repeating their last voxels.

    Attributes:
        batch_size: Images to predict at once.
        forwards: Forwards that a batch takes.
        voxels: Voxels that go through the generator for an image: those of all windows.

    Raises:
        ValueError: If a voxel is left uncovered.
    """

    def __init__(
        self,
        images: ImageStack,
        patch_size: Sequence[int],
        stitch: StitchConfig,
        budget: MemoryBudget,
        device: torch.device,
        empty: Empty = in_memory,
        alignment: int = 1,
    ) -> None:
        self._intervals = intervals(images.sides, patch_size, stitch, alignment)
        self._lines = weight_lines(images.sides, patch_size, stitch, alignment)
        self._alignment = alignment
        smooth = stitch.weights == "smooth"
        self._window = smooth_window(patch_size, stitch.trim) if smooth else None
        together = budget.batch_size(math.prod(patch_size))
        image_bytes = images.voxels * (VOXEL_BYTES + 4 * images.channels)
        most = stitch.memory_mb * MEGABYTE // image_bytes
        self._fits, self._device, self._empty = most > 0, device, empty
        self.batch_size = evenly(images.count, min(together, most))
        self._each = max(1, together // self.batch_size)
        windows = math.prod(map(len, self._intervals))
        self.forwards = math.ceil(windows / self._each)
        self.voxels = windows * math.prod(patch_size)

    def __call__(
        self,
        images: NDArray[np.float32],
        forward: Forward,
        out: NDArray[np.float32],
        variance: NDArray[np.float32] | None = None,
    ) -> None:
        """Predict images (n, channels, *sides) into an array (n, *sides).

        The weighted variance of the windows at each voxel goes into `variance`, if there is such
        an array: sum w x² is then kept beside sum w x for the images of a batch.
        """
        given, count = torch.from_numpy(images), len(images)
        if self._fits:
            given = given.contiguous().to(self._device)
        sums = [PatchSum(self._zeros(count, images.shape[2:]), self._window)]
        if variance is not None:
            sums.append(PatchSum(self._zeros(count, images.shape[2:]), None))
        for batch in self._batches():
            cuts = [extend_images(given[(..., *cut)], self._alignment) for cut, _, _ in batch]
            sources = torch.cat(cuts)
            predicted = forward(sources.to(self._device))
            weighted = [sums[0].weighted(predicted)]
            if variance is not None:
                weighted.append(weighted[0] * sums[1].weighted(predicted).double())
            for kind, patches in zip(sums, weighted, strict=True):
                for (_, place, part), patch in zip(batch, patches.split(count), strict=True):
                    kind.add(patch, place, part)
        for part, weight in self._weights():
            mean, *square = (kind.total[..., part] / weight.to(kind.total.device) for kind in sums)
            out[..., part] = mean.float().cpu().numpy()
            if variance is not None:
                spread = (square[0] - mean.square()).clamp(min=0)
                variance[..., part] = spread.float().cpu().numpy()

    def _batches(self) -> Iterator[list[tuple[tuple[slice, ...], ...]]]:
        """Windows that go together: of each the slices along all sides, in Interval's order."""
        windows = (zip(*sides, strict=True) for sides in itertools.product(*self._intervals))
        while batch := [tuple(window) for window in itertools.islice(windows, self._each)]:
            yield batch

    def _zeros(self, count: int, sides: Sequence[int]) -> Tensor:
        """The sums, on the generator's device if they fit there."""
        if self._fits:
            return torch.zeros((count, *sides), dtype=torch.float64, device=self._device)
        return torch.from_numpy(self._empty(sides, np.float64)).zero_()[None]

    def _weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Runs along the last side and the sums of weights there: all at once if they fit."""
        *others, last = self._lines
        step = len(last) if self._fits else 1
        for low in range(0, len(last), step):
            yield slice(low, low + step), _product([*others, last[low : low + step]])


def extend_images(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last voxels of images (n, channels, *sides) up to a multiple along each side."""
    far = [(0, -side % multiple) for side in reversed(images.shape[2:])]
    if not any(more for _, more in far):
        return images
    return F.pad(images, list(itertools.chain(*far)), mode="replicate")


def total_weight(
    sides: Sequence[int],
    patch_size: Sequence[int],
    stitch: StitchConfig,
    alignment: int = 1,
    power: int = 1,
) -> Tensor:
    """What the weights of all windows at a voxel of an image sum to: float64, shape `sides`.

    With power 2 it is the sum of their squares.

    Raises:
        ValueError: If a voxel is left uncovered.
    """
    return _product(weight_lines(sides, patch_size, stitch, alignment, power))


def weight_lines(
    sides: Sequence[int],
    patch_size: Sequence[int],
    stitch: StitchConfig,
    alignment: int = 1,
    power: int = 1,
) -> list[Tensor]:
    """The factors of total_weight, float64: a line for each side.

    Raises:
        ValueError: If a voxel is left uncovered.
    """
    lines = []
    for side, patch, found in zip(
        sides, patch_size, intervals(sides, patch_size, stitch, alignment), strict=True
    ):
        smooth = stitch.weights == "smooth"
        profile = smooth_window([patch], stitch.trim) if smooth else torch.ones(patch)
        line = torch.zeros(side, dtype=torch.float64)
        for _, place, part in found:
            line[place] += profile[part] ** power
        lines.append(line)
    voxels, covered = math.prod(sides), math.prod(int((line > 0).sum()) for line in lines)
    if covered < voxels:
        raise ValueError(gaps_message(voxels - covered, voxels))
    return lines


def intervals(
    sides: Sequence[int], patch_size: Sequence[int], stitch: StitchConfig, alignment: int = 1
) -> list[list[Interval]]:
    """Along each side, those whose products are the windows of an image; trim as in Stitcher.

    Windows are cut from the image that is extended to the alignment; where they count lies within
    the image itself.
    """
    found = []
    for side, patch in zip(sides, patch_size, strict=True):
        along: list[Interval] = []
        (whole,) = extended([side], alignment)
        starts = np.array(grid_starts(whole, patch, stitch.stride))
        lows, highs = trimmed(starts, starts + patch, whole, stitch.trim)
        highs = np.minimum(highs, side)
        for start, low, high in zip(starts.tolist(), lows.tolist(), highs.tolist(), strict=True):
            part = slice(low - start, high - start)
            along.append((slice(start, start + patch), slice(low, high), part))
        found.append(along)
    return found


def _product(lines: Sequence[Tensor]) -> Tensor:
    return reduce(lambda product, line: product.unsqueeze(-1) * line, lines)
