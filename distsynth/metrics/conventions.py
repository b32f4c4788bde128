"""One prediction under the conventions by which papers compute PSNR and SSIM.

A convention is a scale of intensities, a region, and whether one value is computed of the volume or
the mean is taken over slices. Under each, PSNR is computed with four peaks and SSIM in two forms.
The numbers differ by many decibels although the prediction is the same, so that values of
different conventions must never be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import (
    SSIM_WINDOW,
    Array,
    Mask,
    changed_mse,
    check_same_shapes,
    global_ssim,
    mse,
    psnr,
    windowed_ssim,
)
from sharding.volumes.intensities import IntensityTransform
from sharding.volumes.slabs import Empty, by_slabs, in_memory

SCALES = {
    "standardised": "zero mean and unit variance, by the target, which was clipped at its 0.1 and "
    "99.9 percentiles",
    "percentiles": "[0, 1] between the target's 0.1 and 99.9 percentiles, both volumes clipped",
    "min-max": "[0, 1] between the target's smallest and largest intensity; the synthetic volume "
    "is not clipped",
    "own min-max": "each volume to [0, 1] between its own smallest and largest intensity",
}
"""Scale of intensities -> what it is."""
REGIONS = ("whole", "mask")
UNITS = ("volume", "slices")
COLUMNS = {
    "psnr_1": "PSNR in dB, peak 1",
    "psnr_255": "PSNR in dB, peak 255: of standardised intensities as they are (eq. 7 of the "
    "paper), of the others converted to 8 bits",
    "psnr_range": "PSNR in dB, peak = largest less smallest intensity of the target's volume or "
    "slice",
    "psnr_maximum": "PSNR in dB, peak = largest intensity of the target volume or slice",
    "ssim_windowed": "SSIM in Gaussian windows of 1.5 voxels, of the volume 3D, of slices 2D; L = "
    "range of the target volume or slice",
    "ssim_global": "SSIM from global moments (eq. 8), same L",
}
"""What is computed under each convention -> its definition."""
AXIS = 2
"""Across which slices are cut."""


@dataclass(frozen=True)
class Convention:
    """How intensities are scaled, which voxels count, and what one value is computed of.

    Attributes:
        scale: A key of SCALES.
        region: "whole" volume or "mask".
        unit: "volume", or the mean over its "slices".
    """

    scale: str
    region: str
    unit: str


Values = dict[Convention, dict[str, float]]
"""Convention -> key of COLUMNS -> value."""


def conventional_values(
    synthetic: Array,
    target: Array,
    transform: IntensityTransform,
    mask: Mask,
    empty: Empty = in_memory,
) -> Values:
    """Every PSNR and SSIM of one prediction.

    Means over slices leave out those across the third axis without foreground and those in which
    the target is constant. Peaks and L are of the whole volume or slice, whatever the region.

    Args:
        synthetic: Shape (x, y, z), standardised as the target is.
        target: As read, in the file's units, same shape.
        transform: Of the target, fitted on it.
        mask: Foreground, same shape.
        empty: Makes the arrays that are as large as the volume.

    Returns:
        NaN where windows do not fit, and where a peak is not positive.

    Raises:
        ValueError: If shapes differ or the mask is empty.
    """
    check_same_shapes(synthetic, target, mask)
    found: Values = {}
    for scale, made, truth in _scaled(synthetic, target, transform, empty):
        whole = [_Unit(made, truth, mask)]
        slices = [unit for unit in _slices(made, truth, mask) if np.ptp(unit.target) > 0]
        for region in REGIONS:
            for name, units in zip(UNITS, (whole, slices), strict=True):
                rows = [_values(unit, scale, region == "mask") for unit in units]
                found[Convention(scale, region, name)] = {
                    key: float(np.mean([row[key] for row in rows])) if rows else math.nan
                    for key in COLUMNS
                }
    return found


@dataclass(frozen=True, eq=False)
class _Unit:
    """A volume or a slice that one value is computed of."""

    synthetic: Array
    target: Array
    mask: Mask


def _scaled(
    synthetic: Array, target: Array, transform: IntensityTransform, empty: Empty
) -> Iterator[tuple[str, Array, Array]]:
    """Yield each scale, and synthetic and target on it."""
    clipped = transform.scale(target, empty)
    yield "standardised", synthetic, transform.standardise_scaled(clipped, empty)
    unit = by_slabs(lambda slab: np.clip(transform.unstandardise(slab), 0, 1), synthetic, empty)
    yield "percentiles", unit, clipped
    del unit, clipped
    raw = transform.restore(synthetic, empty)
    low, high = float(target.min()), float(target.max())
    truth = _between(target, low, high, empty)
    yield "min-max", _between(raw, low, high, empty), truth
    yield "own min-max", _between(raw, float(raw.min()), float(raw.max()), empty), truth


def _between(volume: Array, low: float, high: float, empty: Empty) -> NDArray[np.float32]:
    """The volume on [0, 1] between two intensities; 0 if they are equal."""
    width = high - low
    return by_slabs(
        lambda slab: (slab - low) / width if width > 0 else np.zeros_like(slab), volume, empty
    )


def _slices(synthetic: Array, target: Array, mask: Mask) -> Iterator[_Unit]:
    """The slices that hold foreground."""
    for index in np.flatnonzero(mask.any(axis=(0, 1))):
        yield _Unit(synthetic[:, :, index], target[:, :, index], mask[:, :, index])


def _values(unit: _Unit, scale: str, masked: bool) -> dict[str, float]:
    """Key of COLUMNS -> value of a volume or slice."""
    made, truth, where = unit.synthetic, unit.target, unit.mask if masked else None
    error, largest = mse(made, truth, where), float(truth.max())
    wide = largest - float(truth.min())
    eight_bits = error
    if scale != "standardised":
        eight_bits = changed_mse(made, truth, where, _eight_bits)
    fits = min(truth.shape) >= SSIM_WINDOW
    return {
        "psnr_1": psnr(error, 1),
        "psnr_255": psnr(eight_bits, 255),
        "psnr_range": psnr(error, wide) if wide > 0 else math.nan,
        "psnr_maximum": psnr(error, largest) if largest > 0 else math.nan,
        "ssim_windowed": _windowed(made, truth, wide, where) if fits and wide > 0 else math.nan,
        "ssim_global": global_ssim(made, truth, wide, where) if wide > 0 else math.nan,
    }


def _windowed(made: Array, truth: Array, wide: float, where: Mask | None) -> float:
    """Windowed SSIM of a volume in 3D, of a slice in 2D."""
    if truth.ndim == 3:
        return windowed_ssim(made, truth, wide, where)
    mask = None if where is None else where[:, :, None]
    return windowed_ssim(made[:, :, None], truth[:, :, None], wide, mask, dims=2)


def _eight_bits(volume: Array) -> Array:
    """From [0, 1] to whole numbers from 0 to 255."""
    return np.rint(np.clip(volume, 0, 1) * 255)
