"""How good a synthetic volume is: equations 6-8, their usual forms, seams and consistency.

Volumes are arrays of shape (x, y, z) in standardised intensity: the target was scaled to [0, 1]
and then to zero mean and unit variance, so that its range (`data_range`) is 1 / std. A mask is
a bool array of the same shape; None means every voxel. All functions raise ValueError if shapes
differ or the mask is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.metrics import structural_similarity

Volume = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

PAPER_PEAK = 255.0
"""The peak of eq. 7, as if standardised intensities were 8-bit."""

CONTROL_REACH = 4
"""Voxels from a border within which the seam index looks for planes to compare it with."""

METRICS: dict[str, tuple[str, bool]] = {
    "mse_mask": ("MSE, mask (standardised units squared)", False),
    "psnr255_mask": ("PSNR, mask (dB, peak 255 as in eq. 7)", True),
    "psnr_mask": ("PSNR, mask (dB, peak = range of the target)", True),
    "ssim_global_mask": ("SSIM, mask (-1 to 1, global as in eq. 8)", True),
    "ssim_mask": ("SSIM, mask (-1 to 1, windowed 3D)", True),
    "mse_whole": ("MSE, whole volume (standardised units squared)", False),
    "psnr255_whole": ("PSNR, whole volume (dB, peak 255 as in eq. 7)", True),
    "psnr_whole": ("PSNR, whole volume (dB, peak = range of the target)", True),
    "ssim_global_whole": ("SSIM, whole volume (-1 to 1, global as in eq. 8)", True),
    "ssim_whole": ("SSIM, whole volume (-1 to 1, windowed 3D)", True),
    "seam_index": ("Seam index (ratio, 1 = no seam)", False),
    "consistency_error": ("Consistency error (0 = agrees with source, 1 = unrelated)", False),
}
"""Key -> (title with units or range, whether higher is better), in the order of a table."""


def mse(synthetic: Volume, target: Volume, mask: Mask | None = None) -> float:
    """Mean squared error (eq. 6), in standardised units squared."""
    a, b = _masked(mask, synthetic, target)
    return float(np.mean(np.square(np.subtract(a, b, dtype=np.float64))))


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
    synthetic: Volume, target: Volume, data_range: float, mask: Mask | None = None
) -> float:
    """Structural similarity from global means, variances and covariance (eq. 8).

    SSIM = (2 μₛ μₜ + c1)(2 σₛₜ + c2) / ((μₛ² + μₜ² + c1)(σₛ² + σₜ² + c2)), with
    c1 = (0.01 L)² and c2 = (0.03 L)² for data range L. The scan of eq. 8 shows a sum of the two
    brackets below the line; a product is meant (ours), as only that gives 1 for equal images.

    Returns:
        -1 to 1, 1 for equal volumes. It ignores where errors lie: see windowed_ssim.
    """
    _check_range(data_range)
    a, b = (values.astype(np.float64) for values in _masked(mask, synthetic, target))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = float(a.mean()), float(b.mean())
    covariance = float(np.mean((a - mean_a) * (b - mean_b)))
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (float(a.var()) + float(b.var()) + c2)
    return above / below


def ssim_map(
    synthetic: Volume, target: Volume, data_range: float, dims: int = 3, axis: int = 2
) -> Volume:
    """Structural similarity around each voxel, as Wang et al. (2004) define it.

    Gaussian windows of sigma 1.5 voxels, 11 wide, reflected at the faces; population covariance.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape.
        data_range: L of the constants, in standardised units.
        dims: 3 for windows in space, 2 for windows in slices.
        axis: Slicing axis for dims 2.

    Returns:
        Same shape, -1 to 1.

    Raises:
        ValueError: Also if a side of the windowed space is under 11 voxels.
    """
    _check_same(synthetic, target)
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
    synthetic: Volume,
    target: Volume,
    data_range: float,
    mask: Mask | None = None,
    dims: int = 3,
    axis: int = 2,
) -> float:
    """Mean of ssim_map over the mask, or over all voxels; windows may reach out of the mask."""
    (values,) = _masked(mask, ssim_map(synthetic, target, data_range, dims, axis))
    return float(values.mean(dtype=np.float64))


def seam_index(
    synthetic: Volume,
    target: Volume | None,
    borders: Sequence[NDArray[np.integer[Any]]],
    mask: Mask | None = None,
) -> float:
    """How much larger the jumps across patch borders are than those nearby: 1 means no seam.

    Let e = synthetic - target, and a jump |e[p] - e[p - 1]| for each pair of voxels on both
    sides of plane p, both in the mask. The index is

        sum over borders of the jumps across them
        -----------------------------------------------------------------------
        sum over borders of (their pairs x the mean jump across their controls)

    where the controls of a border are the planes within 4 voxels of it that are no borders. So
    each border is compared with its own surroundings, and neither anatomy that changes through
    the volume nor an axis that is rougher than another looks like a seam. Sums run over all axes.
    1.2 says that jumps at borders are 20 % larger than those inside patches.

    Overlaps hide seams: with stride s and side n, averaging n / s patches divides the offset of
    each by that number. Borders without pairs or controls are left out, so that patches whose
    borders lie on every plane (stride 1) give NaN. A network that is worse near patch borders,
    but smoothly so, is not seen here.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape; None looks at the synthetic volume's own jumps, when there is no
            target: less sensitive, as its anatomy then is part of every jump.
        borders: Plane indices for each of the three axes: see stitch.border_planes.
        mask: Where to look.

    Returns:
        >= 0; NaN if there is no border to compare; 1 if there is no jump at all, and infinity if
        all jumps are at borders.

    Raises:
        ValueError: Also if borders are not three arrays of planes inside the volume.
    """
    _check_same(synthetic, target, mask)
    _check_some(synthetic, mask)
    error = synthetic if target is None else synthetic - target
    if len(borders) != 3:
        raise ValueError(f"borders must be given for three axes, got {len(borders)}")
    found = expected = 0.0
    compared = False
    for axis, given in enumerate(borders):
        size = error.shape[axis]
        own = np.unique(np.asarray(given, np.intp))
        if len(own) and (own[0] < 1 or own[-1] >= size):
            raise ValueError(f"borders along axis {axis} must be in 1..{size - 1}, got {own}")
        distance = np.abs(np.arange(1, size)[:, None] - own)
        near = 1 + np.flatnonzero((distance <= CONTROL_REACH).any(axis=1))
        inside = np.setdiff1d(near, own)
        sums, counts = _jumps(error, mask, axis, near)
        for plane in own:
            controls = inside[np.abs(inside - plane) <= CONTROL_REACH]
            pairs = counts[controls].sum()
            if counts[plane] and pairs:
                found += sums[plane]
                expected += counts[plane] * sums[controls].sum() / pairs
                compared = True
    if not compared:
        return math.nan
    if expected == 0:
        return 1.0 if found == 0 else math.inf
    return float(found / expected)


def consistency_error(degraded: Volume, source: Volume, mask: Mask | None = None) -> float:
    """Does the synthetic volume, seen at the source's resolution, agree with the source?

    Contrasts differ between fields, so the cubic polynomial of the degraded synthetic intensity
    that explains the source best (least squares, in the mask, fitted on this specimen) is taken
    off first. What remains, over the spread of the source, is the error.

    It finds structure that was moved, lost or invented at the source's resolution, without any
    target. It says nothing on detail finer than the source's voxels, and little on contrast: a
    blurred copy of the source scores near 0. Noise of the source and contrast that no global map
    explains keep it above 0 even for a perfect synthetic volume: compare with the same
    number for the degraded target. The polynomial need not be monotone.

    Args:
        degraded: Synthetic volume brought to the source's resolution, on the source's own grid.
        source: The source as scanned, same shape.
        mask: Voxels to compare.

    Returns:
        Root mean squared residual over the standard deviation of the source, unitless: 0 = fully
        explained by the source's contrast, 1 = nothing explained.

    Raises:
        ValueError: Also if the source is constant in the mask.
    """
    residual = consistency_residual(degraded, source, mask)
    return float(np.sqrt(np.mean(residual**2)))


def consistency_residual(
    degraded: Volume, source: Volume, mask: Mask | None = None
) -> NDArray[np.float64]:
    """What consistency_error sums up: of each voxel of the mask, in their order, what is left.

    In standard deviations of the source; arguments and errors as there.
    """
    a, b = (values.astype(np.float64).ravel() for values in _masked(mask, degraded, source))
    spread = b.std()
    if spread == 0:
        raise ValueError("the source is constant in the mask: there is nothing to agree with")
    middle, half = (a.max() + a.min()) / 2, (a.max() - a.min()) / 2
    scaled = (a - middle) / half if half > 0 else np.zeros_like(a)
    terms = np.polynomial.legendre.legvander(scaled, 3)
    centred = b - b.mean()
    weights = np.linalg.lstsq(terms.T @ terms, terms.T @ centred, rcond=None)[0]
    return (centred - terms @ weights) / spread


def volume_metrics(
    synthetic: Volume, target: Volume, data_range: float, mask: Mask
) -> dict[str, float]:
    """Equations 6-8 and windowed 3D SSIM, in the mask and over the whole volume.

    Args:
        synthetic: Shape (x, y, z), standardised.
        target: Same shape and scale.
        data_range: Range of the target, 1 / std.
        mask: Foreground, same shape.

    Returns:
        Key of METRICS -> value, ten of them. Keys with 255 use the paper's peak, those without
        use data_range.
    """
    _check_same(synthetic, target, mask)
    similarity = ssim_map(synthetic, target, data_range)
    values: dict[str, float] = {}
    for region, where in (("mask", mask), ("whole", None)):
        error = mse(synthetic, target, where)
        (local,) = _masked(where, similarity)
        values[f"mse_{region}"] = error
        values[f"psnr255_{region}"] = psnr(error, PAPER_PEAK)
        values[f"psnr_{region}"] = psnr(error, data_range)
        values[f"ssim_global_{region}"] = global_ssim(synthetic, target, data_range, where)
        values[f"ssim_{region}"] = float(local.mean(dtype=np.float64))
    return values


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 10000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over specimens.

    With few specimens (the paper tests on 4) it is too narrow: read it as a lower bound of the
    uncertainty.

    Args:
        values: One value a specimen, shape (n,).
        seed: Of the resampling; the same seed gives the same interval.
        resamples: Number of resampled means.
        level: Share of them inside the interval, in (0, 1).

    Returns:
        (low, high); two NaN for a single specimen or if a value is not finite.

    Raises:
        ValueError: If there is no value, or level or resamples is out of range.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"values must be one or more in a row, got shape {sample.shape}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must be in (0, 1) and resamples >= 1, got {level}, {resamples}")
    if len(sample) == 1 or not np.isfinite(sample).all():
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_same(first: NDArray[Any], *others: NDArray[Any] | None) -> None:
    """Raise ValueError unless all arrays given have one shape."""
    for other in others:
        if other is not None and other.shape != first.shape:
            raise ValueError(f"volumes and mask must have one shape: {first.shape}, {other.shape}")


def _check_some(volume: Volume, mask: Mask | None) -> None:
    """Raise ValueError unless there are voxels to measure."""
    if volume.size == 0 or (mask is not None and not mask.any()):
        raise ValueError("the mask is empty: there is no voxel to measure")


def _check_range(data_range: float) -> None:
    """Raise ValueError unless the range can scale SSIM's constants."""
    if not data_range > 0:
        raise ValueError(f"data_range must be > 0, got {data_range}")


def _masked(mask: Mask | None, *volumes: Volume) -> list[Volume]:
    """The volumes' voxels in the mask, checked."""
    _check_same(*volumes, mask)
    _check_some(volumes[0], mask)
    return list(volumes) if mask is None else [volume[mask] for volume in volumes]


def _ssim(synthetic: Volume, target: Volume, data_range: float) -> Volume:
    """The SSIM map of one slice or volume."""
    return structural_similarity(
        synthetic,
        target,
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]


def _jumps(
    error: Volume, mask: Mask | None, axis: int, planes: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of jumps across each of the planes, and the number of voxel pairs; 0 elsewhere."""
    layers = np.moveaxis(error, axis, 0)
    inside = None if mask is None else np.moveaxis(mask, axis, 0)
    sums, counts = np.zeros(len(layers)), np.zeros(len(layers), np.int64)
    for plane in planes:
        jump = np.abs(layers[plane] - layers[plane - 1])
        if inside is not None:
            jump = jump[inside[plane] & inside[plane - 1]]
        sums[plane], counts[plane] = jump.sum(dtype=np.float64), jump.size
    return sums, counts
