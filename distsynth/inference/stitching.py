"""Patches back into a volume: overlaps averaged, borders trimmed, gaps refused.

Sums are float64, so that averaging copies of one float32 value returns that very value: dense
patches of a volume stitch back to it bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distsynth.metrics.overlap import Overlap
from sharding.shards.patches import BLOCK, extended, extent

Place = tuple[slice, ...]
"""A part of an array."""


class PatchSum:
    """A weighted float64 sum of overlapping patches.

    Args:
        total: Where patches are added, shape (..., *sides), filled with zeros.
        window: Weights of a patch's voxels, shape patch_size; None weighs all alike.
    """

    def __init__(self, total: Tensor, window: Tensor | None) -> None:
        self.total = total
        self._window = None if window is None else window.to(total.device)

    def weighted(self, patches: Tensor) -> Tensor:
        """Patches (n, *patch_size), multiplied by the window, on the device of the sum."""
        values = patches.detach().to(self.total.device)
        return values if self._window is None else values * self._window

    def add(self, weighted: Tensor, place: Place, part: Place) -> None:
        """Add the part of a weighted patch, or of a stack of them, that a place takes."""
        self.total[(..., *place)] += weighted[(..., *part)]


class Stitcher:
    """Averages patches into one volume (section 5.2), trimmed at their borders (section 7.2).

    Trim cuts `trim` voxels off each patch side, but never at the volume's own faces, where voxels
    would stay uncovered (ours), and never along the slicing axis of a 2D patch.

    `total` (weighted sum of patches) and `weight` (sum of weights) are plain float64 tensors of
    the volume's shape, and so are all `sums`: ranks that stitch different patches add them up
    (all-reduce) in place before calling `volume` or `overlap`.

    Args:
        shape: Volume shape (x, y, z) in voxels.
        patch_size: Two sides (slice patches) or three (blocks) in voxels.
        trim: Voxels cut from each patch side.
        weights: "uniform", the plain average (the paper), or "smooth" (ours): the product over
            the patch's axes of sin²(π (i + 1/2) / n), for voxel i of the n left by the trim, so
            that a patch fades out towards its border. Voxels that the trim spares at a face
            take the outermost of these weights. All weights are positive.
        device: The device of the sums.
        spread: Keep what `overlap` needs: two more arrays of the volume's shape.

    Raises:
        ValueError: If trim is negative or leaves nothing of a patch, weights is unknown, or
            sizes do not have three and two or three sides.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch_size: Sequence[int],
        trim: int = 0,
        weights: Literal["uniform", "smooth"] = "uniform",
        device: torch.device | str = "cpu",
        spread: bool = False,
    ) -> None:
        _check_sizes(shape, patch_size, trim)
        if weights not in ("uniform", "smooth"):
            raise ValueError(f"weights must be uniform or smooth, got {weights!r}")
        self.shape = tuple(shape)
        self.patch_size = tuple(patch_size)
        self.trim = trim
        window = smooth_window(patch_size, trim) if weights == "smooth" else None
        self.total = torch.zeros(self.shape, dtype=torch.float64, device=device)
        self.weight = torch.zeros_like(self.total)
        more = [torch.zeros_like(self.total) for _ in range(2 * spread)]
        self.sums = [self.total, self.weight, *more]
        self._sums = [PatchSum(part, window) for part in self.sums]

    def add(self, patches: Tensor, locations: NDArray[np.int32]) -> None:
        """Add patches to the sums.

        Args:
            patches: Shape (n, *patch_size), any floating dtype and device.
            locations: Shape (n, 4): slicing axis and corner of each patch.

        Raises:
            ValueError: If shapes disagree or a patch leaves the volume.
        """
        expected = (len(locations), *self.patch_size)
        if tuple(patches.shape) != expected:
            raise ValueError(f"patches must have shape {expected}, got {tuple(patches.shape)}")
        where = places(locations, self.shape, self.patch_size, self.trim)
        one = torch.ones(1, *self.patch_size, dtype=torch.float64, device=self.total.device)
        patch_sum, weight, *spread = self._sums
        weights = weight.weighted(one)
        parts = [patch_sum.weighted(patches), weights.expand(len(patches), *self.patch_size)]
        if spread:
            squares, powers = spread
            parts += [squares.weighted(patches.double().square())]
            parts += [powers.weighted(weights).expand(len(patches), *self.patch_size)]
        for row, (axis, (place, part)) in enumerate(zip(locations[:, 0], where, strict=True)):
            for total, values in zip(self._sums, parts, strict=True):
                total.add(_with_axis(values[row], axis), place, part)

    @property
    def covered(self) -> Tensor:
        """Voxels that lie in some trimmed patch: bool, shape (x, y, z)."""
        return self.weight > 0

    def volume(self, allow_uncovered: bool = False) -> Tensor:
        """The weighted mean of all patches so far.

        Args:
            allow_uncovered: Return NaN where no patch lies, rather than raise: any other value
                could be mistaken for the network's output.

        Returns:
            Float32, shape (x, y, z), on the device of the sums.

        Raises:
            ValueError: If voxels are uncovered and this is not allowed.
        """
        gaps = (self.weight == 0).flatten()
        count = int(gaps.sum())
        if count and not allow_uncovered:
            first = np.unravel_index(int(gaps.byte().argmax()), self.shape)
            raise ValueError(gaps_message(count, gaps.numel(), tuple(map(int, first))))
        return (self.total / self.weight).float()

    def overlap(self) -> Overlap:
        """How far the patches so far differ where they overlap, if `spread` was asked for.

        Its arrays are NaN where no patch lies.
        """
        total, weight, squares, powers = self.sums
        variance = (squares / weight - (total / weight).square()).clamp(min=0)
        freedom = 1 - powers / weight.square()
        return Overlap(variance.float().cpu().numpy(), freedom.float().cpu().numpy())


