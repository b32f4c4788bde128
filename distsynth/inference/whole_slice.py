"""Whole planes through a generator in one forward each, or in tiles that agree with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from distsynth.inference.memory_budget import Forward, Room, evenly
from distsynth.inference.stitching import Place


@dataclass(frozen=True)
class Tile:
    """A part of a plane.

    Attributes:
        read: Where the source is read: the part and a halo around it, cut at the plane's faces.
        write: The part itself.
        inner: The part within what was read.
    """

    read: Place
    write: Place
    inner: Place


class Whole:
    """Predicts planes as a whole: slices, or the volume where patches are blocks.

    Where the generator's `reach` is known, every voxel equals that of windows trimmed by `reach`
    or more, within float rounding: it depends on nothing that they cut off, and at the plane's
    faces both continue with zeros. Else (pooling, strides, instance norm) the prediction of a
    whole plane is another one than that of its windows.

    Args:
        sides: Of a plane in voxels.
        count: Planes that there are.
        multiple: Of the generator; planes are padded with zeros at their far ends to it.
        reach: Of the generator; None takes each plane in one forward, whatever memory it takes.
        room: Of the generator. Planes that exceed it go in tiles with a halo of `reach`.
        least: Voxels of the smallest tile worth a forward, those of a patch.
        device: Of the generator.

    Attributes:
        images: Planes to give at once.
        forwards: Forwards that these take.
    """

    def __init__(
        self,
        sides: Sequence[int],
        count: int,
        multiple: int,
        reach: int | None,
        room: Room,
        least: int,
        device: torch.device,
    ) -> None:
        voxels = math.prod(sides)
        self._sides, self._multiple, self._device = tuple(sides), multiple, device
        self._tiles = tiles(sides, reach or 0, voxels if reach is None else max(room.most, least))
        self.images = evenly(count, room.images(voxels))
        self.forwards = len(self._tiles)

    def __call__(
        self, planes: NDArray[np.float32], forward: Forward, out: NDArray[np.float32]
    ) -> None:
        """Predict planes (n, channels, *sides) into an array (n, *sides)."""
        given = torch.from_numpy(planes)
        if self.forwards == 1:
            far = [(0, -side % self._multiple) for side in reversed(self._sides)]
            padded = F.pad(given.to(self._device), list(itertools.chain(*far)))
            out[...] = forward(padded)[(..., *map(slice, self._sides))].cpu().numpy()
            return
        for tile in self._tiles:
            part = forward(given[(..., *tile.read)].contiguous().to(self._device))
            out[(..., *tile.write)] = part[(..., *tile.inner)].cpu().numpy()


def tiles(sides: Sequence[int], halo: int, most: int) -> list[Tile]:
    """Cut a plane into parts of like size that touch without overlap.

    Args:
        sides: Of the plane in voxels.
        halo: Voxels to read around each part.
        most: Voxels of a tile, halo and all; a part is a voxel at least, even if that exceeds it.

    Returns:
        As few tiles as halving nothing but the longest side of a part allows.
    """
    counts = [1] * len(sides)
    while True:
        parts = [math.ceil(side / count) for side, count in zip(sides, counts, strict=True)]
        read = [min(side, part + 2 * halo) for side, part in zip(sides, parts, strict=True)]
        if math.prod(read) <= most or max(parts) == 1:
            break
        counts[parts.index(max(parts))] += 1
    rows = [
        [_cut(side, side * i // count, side * (i + 1) // count, halo) for i in range(count)]
        for side, count in zip(sides, counts, strict=True)
    ]
    return [Tile(*zip(*row, strict=True)) for row in itertools.product(*rows)]


def _cut(side: int, low: int, high: int, halo: int) -> tuple[slice, slice, slice]:
    """Read, write and inner slices of a part along one side."""
    first, last = max(0, low - halo), min(side, high + halo)
    return slice(first, last), slice(low, high), slice(low - first, high - first)
