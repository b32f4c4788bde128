"""Reading a scan: one volume, or one for each contrast that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sharding.io.errors import DataError
from sharding.volumes.grid import check_grids_meet
from sharding.volumes.header import Orientation
from sharding.volumes.slabs import Empty, in_memory
from sharding.volumes.volume import Volume, in_world_of, read_volume

Given = str | Path | Volume
"""A file, a DICOM folder, or a volume that has been read."""
GRID = "the grid to predict on"


@dataclass(frozen=True, eq=False)
class Scan:
    """What is predicted.

    Attributes:
        contrasts: A volume for each contrast, in the order of the model; mostly one.
        places: What each is called in messages: its file.
    """

    contrasts: tuple[Volume, ...]
    places: tuple[str | Path, ...]

    @property
    def first(self) -> Volume:
        """The contrast that decides the grid, and the units of the result."""
        return self.contrasts[0]

    @property
    def where(self) -> str | Path:
        """What the scan is called in messages."""
        return self.places[0]

    def check_count(self, names: Sequence[str]) -> None:
        """Refuse other contrasts than those of a model.

        Args:
            names: Those that it was trained on; none for one source.

        Raises:
            DataError: If there are more or fewer.
        """
        wanted, count = max(1, len(names)), len(self.contrasts)
        if wanted == count:
            return
        trained = f"the contrasts {', '.join(names)}" if names else "one source"
        here = f"{count} scans are given" if count > 1 else "one scan is given"
        remedy = f"Give {wanted} scans of the specimen in this order" if names else "Give one scan"
        raise DataError(self.where, f"the model was trained on {trained}, and {here}", remedy)


def read_scan(
    given: Given | Sequence[Given],
    like: Given | None,
    orientation: Orientation,
    least: float,
    empty: Empty = in_memory,
) -> tuple[Scan, Volume | None]:
    """Read a scan, and the grid to predict it on if one is given.

    Args:
        given: The scan, or its contrasts in the order of the model.
        like: A volume whose grid to predict on.
        orientation: "array" accepts files without orientation: they are laid on the grid, or on
            the first contrast, by their arrays.
        least: Share that the scan must cover of the grid, or the grid of the scan.
        empty: Makes the arrays of voxels.

    Raises:
        DataError: If a file is bad, or the grid does not meet the scan.
    """
    listed = [given] if isinstance(given, str | Path | Volume) else list(given)
    volumes = [_read(each, orientation, empty) for each in listed]
    grid = None if like is None else _read(like, orientation, empty)
    first = volumes[0] if grid is None else in_world_of(volumes[0], grid)
    others = [in_world_of(volume, first if grid is None else grid) for volume in volumes[1:]]
    if grid is not None:
        where = GRID if isinstance(like, Volume) or like is None else like
        check_grids_meet(where, first, grid, least)
    places = [
        each if not isinstance(each, Volume) else f"source {number}" if others else "source"
        for number, each in enumerate(listed, start=1)
    ]
    return Scan((first, *others), tuple(places)), grid


def _read(given: Given, orientation: Orientation, empty: Empty) -> Volume:
    if isinstance(given, Volume):
        return given
    return read_volume(given, empty=empty, orientation=orientation)
