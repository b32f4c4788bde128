"""Slices of a specimen as 8-bit pictures, few and small enough for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from distsynth.metrics.image import central_slice
from distsynth.metrics.views import Difference, View
from distsynth.reporting.windows import (
    Mask,
    Volume,
    check_volumes,
    finite_values,
    grey_window,
    signed_limit,
)
from sharding.volumes.slabs import Empty, Slab, in_memory, slabs

Greys = NDArray[np.uint8]

MOST_SLICES = 24
"""Slices across an axis at most."""
LONGEST = 256
"""Pixels along the longer side of a slice at most; finer ones are averaged."""
MARGIN = 4
"""Voxels left around the mask; what lies further out is cut off."""
ZERO, STEPS, STEP = 128, 31, 4
"""Of a difference's 8-bit code: where 0 lies, steps to either limit, and the size of one. So few
steps can still be told apart, and make files half as large."""
PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}
"""Letter of an axis's direction -> name of the slices across it; others are axial."""


@dataclass(frozen=True, eq=False)
class Volumes:
    """One specimen's volumes, all on one grid, standardised.

    Attributes:
        specimen: Its name.
        source: Shape (x, y, z).
        target: Same shape.
        synthetic: Method -> volume of the same shape; one or more.
        mask: Foreground, for windows and choice of slices; None for all voxels.
        spacing_mm: Voxel size along the three axes.
        orientation: Where the axes point, such as RAS; empty if that is not known.
    """

    specimen: str
    source: Volume
    target: Volume
    synthetic: Mapping[str, Volume]
    mask: Mask | None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    orientation: str = ""


@dataclass(frozen=True, eq=False)
class AxisSlices:
    """Slices across one axis, as shown: rows from the top, shape (slices, height, width).

    Attributes:
        name: The axis, such as `z (axial)`.
        indices: Which slices of the volume these are.
        central: Position in `indices` of the slice with the largest mask.
        size_mm: Width and height; pixels need not be square.
        source: Greys.
        target: Greys.
        synthetic: Method -> greys.
        difference: Method -> synthetic - target, coded as `difference_palette` colours it.
    """

    name: str
    indices: tuple[int, ...]
    central: int
    size_mm: tuple[float, float]
    source: Greys
    target: Greys
    synthetic: dict[str, Greys]
    difference: dict[str, Greys]

    @property
    def ratio(self) -> float:
        """Width over height."""
        return self.size_mm[0] / self.size_mm[1]


@dataclass(frozen=True, eq=False)
class Slices:
    """One specimen's slices across x, y and z.

    Attributes:
        specimen: Its name.
        axes: Across x, y, z.
        window: What is black and what is white, standardised units.
        limit: Largest difference that is told apart, standardised units.
    """

    specimen: str
    axes: tuple[AxisSlices, AxisSlices, AxisSlices]
    window: tuple[float, float]
    limit: float

    @property
    def methods(self) -> list[str]:
        """What synthetic volumes there are, in order."""
        return list(self.axes[0].synthetic)


