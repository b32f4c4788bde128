"""The checkerboard: a pattern whose period is a stride of the network's transposed convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distsynth.metrics.image import Array, Mask, check_not_empty, check_same_shapes
from sharding.volumes.slabs import Slab, slabs

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

    def error(place: Slab) -> Array:
        found = synthetic[place] if target is None else synthetic[place] - target[place]
        return found if mask is None else np.where(mask[place], found, 0)

    spectra = {
        axis: _Spectrum(length)
        for axis, side in enumerate(synthetic.shape)
        if (length := min(SEGMENT, side - side % 4)) >= SHORTEST
    }
    _look_along_slabs(spectra, error, synthetic.shape)
    return max((ratio for each in spectra.values() for ratio in each.ratios()), default=math.nan)


def _look_along_slabs(
    spectra: dict[int, _Spectrum], error: Callable[[Slab], Array], shape: tuple[int, ...]
) -> None:
    """Add all segments of a volume to the spectra of their axes, by parts."""
    for slab in slabs(shape):
        if 0 in spectra or 1 in spectra:
            part = error(slab)
            for axis in {0, 1} & spectra.keys():
                for start in spectra[axis].starts(shape[axis]):
                    spectra[axis].add(np.moveaxis(part, axis, -1), start)
    if 2 in spectra:
        length = spectra[2].length
        for start in spectra[2].starts(shape[2]):
            for slab in slabs((*shape[:2], length), along=1):
                spectra[2].add(error((*slab[:2], slice(start, start + length))), 0)


class _Spectrum:
    """The power of segments of so many voxels at each period and beside it."""

    def __init__(self, length: int) -> None:
        frequencies = np.array([length // period + step for period in PERIODS for step in STEPS])
        self.length = length
        self._waves = _waves(frequencies, length)
        self._power, self._energy = np.zeros(len(frequencies)), 0.0

    def starts(self, side: int) -> list[int]:
        """Where the segments of a line begin: they overlap by half."""
        last = side - self.length
        return sorted({*range(0, last + 1, self.length // 2), last})

    def add(self, lines: Array, start: int) -> None:
        """Add a segment of each line along the last axis."""
        segments = np.ascontiguousarray(lines[..., start : start + self.length], np.float32)
        segments = segments.reshape(-1, self.length)
        self._energy += float(np.vdot(segments, segments))
        found = (segments @ self._waves).astype(np.float64)
        self._power += np.square(found).sum(axis=0).reshape(2, -1).sum(axis=0)

    def ratios(self) -> list[float]:
        """Power at each period over that expected from its neighbours."""
        if self._energy == 0:
            return [1.0]
        floor = FLOOR * TAPERED * self._energy
        at = self._power.reshape(len(PERIODS), -1).T
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
