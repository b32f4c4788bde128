"""Where patches lie in a volume: random ones for training, dense grids that cover it.

A location is four numbers: the slicing axis 0, 1 or 2 of a 2D patch, or BLOCK for a 3D patch, and
the patch's first voxel along each axis of the volume. Shards, the loader and stitching hold many of
them as one int32 array of shape (n, 4).

Patches may be aligned: they then start at multiples of a number of voxels, and the far ends of a
volume are extended to such a multiple, so that aligned patches still cover every voxel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = -1
"""The axis value of a 3D patch."""


def extent(patch_size: Sequence[int], axis: int) -> tuple[int, int, int]:
    """Voxels that a patch takes along each axis of its volume.

    Args:
        patch_size: Two sides (a slice patch) or three (a block).
        axis: Slicing axis 0, 1 or 2 for two sides; BLOCK for three.

    Returns:
        Three sides; 1 along the slicing axis.
    """
    if len(patch_size) == 3:
        if axis != BLOCK:
            raise ValueError(f"a 3D patch has axis {BLOCK}, got {axis}")
        a, b, c = patch_size
        return a, b, c
    if axis not in (0, 1, 2):
        raise ValueError(f"a 2D patch needs a slicing axis of 0, 1, 2, got {axis}")
    sides = list(patch_size)
    sides.insert(axis, 1)
    return sides[0], sides[1], sides[2]


def patch_axes(patch_size: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The axes to cut along: those chosen for slices, BLOCK alone for 3D patches."""
    return tuple(axes) if len(patch_size) == 2 else (BLOCK,)


def extended(shape: Sequence[int], alignment: int) -> tuple[int, ...]:
    """The sides of a volume or an image, each extended to a multiple of the alignment."""
    return tuple(size + -size % alignment for size in shape)


def extend_volume(volume: NDArray, alignment: int) -> NDArray:
    """The volume with its last voxels repeated up to the extended shape."""
    more = [
        (0, end - size)
        for size, end in zip(volume.shape, extended(volume.shape, alignment), strict=True)
    ]
    return np.pad(volume, more, mode="edge") if any(far for _, far in more) else volume


def fits(shape: Sequence[int], patch_size: Sequence[int], axis: int, alignment: int = 1) -> bool:
    """Whether the patch is no larger than the extended volume along any axis."""
    sides = extent(patch_size, axis)
    return all(side <= size for side, size in zip(sides, extended(shape, alignment), strict=True))


def check_fits(
    shape: Sequence[int], patch_size: Sequence[int], axis: int, alignment: int = 1
) -> None:
    """Raise ValueError if the patch is larger than the extended volume along any axis."""
    if not fits(shape, patch_size, axis, alignment):
        raise ValueError(
            f"patches of {'x'.join(map(str, patch_size))} cut along axis {axis} do not fit into "
            f"a volume of {'x'.join(map(str, shape))} voxels"
        )


def dense_locations(
    shape: Sequence[int],
    patch_size: Sequence[int],
    stride: int,
    axes: Sequence[int],
    slices: int = 0,
    alignment: int = 1,
) -> NDArray[np.int32]:
    """A grid of patches that covers every voxel (section 5.2: spacing of 20 voxels).

    The last patch of each row ends at the volume's face, so that it may lie closer than `stride`
    to the one before it.

    Args:
        shape: Volume shape in voxels.
        patch_size: Two or three sides in voxels.
        stride: Voxels between neighbouring patches, within a slice or a block grid.
        axes: Slicing axes; every slice along each is covered.
        slices: Cover only this many evenly spaced slices along each axis; 0 covers all.
        alignment: Patches start at multiples of it, in a volume that is extended to one.

    Returns:
        Locations, shape (n, 4), ordered by axis, then slice.

    Raises:
        ValueError: If a patch does not fit, the stride leaves gaps between patches, or patch or
            stride are not divisible by the alignment.
    """
    _check_aligned((*patch_size, stride), alignment)
    if not 1 <= stride <= min(patch_size):
        raise ValueError(
            f"stride must be from 1 to the patch side {min(patch_size)}, got {stride}: "
            "a larger one leaves voxels uncovered"
        )
    rows: list[NDArray[np.int32]] = []
    for axis in patch_axes(patch_size, axes):
        check_fits(shape, patch_size, axis, alignment)
        whole = extended(shape, alignment)
        starts = [
            _slice_starts(shape[dim], slices)
            if dim == axis
            else grid_starts(whole[dim], side, stride)
            for dim, side in enumerate(extent(patch_size, axis))
        ]
        order = [axis, *(dim for dim in range(3) if dim != axis)] if axis != BLOCK else [0, 1, 2]
        corners = np.array(list(itertools.product(*(starts[dim] for dim in order))), np.int32)
        corners = corners[:, np.argsort(order)]
        rows.append(np.column_stack([np.full(len(corners), axis, np.int32), corners]))
    return np.concatenate(rows)


