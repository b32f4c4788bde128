"""The checkerboard: a pattern whose period is a stride of the network's transposed convolutions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, check_not_empty, check_same_shapes

PERIODS = (2, 4)
"""Voxels: what one and two transposed convolutions of stride 2 leave."""
SEGMENT = 64
"""Voxels of a line that a spectrum is taken of, where the volume is as long."""
SHORTEST = 32
"""Voxels of a side under which no spectrum is taken."""
OFFSET = 3
"""Bins between a period and its neighbours: the nearest that a Hann window keeps apart."""
TAPERED = 3 / 8
"""Share of the energy that the taper leaves."""
FLOOR = 1e-3
"""Share of the error's mean power, added on both sides of a ratio: a pattern of under about 1 % of
the error is none, however clean the spectrum is around it."""
STEPS = tuple(OFFSET * step for step in (-2, -1, 0, 1, 2))
"""Bins, relative to a period, that are looked at."""


def checkerboard(synthetic: Array, target: Array | None = None, mask: Mask | None = None) -> float:
    """Energy at the periods 2 and 4 over that at neighbouring frequencies: 1 means no pattern.

    Lines along each axis of the error are cut into segments of 64 voxels that overlap by half,
    and tapered by a Hann window. At the frequency f of each period the mean power of all segments
    is divided by what the neighbours at f - 6/64, f - 3/64, f + 3/64 and f + 6/64 lead one to
    expect: the value at f of a parabola through the logarithms of their power, so that noise, a
    blur or any other smooth spectrum gives 1. The largest of these ratios over axes and periods is
    the measure: a pattern along one axis is enough to be seen, and noise gives a few percent above
    1. Segments are local: the pattern may fill a part of the volume, or change its phase.

    Args:
        synthetic: Shape (x, y, z).
        target: Same shape; the pattern is then looked for in synthetic - target. None looks at
            the synthetic volume itself.
        mask: Where to look: voxels outside count as 0.

    Returns:
        >= 0. NaN if every side is under 32 voxels, 1 if there is no error at all.

    Raises:
        ValueError: If shapes differ or the mask is empty.
    """
    check_same_shapes(synthetic, target, mask)
    check_not_empty(synthetic, mask)
    error = synthetic if target is None else synthetic - target
    if mask is not None:
        error = np.where(mask, error, 0)
    ratios: list[float] = []
    for axis, side in enumerate(error.shape):
        length = min(SEGMENT, side - side % 4)
        if length >= SHORTEST:
            ratios += _ratios(np.moveaxis(error, axis, -1), length)
    return max(ratios, default=math.nan)


def _ratios(lines: Array, length: int) -> list[float]:
    """Power at each period over that expected from its neighbours, along the last axis."""
    frequencies = np.array([length // period + step for period in PERIODS for step in STEPS])
    waves = _waves(frequencies, length)
    power, energy = np.zeros(len(frequencies)), 0.0
    last = lines.shape[-1] - length
    for start in sorted({*range(0, last + 1, length // 2), last}):
        segments = np.ascontiguousarray(lines[..., start : start + length], np.float32)
        segments = segments.reshape(-1, length)
        energy += float(np.vdot(segments, segments))
        found = (segments @ waves).astype(np.float64)
        power += np.square(found).sum(axis=0).reshape(2, -1).sum(axis=0)
    if energy == 0:
        return [1.0]
    floor = FLOOR * TAPERED * energy
    at = power.reshape(len(PERIODS), -1).T
    logs = np.log(np.maximum(at, floor * 1e-9))
    near, far = logs[[1, 3]].mean(axis=0), logs[[0, 4]].mean(axis=0)
    expected = np.exp((4 * near - far) / 3)
    return ((at[2] + floor) / (expected + floor)).tolist()


def _waves(frequencies: NDArray[np.int_], length: int) -> NDArray[np.float32]:
    """Tapered cosines, then sines, of so many cycles a segment: shape (length, 2 frequencies)."""
    at = np.arange(length)
    taper = np.sin(np.pi * (at + 0.5) / length) ** 2
    turns = 2 * np.pi * np.outer(at, frequencies) / length
    waves = np.concatenate([np.cos(turns), np.sin(turns)], axis=1)
    return (taper[:, None] * waves).astype(np.float32)
