"""Scans of phantoms, and what can be wrong with a scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.masks import otsu_foreground
from sharding.volumes.volume import Volume

SHAPE = (64, 60, 56)
SPACING = 0.2
"""Of the targets, mm; sources have twice that."""


def scan(seed: int = 1, noise: float = 0.02) -> Volume:
    """The simulated source of a phantom, intensities about 0 to 1."""
    target = phantom_volume(SHAPE, seed, SPACING)
    return simulate_source(target, SimulationConfig(noise=noise), f"scan-{seed}")[0]


def thick_slices(volume: Volume, times: int) -> Volume:
    """Slices so many times as thick along the last axis, each the mean of those that it holds."""
    count = volume.shape[2] // times
    parts = volume.data[..., : count * times].reshape(*volume.shape[:2], count, times)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (times - 1) / 2
    affine[:3, 2] *= times
    return Volume(parts.mean(axis=-1, dtype=np.float32), affine)


def cropped(volume: Volume, share: float) -> Volume:
    """The middle part of the planes along the last axis."""
    keep = round(volume.shape[2] * share)
    low = (volume.shape[2] - keep) // 2
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * low
    return Volume(np.ascontiguousarray(volume.data[..., low : low + keep]), affine)


def padded(volume: Volume, voxels: int) -> Volume:
    """So many voxels of background more on each side."""
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3].sum(axis=1) * voxels
    corner = volume.data[:4, :4, :4].ravel()
    data = np.random.default_rng(0).choice(corner, [side + 2 * voxels for side in volume.shape])
    data[(slice(voxels, -voxels),) * 3] = volume.data
    return Volume(data, affine)


def exchanged(volume: Volume) -> Volume:
    """Bright tissue is dark and dark tissue bright; the background stays as it is."""
    inside = otsu_foreground(ndimage.gaussian_filter(volume.data, 1))
    low, high = np.percentile(volume.data[inside], (2, 98))
    return volume.with_data(np.where(inside, high + low - volume.data, volume.data))


def noisy(volume: Volume, sigma: float) -> Volume:
    """Magnitudes with noise of this standard deviation in both parts."""
    real, imaginary = np.random.default_rng(0).normal(0, sigma, (2, *volume.shape))
    return volume.with_data(np.hypot(volume.data + real, imaginary))


def enlarged(volume: Volume, times: float) -> Volume:
    """The same voxels, larger."""
    return replace(volume, affine=volume.affine @ np.diag([times, times, times, 1]))