def grid_starts(size: int, side: int, stride: int) -> list[int]:
    """Starts of a dense grid's patches along one axis; the last one ends at the face."""
    last = size - side
    return [*range(0, last, stride), last]


def random_locations(
    mask: NDArray[np.bool_],
    patch_size: Sequence[int],
    count: int,
    axes: Sequence[int],
    foreground: float,
    rng: np.random.Generator,
    alignment: int = 1,
) -> NDArray[np.int32]:
    """Random patches with a share that is centred on foreground (section 5.2: 300 a specimen).

    Args:
        mask: Foreground of the volume.
        patch_size: Two or three sides in voxels.
        count: Number of patches; they are dealt to the axes in turn.
        axes: Slicing axes of 2D patches.
        foreground: Share of patches, 0 to 1, whose centre is drawn from the mask (moved inwards
            at the faces); the others lie anywhere with equal chance.
        rng: The only source of randomness.
        alignment: Patches start at multiples of it along their sides, at or before where they would
            else, in a volume that is extended to one.

    Returns:
        Locations, shape (count, 4).

    Raises:
        ValueError: If a patch does not fit or is not divisible by the alignment, or foreground is
            asked for and the mask is empty.
    """
    _check_aligned(patch_size, alignment)
    inside = np.flatnonzero(mask)
    if foreground > 0 and not len(inside):
        raise ValueError("no foreground voxel to centre patches on")
    choices = patch_axes(patch_size, axes)
    for axis in choices:
        check_fits(mask.shape, patch_size, axis, alignment)
    locations = np.empty((count, 4), np.int32)
    whole = np.array(extended(mask.shape, alignment))
    for row in range(count):
        axis = choices[row % len(choices)]
        sides = np.array(extent(patch_size, axis))
        steps = np.where(np.arange(3) == axis, 1, alignment)
        highest = np.where(steps == 1, mask.shape, whole) - sides
        if rng.random() < foreground:
            centre = np.array(np.unravel_index(rng.choice(inside), mask.shape))
            corner = np.clip(centre - sides // 2, 0, highest)
        else:
            corner = rng.integers(0, highest + 1)
        locations[row] = axis, *(corner - corner % steps)
    return locations


def cut(volume: NDArray, patch_size: Sequence[int], locations: NDArray[np.int32]) -> NDArray:
    """Copy patches out of a volume.

    Args:
        volume: Shape (x, y, z).
        patch_size: Two or three sides in voxels.
        locations: Shape (n, 4).

    Returns:
        Shape (n, *patch_size), the volume's dtype.
    """
    patches = np.empty((len(locations), *patch_size), volume.dtype)
    for patch, (axis, *corner) in zip(patches, locations.tolist(), strict=True):
        patch[...] = volume[window(patch_size, axis, corner)].reshape(patch_size)
    return patches


def cut_channels(
    volume: NDArray, patch_size: Sequence[int], locations: NDArray[np.int32], neighbours: int
) -> NDArray:
    """Copy patches with the slices around them as channels (2.5D).

    Args:
        volume: Shape (x, y, z).
        patch_size: Two or three sides in voxels.
        locations: Shape (n, 4).
        neighbours: Slices on each side, along the slicing axis; 0 gives one channel. Beyond the
            volume's faces the outermost slice is repeated.

    Returns:
        Shape (n, 1 + 2 * neighbours, *patch_size), the volume's dtype; the patch itself is the
        middle channel.

    Raises:
        ValueError: If blocks are to have neighbours.
    """
    if neighbours and len(patch_size) != 2:
        raise ValueError("only patches of two sides have neighbouring slices")
    if neighbours == 0:
        return cut(volume, patch_size, locations)[:, None]
    channels = []
    rows, axes = np.arange(len(locations)), locations[:, 0]
    for step in range(-neighbours, neighbours + 1):
        moved = locations.copy()
        if step:
            last = np.array(volume.shape)[axes] - 1
            moved[rows, axes + 1] = np.clip(locations[rows, axes + 1] + step, 0, last)
        channels.append(cut(volume, patch_size, moved))
    return np.stack(channels, axis=1)


def window(patch_size: Sequence[int], axis: int, corner: Sequence[int]) -> tuple[slice, ...]:
    """The slices that select a patch from its volume."""
    sides = extent(patch_size, axis)
    return tuple(slice(low, low + side) for low, side in zip(corner, sides, strict=True))


def _check_aligned(sizes: Sequence[int], alignment: int) -> None:
    """Raise ValueError unless all sizes are divisible by the alignment."""
    if any(size % alignment for size in sizes):
        raise ValueError(
            f"patch sides and stride must be divisible by the alignment of {alignment}, got "
            f"{tuple(sizes)}"
        )


def _slice_starts(size: int, slices: int) -> list[int]:
    """All slices, or some evenly spaced ones that keep clear of the faces."""
    if slices == 0 or slices >= size:
        return list(range(size))
    return [int((index + 0.5) * size / slices) for index in range(slices)]
