"""Arrays of whole volumes: worked on slab by slab, and kept in files where they are large.

A slab is a run of planes along the last axis, the slowest in a NIfTI file: it is read and written
in one piece there. What is done slab by slab takes memory for a slab, whatever the volume.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharding.io.errors import DataError

SLAB = 2**22
"""Voxels of a slab, at most but for a single plane."""
Slab = tuple[slice, ...]


class Empty(Protocol):
    """Makes an array whose values are not set, as np.empty does."""

    def __call__(
        self, shape: Sequence[int], dtype: DTypeLike = np.float32, order: Literal["C", "F"] = "C"
    ) -> NDArray:
        """An array of this shape."""
        ...


def in_memory(
    shape: Sequence[int], dtype: DTypeLike = np.float32, order: Literal["C", "F"] = "C"
) -> NDArray:
    """An array in memory, whatever its size."""
    return np.empty(tuple(shape), dtype, order)


@dataclass(frozen=True)
class Scratch:
    """Makes arrays in memory or, where they are large, in files without a name.

    The system writes pages of such a file out when memory is short, so arrays larger than memory
    serve. The files vanish with the arrays, or with the process.

    Attributes:
        folder: Where the files lie; made if it is not there.
        most: Bytes of an array in memory.
    """

    folder: Path
    most: int

    def __call__(
        self, shape: Sequence[int], dtype: DTypeLike = np.float32, order: Literal["C", "F"] = "C"
    ) -> NDArray:
        """An array of this shape; one in a file has the order of a NIfTI file.

        Raises:
            DataError: If the disk has no room for it.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size <= self.most:
            return in_memory(shape, dtype, order)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file.fileno(), size)
                # The map holds on to the file after it is closed.
                mapped = np.memmap(file, dtype, "r+", shape=tuple(shape), order="F")
        except OSError as error:
            raise DataError(
                self.folder,
                f"no room for {size / 2**20:,.0f} MB of a volume that is kept on disk ({error})",
                "Free some, or allow more memory by --stitch.memory-mb",
            ) from error
        return np.asarray(mapped)


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk now: a full disk would later kill whoever writes to the map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def slabs(shape: Sequence[int], along: int = -1) -> Iterator[Slab]:
    """Cut an array into slabs along an axis: as many as SLAB asks for, the same on any machine."""
    planes = max(1, SLAB * shape[along] // max(1, math.prod(shape)))
    slab = [slice(0, size) for size in shape]
    for low in range(0, shape[along], planes):
        slab[along] = slice(low, min(low + planes, shape[along]))
        yield tuple(slab)


def by_slabs(
    change: Callable[[NDArray], NDArray], data: NDArray, empty: Empty = in_memory
) -> NDArray[np.float32]:
    """What a function of single voxels makes of a volume, as float32."""
    changed = empty(data.shape, order="F" if data.flags.f_contiguous else "C")
    for slab in slabs(data.shape):
        changed[slab] = change(data[slab])
    return changed


def filter_lines(change: Callable[[NDArray, int, NDArray], object], data: NDArray) -> None:
    """Filter a volume in place along its three axes in turn, by a filter of whole lines.

    Args:
        change: Takes an array, the axis, and the array to write to, which may be the first.
        data: Shape (x, y, z), changed.
    """
    for axis in range(3):
        for slab in slabs(data.shape, along=1 if axis == 2 else 2):
            change(data[slab], axis, data[slab])
