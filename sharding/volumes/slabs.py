"""Arrays of whole volumes: processed slab by slab, and kept in files if they are large.

A slab is a run of planes along the last axis, the slowest one in a NIfTI file, where it is read and
written in one piece. Processing slab by slab takes memory for one slab, however large the volume.
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
"""Most voxels of a slab, unless a single plane has more."""
MOST_IN_MEMORY = 2**26
"""Bytes of the largest float32 volume that is made in memory where a dozen of that size are needed
at once: 256 voxels a side."""
Slab = tuple[slice, ...]


class Empty(Protocol):
    """A function that makes an array whose values are not set, as np.empty does."""

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
    """Makes arrays in memory or, if they are large, in files without a name.

    The system writes pages of such a file to the disk when memory is short, so that arrays may be
    larger than memory. The files vanish with the arrays, or with the process.

    Attributes:
        folder: The folder of the files; it is created if it does not exist.
        most: Bytes of the largest array that is made in memory. A mask counts as the volume that it
            belongs to, as float32: where that one lies on disk, several masks would fill memory.
    """

    folder: Path
    most: int

    def __call__(
        self, shape: Sequence[int], dtype: DTypeLike = np.float32, order: Literal["C", "F"] = "C"
    ) -> NDArray:
        """An array of this shape; one in a file has the order of a NIfTI file.

        Raises:
            DataError: If there is not enough space on the disk.
        """
        itemsize = np.dtype(dtype).itemsize
        size = math.prod(shape) * itemsize
        if not self.on_disk(math.prod(shape) * max(itemsize, np.dtype(np.float32).itemsize)):
            return in_memory(shape, dtype, order)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _reserve(file.fileno(), size)
                # The map keeps the file alive after it is closed.
                mapped = np.memmap(file, dtype, "r+", shape=tuple(shape), order="F")
        except OSError as error:
            raise DataError(
                self.folder,
                f"no room for {size / 2**20:,.0f} MB of a volume that is kept on disk ({error})",
                "Free some, or allow more memory by --stitch.memory-mb",
            ) from error
        return np.asarray(mapped)

    def on_disk(self, size: int) -> bool:
        """Whether a float32 array of so many bytes lies in a file."""
        return size > self.most


def _reserve(file: int, size: int) -> None:
    """Allocate the disk space now: on a full disk, writing to the map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def slabs(shape: Sequence[int], along: int = -1) -> Iterator[Slab]:
    """Cut an array into slabs along an axis, of a size that is the same on any machine."""
    planes = max(1, SLAB * shape[along] // max(1, math.prod(shape)))
    slab = [slice(0, size) for size in shape]
    for low in range(0, shape[along], planes):
        slab[along] = slice(low, min(low + planes, shape[along]))
        yield tuple(slab)


def planes(data: NDArray, indices: Sequence[int], axis: int) -> NDArray:
    """Copies of some planes across an axis, as np.take makes them.

    np.take would first bring a volume in the order of a NIfTI file into another order, whole and in
    memory.
    """
    where: list[slice | list[int]] = [slice(None)] * data.ndim
    where[axis] = [*indices]
    return data[tuple(where)]


def by_slabs(
    change: Callable[[NDArray], NDArray], data: NDArray, empty: Empty = in_memory
) -> NDArray[np.float32]:
    """Apply a function of single voxels to a volume; the result is float32."""
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
