"""The slices of a DICOM series in the order of their places, or why they are no volume."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.formats.dicom import is_dicom
from sharding.volumes.formats.dicom_headers import Slice, slices_of
from sharding.volumes.header import RAS_TO_LPS

logger = logging.getLogger(__name__)

MOST_SHOWN = 8
"""Series, or gaps, that an error lists."""
UNEVEN = 0.02
"""Share of the slice spacing by which a slice may lie off its place."""
ROUNDING_MM = 0.005
"""Millimetres by which any slice may."""
SAME_DIRECTION = 1e-4
"""By how much the directions of two slices of one volume may differ."""
TILTED = 0.02
"""Sine of the angle between the way from slice to slice and their normal, at most."""
INDEX_NAME = "DICOMDIR"
"""The index of a medium; it holds no image."""


def read_series(path: Path, say: bool = False) -> list[Slice]:
    """The slices of a folder's only series, or of the series that one of its files belongs to.

    Args:
        path: A folder, or one file.
        say: Log what is left out.

    Returns:
        In the order of their places, along the slices' normal.

    Raises:
        DataError: If the folder holds no series, or several, or the slices are no volume.
    """
    folder = path if path.is_dir() else path.parent
    chosen = None
    if not path.is_dir():
        own = slices_of(path)
        if not own:
            raise DataError(path, "the DICOM file holds no image", "Give a file of the series")
        if len(own) > 1:
            return ordered(path, own)
        chosen = own[0].series
    by_series: dict[str, list[Slice]] = defaultdict(list)
    left_out = []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith(".") or file.name == INDEX_NAME:
            continue
        found = slices_of(file) if is_dicom(file) else []
        if not found:
            left_out.append(file.name)
        for one in found:
            by_series[one.series].append(one)
    if not by_series:
        below = any(file.is_dir() for file in folder.iterdir())
        remedy = "Give the folder of one series" if below else "Check the path"
        raise DataError(folder, "the folder holds no DICOM images", remedy)
    if chosen is None and len(by_series) > 1:
        listed = _listed(
            f"{_described(found)}, e.g. {_first(found)}" for found in by_series.values()
        )
        raise DataError(
            folder,
            f"holds {len(by_series)} DICOM series:{listed}\n",
            "Give one file of the series that is meant instead of the folder, or move each series "
            "to a folder of its own",
        )
    if say and left_out:
        shown = ", ".join(left_out[:MOST_SHOWN])
        logger.warning("%s: %d files hold no DICOM image: %s", folder, len(left_out), shown)
    return ordered(path, by_series[next(iter(by_series)) if chosen is None else chosen])


def affine_of(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Voxel index (column, row, slice) to RAS millimetres, shape (4, 4)."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.columns * first.spacing_mm[0]
    affine[:3, 1] = first.rows * first.spacing_mm[1]
    affine[:3, 2] = (last.position - first.position) / max(1, len(slices) - 1)
    if len(slices) == 1:
        affine[:3, 2] = first.normal
    affine[:3, 3] = first.position
    return RAS_TO_LPS @ affine


def ordered(path: Path, slices: Sequence[Slice]) -> list[Slice]:
    """Slices in the order of their places.

    Raises:
        DataError: If they differ in size, spacing or direction, or do not follow each other at
            equal distances; with what was found.
    """
    _refuse_mixed(path, slices, "sizes", lambda one: one.size, "x".join)
    _refuse_mixed(path, slices, "voxel sizes", lambda one: one.spacing_mm, " x ".join)
    _refuse_turned(path, slices)
    normal = slices[0].normal
    if not np.isclose(np.linalg.norm(normal), 1, atol=SAME_DIRECTION * 10):
        rule = "ImageOrientationPatient must give two directions at right angles"
        raise DataError(path, rule, "Export the series again")
    places = np.array([one.position @ normal for one in slices])
    order = np.argsort(places, kind="stable")
    found, places = [slices[number] for number in order], places[order]
    if len(found) > 1:
        _refuse_gaps(path, found, places)
        _refuse_tilted(path, found)
    return found


def _refuse_mixed(
    path: Path,
    slices: Sequence[Slice],
    what: str,
    key: Callable[[Slice], tuple[float, ...]],
    join: Callable[[list[str]], str],
) -> None:
    groups = _grouped(slices, lambda one: tuple(round(number, 6) for number in key(one)))
    if len(groups) > 1:
        listed = _listed(
            f"{len(found)} slices of {join([f'{number:g}' for number in key(found[0])])}, e.g. "
            f"{found[0].path.name}"
            for found in groups
        )
        rule = f"the slices of a volume must have one size, found {len(groups)} {what}:{listed}\n"
        raise DataError(path, rule, "Keep those of one volume in the folder")


def _refuse_turned(path: Path, slices: Sequence[Slice]) -> None:
    def direction(one: Slice) -> Hashable:
        both = np.concatenate([one.columns, one.rows])
        return next(
            number
            for number, other in enumerate(kinds)
            if np.abs(both - other).max() < SAME_DIRECTION
        )

    kinds: list[NDArray[np.float64]] = []
    for one in slices:
        both = np.concatenate([one.columns, one.rows])
        if all(np.abs(both - other).max() >= SAME_DIRECTION for other in kinds):
            kinds.append(both)
    if len(kinds) > 1:
        groups = _grouped(slices, direction)
        listed = _listed(
            f"{len(found)} slices {_plane(found[0])} ({_vector(found[0].normal)}), e.g. "
            f"{found[0].path.name}"
            for found in groups
        )
        rule = (
            f"the slices of a volume must be parallel, found {len(kinds)} orientations:{listed}\n"
        )
        raise DataError(path, rule, "Keep those of one orientation in the folder: no localisers")


def _refuse_gaps(path: Path, slices: Sequence[Slice], places: NDArray[np.float64]) -> None:
    steps = np.diff(places)
    usual = float(np.median(steps))
    same = np.flatnonzero(steps <= max(ROUNDING_MM, UNEVEN * usual)).tolist()
    if same:
        kinds = sorted({one.contrast for one in slices})
        listed = _listed(
            f"{slices[number].path.name} and {slices[number + 1].path.name} at "
            f"{places[number]:.2f} mm"
            for number in same
        )
        raise DataError(
            path,
            f"a place must have one slice, found several in {len(same)} cases ({'; '.join(kinds)})"
            f":{listed}\n",
            "Keep one echo, time point or image type in the folder",
        )
    off = np.abs(steps - usual) > 2 * max(ROUNDING_MM, UNEVEN * usual)
    drift = np.abs(places - np.linspace(places[0], places[-1], len(places))).max()
    if not off.any() and drift <= 2 * max(ROUNDING_MM, UNEVEN * usual):
        return
    missing = np.rint(steps / usual).astype(int) - 1
    whole = np.abs(steps / usual - missing - 1) < 2 * UNEVEN
    gaps = np.flatnonzero(off).tolist() or [int(np.argmax(np.abs(steps - usual)))]
    listed = _listed(
        f"{steps[number]:.3f} mm from {slices[number].path.name} to {slices[number + 1].path.name}"
        for number in gaps
    )
    if off.any() and whole.all():
        raise DataError(
            path,
            f"{missing.sum()} slices are missing: slices are {usual:.3f} mm apart, but{listed}\n",
            "Export the whole series again",
        )
    raise DataError(
        path,
        f"slices must be equally far apart, most are {usual:.3f} mm apart, but{listed}\n",
        "Resample them to equal distances before, or give a series that was scanned so",
    )


def _refuse_tilted(path: Path, slices: Sequence[Slice]) -> None:
    first, last = slices[0], slices[-1]
    way = last.position - first.position
    length = float(np.linalg.norm(way))
    aside = np.linalg.norm(np.cross(way, first.normal)) / length
    line = [first.position + way * number / (len(slices) - 1) for number in range(len(slices))]
    bent = max(
        float(np.linalg.norm(one.position - place)) for one, place in zip(slices, line, strict=True)
    )
    step = length / (len(slices) - 1)
    if aside > TILTED or bent > max(ROUNDING_MM, UNEVEN * step) * 2:
        raise DataError(
            path,
            f"slices must lie above each other, they are shifted by {aside * step:.3f} mm from one "
            "to the next, as by a tilted gantry",
            "Resample the series to a grid at right angles before",
        )


def _grouped(slices: Sequence[Slice], key: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for one in slices:
        groups[key(one)].append(one)
    return list(groups.values())


def _described(slices: Sequence[Slice]) -> str:
    """A series in one line, without any text of its header."""
    one = slices[0]
    size = "x".join(map(str, one.size))
    spacing = " x ".join(f"{side:.4g}" for side in one.spacing_mm)
    return f"{one.number}: {len(slices)} slices {_plane(one)} of {size}, {spacing} mm"


def _plane(one: Slice) -> str:
    return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(one.normal)))]


def _vector(vector: NDArray[np.float64]) -> str:
    return ", ".join(f"{number + 0.0:.3f}" for number in vector)


def _first(slices: Sequence[Slice]) -> str:
    return min(one.path.name for one in slices)


def _listed(lines) -> str:
    shown = list(lines)
    more = [f"and {len(shown) - MOST_SHOWN} more"] if len(shown) > MOST_SHOWN else []
    return "".join(f"\n  {line}" for line in [*shown[:MOST_SHOWN], *more])