def cut_slices(volumes: Volumes, empty: Empty = in_memory) -> Slices:
    """Slices through a specimen; the volumes are not needed afterwards.

    Grey values of all volumes share a window, the 0.5th to 99.5th percentile of the target in the
    mask; all methods share the limit of the difference, the 99.5th percentile of its size. The
    first axis left after slicing points right and the second up.

    Args:
        volumes: The specimen's.
        empty: Makes the arrays that are as large as a volume.

    Raises:
        ValueError: If there is no method, or shapes, mask or spacing do not fit.
    """
    target = volumes.target
    mask = np.ones(target.shape, bool) if volumes.mask is None else volumes.mask
    name, made_all = volumes.specimen, volumes.synthetic
    check_volumes(name, made_all, volumes.source, target, mask, volumes.spacing_mm)
    low, high = grey_window(finite_values([target], [mask], empty))
    errors = {key: Difference(made, target) for key, made in made_all.items()}
    every = finite_values(list(errors.values()), [mask] * len(errors), empty)
    limit = signed_limit(every)
    del every

    def grey(picture: Volume) -> Greys:
        scaled = np.nan_to_num((picture - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
        return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)

    def code(picture: Volume) -> Greys:
        scaled = np.clip(np.nan_to_num(picture / limit, nan=0.0), -1, 1)
        return (ZERO + STEP * np.rint(scaled * STEPS)).astype(np.uint8)

    ends = [_ends(mask, axis) for axis in range(3)]
    axes = []
    for axis, (first, last) in enumerate(ends):
        central = central_slice(mask, axis)
        indices = _spread(np.arange(first, last + 1), central)

        cropped = [slice(max(a - MARGIN, 0), b + 1 + MARGIN) for a, b in ends]

        def cut(
            volume: View,
            shown: Callable[[Volume], Greys],
            axis: int = axis,
            indices: tuple[int, ...] = indices,
            cropped: Sequence[slice] = cropped,
        ) -> Greys:
            return _cut(volume, shown, axis, indices, cropped).transpose(0, 2, 1)[:, ::-1]

        seen = cut(target, grey)
        across, up = (volumes.spacing_mm[k] for k in range(3) if k != axis)
        slices = AxisSlices(
            name=_axis_name(axis, volumes.orientation),
            indices=indices,
            central=indices.index(central),
            size_mm=(seen.shape[2] * across, seen.shape[1] * up),
            source=cut(volumes.source, grey),
            target=seen,
            synthetic={name: cut(volume, grey) for name, volume in made_all.items()},
            difference={name: cut(error, code) for name, error in errors.items()},
        )
        axes.append(reduced(slices, MOST_SLICES, LONGEST))
    return Slices(volumes.specimen, (axes[0], axes[1], axes[2]), (low, high), limit)


def _cut(
    volume: View,
    shown: Callable[[Volume], Greys],
    axis: int,
    indices: Sequence[int],
    cropped: Sequence[slice],
) -> Greys:
    """Some slices across an axis as they are shown, cropped along the other axes.

    The volume is read once from its first plane across z to its last, as it lies on disk.
    """
    found = np.empty((*volume.shape[:axis], len(indices), *volume.shape[axis + 1 :]), np.uint8)
    if axis == 2:
        for number, index in enumerate(indices):
            found[:, :, number] = shown(volume[:, :, index])
    else:
        for slab in slabs(volume.shape):
            place: list[slice | list[int]] = list(slab)
            place[axis] = list(indices)
            to: Slab = (*(slice(None),) * 2, slab[2])
            found[to] = shown(volume[tuple(place)])
    kept = [*cropped]
    kept[axis] = slice(None)
    return np.moveaxis(found[tuple(kept)], axis, 0)


def reduced(slices: AxisSlices, most: int, longest: int) -> AxisSlices:
    """At most so many slices, and so many pixels along the longer side; the central one stays."""
    kept = _spread(np.array(slices.indices), slices.indices[slices.central], most)
    places = [slices.indices.index(index) for index in kept]
    width, height = slices.size_mm
    pixel = max(width, height) / longest
    rows, columns = slices.target.shape[1:]
    size = (min(columns, round(width / pixel) or 1), min(rows, round(height / pixel) or 1))

    def small(pictures: Greys) -> Greys:
        chosen = pictures[places]
        if size == (columns, rows):
            return chosen
        images = [Image.fromarray(picture) for picture in chosen]
        return np.stack([np.asarray(i.resize(size, Image.Resampling.BILINEAR)) for i in images])

    def coded(pictures: Greys) -> Greys:
        steps = np.rint((small(pictures).astype(np.float32) - ZERO) / STEP)
        return (ZERO + STEP * steps).astype(np.uint8)

    return replace(
        slices,
        indices=kept,
        central=kept.index(slices.indices[slices.central]),
        source=small(slices.source),
        target=small(slices.target),
        synthetic={name: small(pictures) for name, pictures in slices.synthetic.items()},
        difference={name: coded(pictures) for name, pictures in slices.difference.items()},
    )


def difference_palette() -> NDArray[np.uint8]:
    """Colour of each code of a difference, shape (256, 3): blue positive, red negative."""
    codes = (np.arange(256) - ZERO) / (STEP * STEPS)
    return np.rint(colormaps["RdBu"]((codes + 1) / 2)[:, :3] * 255).astype(np.uint8)


def _ends(mask: Mask, axis: int) -> tuple[int, int]:
    """First and last slice across an axis that the mask touches."""
    found = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    return int(found[0]), int(found[-1])


def _spread(indices: NDArray[np.int_], central: int, most: int = MOST_SLICES) -> tuple[int, ...]:
    """Evenly spaced indices with the central one in the place of its neighbour."""
    count = min(most, len(indices))
    chosen = indices[np.rint(np.linspace(0, len(indices) - 1, count)).astype(int)]
    chosen[np.argmin(np.abs(chosen - central))] = central
    return tuple(int(index) for index in chosen)


def _axis_name(axis: int, orientation: str) -> str:
    """`z (axial)`, or `z` where the orientation is not known."""
    name = "xyz"[axis]
    return f"{name} ({PLANES.get(orientation[axis], 'axial')})" if orientation else name