def gaps_message(count: int, voxels: int, first: tuple[int, ...] | None = None) -> str:
    """The message about voxels that no patch covers."""
    place = f", the first at {first}" if first else ""
    return (
        f"{count} of {voxels} voxels lie in no patch{place}: use a smaller stride or trim, or "
        "cover every slice"
    )


def smooth_window(patch_size: Sequence[int], trim: int = 0) -> Tensor:
    """Weights that fall towards the border left by the trim: see Stitcher.

    Args:
        patch_size: Sides in voxels, any number of them.
        trim: Voxels cut from each side.

    Returns:
        Float64, shape patch_size, all positive.
    """
    window = torch.ones((), dtype=torch.float64)
    for side in patch_size:
        kept = side - 2 * trim
        index = (torch.arange(side, dtype=torch.float64) - trim).clamp(0, kept - 1)
        window = window.unsqueeze(-1) * torch.sin(math.pi * (index + 0.5) / kept) ** 2
    return window


def places(
    locations: NDArray[np.int32], shape: Sequence[int], patch_size: Sequence[int], trim: int = 0
) -> list[tuple[Place, Place]]:
    """The parts of the volume and of the patches that stitching uses.

    Args:
        locations: Shape (n, 4): slicing axis and corner of each patch.
        shape: Volume shape (x, y, z) in voxels.
        patch_size: Two or three sides in voxels.
        trim: Voxels cut from each patch side, as in Stitcher.

    Returns:
        For each patch its part of the volume that the trim leaves, and the same part within the
        patch, of one voxel along a slicing axis.

    Raises:
        ValueError: If a patch leaves the volume, or locations have another shape.
    """
    lows, highs = _kept(locations, shape, patch_size, trim)
    corners = locations[:, 1:]
    return [
        (tuple(map(slice, low, high)), tuple(map(slice, first, last)))
        for low, high, first, last in zip(
            lows.tolist(),
            highs.tolist(),
            (lows - corners).tolist(),
            (highs - corners).tolist(),
            strict=True,
        )
    ]


def border_planes(
    locations: NDArray[np.int32],
    shape: Sequence[int],
    patch_size: Sequence[int],
    trim: int = 0,
    alignment: int = 1,
) -> list[NDArray[np.intp]]:
    """Planes where a patch starts or ends, at which there can be seams.

    Args:
        locations: Shape (n, 4): slicing axis and corner of each patch.
        shape: Volume shape (x, y, z) in voxels.
        patch_size: Two or three sides in voxels.
        trim: Voxels cut from each patch side, as in Stitcher.
        alignment: The patches lie in the volume extended to multiples of it.

    Returns:
        For each of the three axes the sorted plane indices p: the border lies between voxels
        p - 1 and p. The volume's faces are left out, and so is the slicing axis of a 2D patch,
        along which every slice would be a border.

    Raises:
        ValueError: As Stitcher and its `add` do.
    """
    _check_sizes(shape, patch_size, trim)
    lows, highs = _kept(locations, extended(shape, alignment), patch_size, trim)
    planes = []
    for dim, size in enumerate(shape):
        cut = locations[:, 0] != dim
        ends = np.unique(np.concatenate([lows[cut, dim], highs[cut, dim]]))
        planes.append(ends[(ends > 0) & (ends < size)].astype(np.intp))
    return planes


def _check_sizes(shape: Sequence[int], patch_size: Sequence[int], trim: int) -> None:
    """Raise ValueError for sizes that cannot be stitched."""
    if len(shape) != 3 or len(patch_size) not in (2, 3):
        raise ValueError(
            "a volume has three sides and a patch two or three, "
            f"got {tuple(shape)} and {tuple(patch_size)}"
        )
    if not 0 <= 2 * trim < min(patch_size):
        raise ValueError(
            f"trim must be >= 0 and less than half the patch side {min(patch_size)}, got {trim}"
        )


def _kept(
    locations: NDArray[np.int32], shape: Sequence[int], patch_size: Sequence[int], trim: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxel kept of each patch and the one past the last: two arrays of shape (n, 3)."""
    if locations.ndim != 2 or locations.shape[1] != 4:
        raise ValueError(f"locations must have shape (n, 4), got {locations.shape}")
    axes, lows = locations[:, 0], locations[:, 1:].astype(np.int64)
    sides = np.zeros_like(lows)
    for axis in np.unique(axes).tolist():
        sides[axes == axis] = extent(patch_size, axis)
    highs = lows + sides
    outside = ((lows < 0) | (highs > shape)).any(axis=1)
    if outside.any():
        first = locations[np.argmax(outside)].tolist()
        raise ValueError(
            f"the patch at (axis, corner) {first} leaves the volume of {tuple(shape)} voxels"
        )
    return trimmed(lows, highs, shape, np.where(axes[:, None] == np.arange(3), 0, trim))


def trimmed(lows: Any, highs: Any, sides: Any, trim: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where patches from `lows` to `highs` count: cut by the trim but at faces of the volume."""
    return np.where(lows > 0, lows + trim, 0), np.where(highs < sides, highs - trim, highs)


def _with_axis(patch: Tensor, axis: int) -> Tensor:
    """A patch as a view with three dimensions."""
    return patch if axis == BLOCK else patch.unsqueeze(axis)
