"""Arrays cut into tiles along all axes, each read with a halo: filters give the same by parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sharding.volumes.slabs import Slab


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        read: Where the source is read: the part and a halo around it, cut at the image's faces.
        write: The part itself.
        inner: The part within what was read.
    """

    read: Slab
    write: Slab
    inner: Slab


def tiles(sides: Sequence[int], halo: int, most: int, multiple: int = 1) -> list[Tile]:
    """Cut an image into parts of about equal size that touch without overlap.

    Args:
        sides: Sides of the image in voxels.
        halo: Voxels to read around each part.
        most: Voxels of a tile including its halo; a part has at least one voxel, even if the tile
            then exceeds this.
        multiple: Sides and halo are divisible by it, and all parts start at multiples of it.

    Returns:
        As few tiles as result from always cutting the longest side of a part.
    """
    counts = [1] * len(sides)
    halo, most = halo // multiple, most // multiple ** len(sides)
    sides = [side // multiple for side in sides]
    while True:
        parts = [math.ceil(side / count) for side, count in zip(sides, counts, strict=True)]
        read = [min(side, part + 2 * halo) for side, part in zip(sides, parts, strict=True)]
        if math.prod(read) <= most or max(parts) == 1:
            break
        counts[parts.index(max(parts))] += 1
    rows = [
        [
            _cut(side, side * i // count, side * (i + 1) // count, halo, multiple)
            for i in range(count)
        ]
        for side, count in zip(sides, counts, strict=True)
    ]
    return [Tile(*zip(*row, strict=True)) for row in itertools.product(*rows)]


def _cut(side: int, low: int, high: int, halo: int, multiple: int) -> tuple[slice, slice, slice]:
    """Read, write and inner slices of a part along one side, all given in multiples."""
    first, last = max(0, low - halo), min(side, high + halo)
    ends = (first, last), (low, high), (low - first, high - first)
    read, write, inner = (slice(start * multiple, end * multiple) for start, end in ends)
    return read, write, inner
