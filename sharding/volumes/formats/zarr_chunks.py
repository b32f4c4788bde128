"""The files of a zarr array's chunks: which are there, whole, and which are lost.

A chunk without a file stands for its fill value: writers leave out what holds nothing else, and a
copy that was broken off leaves out the same. What can tell the two apart is asked here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, ...]
BLOSC_HEADER, BLOSC_SIZE = 16, slice(12, 16)
"""Bytes of the header of what blosc packs, and where it states the size of the whole."""
MOST_TISSUE = 0.5
"""Share of the voxels beside a chunk of background that may be no background."""


@dataclass(frozen=True)
class Chunks:
    """The chunks of an array, or its shards, of which each is a file too.

    Attributes:
        folder: The array's folder.
        shape: The array's shape.
        sides: Voxels of a chunk along each axis.
        name: Place of a chunk in the grid to its file below the folder.
        blosc: Whether each file is one of blosc.
        fill: Value of the voxels of a chunk without a file; None if that is not defined.
    """

    folder: Path
    shape: tuple[int, ...]
    sides: tuple[int, ...]
    name: Callable[[Place], str]
    blosc: bool
    fill: np.float32 | None

    def places(self) -> Iterator[Place]:
        """The places of all chunks in the grid."""
        pairs = zip(self.shape, self.sides, strict=True)
        return itertools.product(*(range(math.ceil(size / side)) for size, side in pairs))

    def box(self, place: Place) -> tuple[slice, ...]:
        """The voxels of a chunk."""
        return tuple(
            slice(number * side, min((number + 1) * side, size))
            for number, side, size in zip(place, self.sides, self.shape, strict=True)
        )

    def missing(self) -> list[Place]:
        """The places of chunks without a file, after a look at the files of the others.

        The library reads some files that are cut short without an error.

        Raises:
            ValueError: If a file is cut short.
        """
        missing = []
        for place in self.places():
            file = self.folder / self.name(place)
            if file.is_file():
                self._check(file)
            else:
                missing.append(place)
        return missing

    def lost(self, missing: Collection[Place], voxels: NDArray) -> Place | None:
        """A chunk without a file that a writer cannot have left out as background; None if none is.

        It was lost if what its voxels are is not defined; if another chunk of nothing but
        background has a file; or if tissue ends at one of its sides: over half of the voxels there
        are none of background.

        Args:
            missing: What `missing` gave.
            voxels: The whole array.
        """
        if not missing:
            return None
        undefined = self.fill is None or bool(np.isnan(self.fill))
        if undefined or any(
            bool((voxels[self.box(place)] == self.fill).all())
            for place in self.places()
            if place not in missing
        ):
            return next(iter(missing))
        return next(
            (place for place in missing if self._is_in_tissue(place, missing, voxels)), None
        )

    def _is_in_tissue(self, place: Place, missing: Collection[Place], voxels: NDArray) -> bool:
        box = self.box(place)
        for axis, step in itertools.product(range(len(place)), (-1, 1)):
            beside = (*place[:axis], place[axis] + step, *place[axis + 1 :])
            plane = box[axis].start - 1 if step < 0 else box[axis].stop
            if beside in missing or not 0 <= plane < self.shape[axis]:
                continue
            face = voxels[(*box[:axis], plane, *box[axis + 1 :])]
            if np.mean(face != self.fill) > MOST_TISSUE:
                return True
        return False

    def _check(self, file: Path) -> None:
        found = file.stat().st_size
        if not found:
            raise ValueError(f"the file {self._below(file)} is empty")
        if self.blosc:
            with file.open("rb") as opened:
                header = opened.read(BLOSC_HEADER)
            stated = int.from_bytes(header[BLOSC_SIZE], "little")
            if len(header) < BLOSC_HEADER or stated != found:
                raise ValueError(f"{self._below(file)} holds {found} of {stated} bytes")

    def _below(self, file: Path) -> str:
        return file.relative_to(self.folder.parent).as_posix()
