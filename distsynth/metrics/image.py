"""How good a synthetic volume is: equations 6-8 and their usual forms.

Volumes are arrays of shape (x, y, z). MSE and PSNR take them in standardised intensity: the target
was scaled to [0, 1] between its own 0.1 and 99.9 percentiles, and then to zero mean and unit
variance, so that its range (`data_range`) is 1 / std. SSIM takes them on the scale of [0, 1]
itself, for its luminance term assumes intensities that are not negative. A mask is a bool array
of the same shape; None means every voxel. All functions raise ValueError if shapes differ or the
mask is empty. They go through volumes by parts, so that no array as large as a volume is made, but
for windows in slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.views import View
from distsynth.metrics.windows import SSIM_WINDOW, Moments, moments, similarity, window_means
from sharding.volumes import slabs as slab_sizes
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.slabs import Empty, in_memory, slabs
from sharding.volumes.tiles import Tile, tiles

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

PAPER_PEAK = 255.0
"""The peak of eq. 7, as if standardised intensities were 8-bit."""
LEAST_TILE = 2**16
"""Voxels of the tiles of a windowed SSIM at least, so that no side is under a window."""

Change = Callable[[Array], Array]
"""A function of single voxels."""


def mse(synthetic: Array, target: Array, mask: Mask | None = None) -> float:
    """Mean squared error (eq. 6), in standardised units squared."""
    return changed_mse(synthetic, target, mask, _same)


def changed_mse(synthetic: Array, target: Array, mask: Mask | None, change: Change) -> float:
    """The mean squared error of both volumes after a change of their voxels."""
    total, count = 0.0, 0
    for a, b in masked_parts(mask, synthetic, target):
        total += float(np.square(np.subtract(change(a), change(b), dtype=np.float64)).sum())
        count += a.size
    return total / count


def psnr(mse_value: float, peak: float) -> float:
    """Peak signal-to-noise ratio, 20 log10(peak / sqrt(MSE)) (eq. 7).

    The paper sets the peak to 255 although intensities are standardised, which adds 48.13 dB to
    the value at peak 1: never compare values of different peaks.

    Args:
        mse_value: Mean squared error.
        peak: Largest possible value, in the units of the volumes.

    Returns:
        Decibels; infinity for an error of 0, minus infinity for an infinite one.
    """
    if mse_value < 0 or peak <= 0:
        raise ValueError(f"PSNR needs an error >= 0 and a peak > 0, got {mse_value} and {peak}")
    return math.inf if mse_value == 0 else 20 * math.log10(peak) - 10 * math.log10(mse_value)


def global_ssim(
    synthetic: Array, target: Array, data_range: float, mask: Mask | None = None
) -> float:
    """Structural similarity from global means, variances and covariance (eq. 8).

    SSIM = (2 μₛ μₜ + c1)(2 σₛₜ + c2) / ((μₛ² + μₜ² + c1)(σₛ² + σₜ² + c2)), with
    c1 = (0.01 L)² and c2 = (0.03 L)² for data range L. The scan of eq. 8 shows a sum of the two
    brackets below the line; a product is meant (ours), as only that gives 1 for equal images: see
    literal_ssim for the sum.

    Returns:
        -1 to 1, 1 for equal volumes. It ignores where errors lie: see windowed_ssim.
    """
    above, means, variances = _global_terms(synthetic, target, data_range, mask)
    return above / (means * variances)


def literal_ssim(
    synthetic: Array, target: Array, data_range: float, mask: Mask | None = None
) -> float:
    """Eq. 8 as it is printed: with the sum of the denominator's two brackets, not their product.

    For equal volumes on [0, 1] it is far below 1, and it grows with contrast and brightness
    alike: it stands beside global_ssim to show what the printed form gives, and measures nothing.
    """
    above, means, variances = _global_terms(synthetic, target, data_range, mask)
    return above / (means + variances)


def _global_terms(
    synthetic: Array,
    target: Array,
    data_range: float,
    mask: Mask | None,
    change: Change | None = None,
) -> tuple[float, float, float]:
    """The numerator of eq. 8 and the two brackets of its denominator."""
    _check_range(data_range)
    change = change or _same
    count, sums, products = 0, np.zeros(2), np.zeros(3)
    pivots = None
    for part in masked_parts(mask, synthetic, target):
        if not part[0].size:
            continue
        a, b = (change(values).astype(np.float64).ravel() for values in part)
        # Near the means, so that squares of large intensities do not round variances away.
        pivots = pivots or (float(a.mean()), float(b.mean()))
        a -= pivots[0]
        b -= pivots[1]
        sums += a.sum(), b.sum()
        products += a @ b, a @ a, b @ b
        count += a.size
    assert pivots is not None
    means = sums / count
    mean_a, mean_b = (means + pivots).tolist()
    cross = means[0] * means[1], means[0] ** 2, means[1] ** 2
    covariance, variance_a, variance_b = (products / count - cross).tolist()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return above, mean_a**2 + mean_b**2 + c1, variance_a + variance_b + c2


def ssim_map(
    synthetic: Array, target: Array, data_range: float, dims: int = 3, axis: int = 2
) -> Array:
    """Structural similarity around each voxel, as Wang et al. (2004) define it.

    Gaussian windows of sigma 1.5 voxels, SSIM_WINDOW wide, reflected at the faces; population
    covariance.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape.
        data_range: L of the constants, in the units of the volumes: 1 on [0, 1].
        dims: 3 for windows in space, 2 for windows in slices.
        axis: Slicing axis for dims 2.

    Returns:
        Same shape, -1 to 1.

    Raises:
        ValueError: Also if a side of the windowed space is under SSIM_WINDOW voxels.
    """
    check_same_shapes(synthetic, target)
    _check_range(data_range)
    if dims not in (2, 3):
        raise ValueError(f"dims must be 2 or 3, got {dims}")
    if dims == 3:
        return _ssim(synthetic, target, data_range)
    out = np.empty(target.shape, np.result_type(synthetic, target, np.float32))
    views = (np.moveaxis(volume, axis, 0) for volume in (out, synthetic, target))
    for row, a, b in zip(*views, strict=True):
        row[...] = _ssim(a, b, data_range)
    return out


def windowed_ssim(
    synthetic: Array,
    target: Array,
    data_range: float,
    mask: Mask | None = None,
    dims: int = 3,
    axis: int = 2,
) -> float:
    """Mean of ssim_map over the mask, or over all voxels; windows may reach out of the mask."""
    check_same_shapes(synthetic, target, mask)
    check_not_empty(synthetic, mask)
    if dims == 3:
        _check_range(data_range)
        return _window_means(synthetic, target, data_range, [mask], _same)[0]
    values = ssim_map(synthetic, target, data_range, dims, axis)
    return float((values if mask is None else values[mask]).mean(dtype=np.float64))


def _window_means(
    synthetic: Array,
    target: Array,
    data_range: float,
    regions: Sequence[Mask | None],
    change: Change,
    windows: Moments | None = None,
) -> list[float]:
    """The mean of ssim_map over each region, tile by tile, of voxels that are changed before."""
    sums, counts = [0.0] * len(regions), [0] * len(regions)
    for tile in _window_tiles(target.shape):
        a, b = _common(change(synthetic[tile.read]), change(target[tile.read]))
        known = moments(b)[tile.inner] if windows is None else windows[tile.write]
        product = window_means(a * b)[tile.inner]
        found = similarity(moments(a)[tile.inner], known, product, data_range)
        for number, region in enumerate(regions):
            values = found if region is None else found[region[tile.write]]
            sums[number] += float(values.sum(dtype=np.float64))
            counts[number] += values.size
    return [total / count for total, count in zip(sums, counts, strict=True)]


def target_windows(
    target: Array, transform: IntensityTransform, empty: Empty = in_memory
) -> Moments | None:
    """What windowed SSIM needs of a target alone, for volume_metrics of several predictions.

    Args:
        target: Shape (x, y, z), standardised.
        transform: Of the target.
        empty: Makes the two arrays as large as the volume.

    Returns:
        Moments on [0, 1]; None where a side is under SSIM_WINDOW voxels.
    """
    if min(target.shape) < SSIM_WINDOW:
        return None
    found = Moments(empty(target.shape), empty(target.shape))
    for tile in _window_tiles(target.shape):
        part = moments(transform.unstandardise(target[tile.read]))[tile.inner]
        found.mean[tile.write], found.variance[tile.write] = part.mean, part.variance
    return found


def _window_tiles(shape: Sequence[int]) -> list[Tile]:
    """The tiles of a volume whose windows are within them."""
    return tiles(shape, SSIM_WINDOW // 2, max(slab_sizes.SLAB, LEAST_TILE))


def volume_metrics(
    synthetic: Array,
    target: Array,
    transform: IntensityTransform,
    mask: Mask,
    windows: Moments | None = None,
) -> dict[str, float]:
    """Equations 6-8 and windowed 3D SSIM, in the mask and over the whole volume.

    MSE and PSNR are of standardised intensities. SSIM is computed on [0, 1] with L = 1. Neither is
    clipped: where the synthetic volume exceeds the range of the target, this counts as an error.

    Args:
        synthetic: Shape (x, y, z), standardised.
        target: Same shape and scale.
        transform: Of the target: its range, and the way back to [0, 1].
        mask: Foreground, same shape.
        windows: target_windows of the target; None computes what is needed of them.

    Returns:
        Key of METRICS -> value, twelve of them. Keys with 255 use the paper's peak, PSNR without
        uses the target's range. Windowed SSIM is NaN where a side is under SSIM_WINDOW voxels.
    """
    check_same_shapes(synthetic, target, mask)
    check_not_empty(synthetic, mask)
    scale, regions = transform.unstandardise, {"mask": mask, "whole": None}
    windowed = [math.nan] * len(regions)
    if min(target.shape) >= SSIM_WINDOW:
        windowed = _window_means(synthetic, target, 1.0, [*regions.values()], scale, windows)
    values: dict[str, float] = {}
    for (region, where), in_windows in zip(regions.items(), windowed, strict=True):
        error = mse(synthetic, target, where)
        values[f"mse_{region}"] = error
        values[f"psnr255_{region}"] = psnr(error, PAPER_PEAK)
        values[f"psnr_{region}"] = psnr(error, transform.data_range)
        above, means, variances = _global_terms(synthetic, target, 1.0, where, scale)
        values[f"ssim_global_{region}"] = above / (means * variances)
        values[f"ssim_literal_{region}"] = above / (means + variances)
        values[f"ssim_{region}"] = in_windows
    return values


def check_same_shapes(first: View, *others: View | None) -> None:
    """Raise ValueError unless all arrays given have one shape."""
    for other in others:
        if other is not None and other.shape != first.shape:
            raise ValueError(f"volumes and mask must have one shape: {first.shape}, {other.shape}")


def check_not_empty(volume: Array, mask: Mask | None) -> None:
    """Raise ValueError unless there are voxels to measure."""
    if volume.size == 0 or (mask is not None and not mask.any()):
        raise ValueError("the mask is empty: there is no voxel to measure")


def _check_range(data_range: float) -> None:
    """Raise ValueError unless the range can scale SSIM's constants."""
    if not data_range > 0:
        raise ValueError(f"data_range must be > 0, got {data_range}")


def masked_parts(mask: Mask | None, *volumes: Array) -> Iterator[list[Array]]:
    """The volumes' voxels in the mask, checked, slab by slab."""
    check_same_shapes(*volumes, mask)
    check_not_empty(volumes[0], mask)
    for slab in slabs(volumes[0].shape):
        parts = [volume[slab] for volume in volumes]
        yield parts if mask is None else [part[mask[slab]] for part in parts]


def _same(values: Array) -> Array:
    return values


def _ssim(synthetic: Array, target: Array, data_range: float) -> Array:
    """The SSIM map of one slice or volume."""
    a, b = _common(synthetic, target)
    return similarity(moments(a), moments(b), window_means(a * b), data_range)


def _common(synthetic: Array, target: Array) -> tuple[Array, Array]:
    """Both in one type of floating point numbers."""
    kind = np.result_type(synthetic, target, np.float32)
    return synthetic.astype(kind, copy=False), target.astype(kind, copy=False)


def central_slice(mask: Mask, axis: int = 2) -> int:
    """The slice across an axis where the mask is largest; of several, the middle one."""
    areas = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
    largest = np.flatnonzero(areas == areas.max())
    return int(largest[len(largest) // 2])
