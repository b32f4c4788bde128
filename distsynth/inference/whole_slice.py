"""Whole images through a generator in one forward each, or in tiles that give the same."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from distsynth.inference.memory_budget import Forward, MemoryBudget, evenly
from distsynth.inference.sliding_window import extend_images
from distsynth.inference.volume import ImageStack
from distsynth.models import Generator
from sharding.shards.patches import extended
from sharding.volumes.tiles import tiles


class WholeImages:
    """Predicts whole images: slices, or the volume where patches are blocks.

    Where the generator's `reach` is known, every voxel equals that of windows trimmed by `reach`
    or more, within float rounding: it depends on nothing that they cut off, and beyond the image's
    faces both continue with zeros. Otherwise (pooling, strides, instance norm) the prediction of a
    whole image differs from that of its windows.

    Args:
        images: Their size.
        generator: Images are extended to its `multiple` by repeating their last voxels; without a
            `reach` each image takes one forward, whatever memory that needs.
        budget: The memory budget. Images that exceed it are cut into tiles with a halo of `reach`.
        least: Voxels of the smallest tile worth a forward, those of a patch.
        device: The device of the generator.
        alignment: Windows of the same image start at multiples of it; the image is extended to it
            as they extend it.

    Attributes:
        batch_size: Images to predict at once.
        forwards: Forwards that a batch takes.
        voxels: Voxels that go through the generator for an image, halos included.
    """

    def __init__(
        self,
        images: ImageStack,
        generator: Generator,
        budget: MemoryBudget,
        least: int,
        device: torch.device,
        alignment: int = 1,
    ) -> None:
        self._sides, self._device = images.sides, device
        self._multiple = math.lcm(generator.multiple, alignment)
        reach = generator.reach
        whole = extended(images.sides, self._multiple)
        most = math.prod(whole) if reach is None else max(budget.max_voxels, least)
        halo = -(-(reach or 0) // self._multiple) * self._multiple
        self._tiles = tiles(whole, halo, most, self._multiple)
        self.batch_size = evenly(images.count, budget.batch_size(images.voxels))
        self.forwards = len(self._tiles)
        self.voxels = sum(
            math.prod(part.stop - part.start for part in tile.read) for tile in self._tiles
        )

    def __call__(
        self,
        images: NDArray[np.float32],
        forward: Forward,
        out: NDArray[np.float32],
        variance: NDArray[np.float32] | None = None,
    ) -> None:
        """Predict images (n, channels, *sides) into an array (n, *sides).

        There are no windows that could disagree: `variance` is filled with 0.
        """
        if variance is not None:
            variance[...] = 0
        given = torch.from_numpy(images)
        if self.forwards == 1:
            whole = extend_images(given.to(self._device), self._multiple)
            out[...] = forward(whole)[(..., *map(slice, self._sides))].cpu().numpy()
            return
        for tile in self._tiles:
            # A tile starts at a multiple, so that only far ends of the image are extended.
            part = extend_images(given[(..., *tile.read)].contiguous(), self._multiple)
            part = forward(part.to(self._device))
            place = out[(..., *tile.write)]
            inner = part[(..., *tile.inner)].cpu().numpy()
            place[...] = inner[(..., *map(slice, place.shape[1:]))]
