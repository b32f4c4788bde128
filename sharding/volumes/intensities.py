"""From two files to one aligned, standardised pair on the target's grid (section 5.1, 5.2).

The order is the paper's: clip, scale, bring the source onto the target grid, standardise. N4 bias
correction and registration come before: `sharding.registration` runs them and writes a cohort of
prepared volumes, for which nothing is left to move here. Other volumes are aligned by their
affines alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.slabs import Empty, by_slabs, in_memory, slabs
from sharding.volumes.volume import Volume

SCALED_MAX = 1000.0
"""Prepared volumes run from 0 to this (section 5.1)."""


@dataclass(frozen=True)
class IntensityTransform:
    """Clip to [low, high], scale to [0, 1], standardise; fitted on one volume alone.

    Attributes:
        low: Intensity of the low percentile, in the file's units.
        high: Intensity of the high percentile.
        mean: Mean of the scaled volume, unitless.
        std: Standard deviation of the scaled volume, unitless.
    """

    __pydantic_config__ = STRICT

    low: float
    high: float
    mean: float
    std: float

    @classmethod
    def fit(
        cls,
        data: NDArray[np.float32],
        percentiles: tuple[float, float],
        empty: Empty = in_memory,
    ) -> IntensityTransform:
        """Fit on every voxel of a volume.

        Args:
            data: Shape (x, y, z).
            percentiles: Two, from 0 to 100.
            empty: Makes the arrays that are as large as the volume.

        Raises:
            ValueError: If the percentiles coincide: nearly all voxels are equal.
        """
        sorted_in_part = empty(data.shape, order="F")
        for slab in slabs(data.shape):
            sorted_in_part[slab] = data[slab]
        found = np.percentile(sorted_in_part.ravel("K"), percentiles, overwrite_input=True)
        low, high = (float(value) for value in found)
        if not high > low:
            raise ValueError(
                f"the {percentiles[0]} and {percentiles[1]} percentiles must differ, "
                f"both are {low:g}"
            )
        mean = _mean(_scale(data[slab], low, high) for slab in slabs(data.shape))
        variance = _mean(
            np.square(_scale(data[slab], low, high) - np.float64(mean))
            for slab in slabs(data.shape)
        )
        return cls(low, high, mean, math.sqrt(variance))

    @property
    def data_range(self) -> float:
        """Width of the standardised intensities: the honest peak for PSNR."""
        return 1 / self.std

    def scale(self, data: NDArray[np.float32], empty: Empty = in_memory) -> NDArray[np.float32]:
        """Clip and map to [0, 1]."""
        return by_slabs(partial(_scale, low=self.low, high=self.high), data, empty)

    def standardise(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Clip, map to [0, 1], then to zero mean and unit variance."""
        return self.standardise_scaled(self.scale(data))

    def standardise_scaled(
        self, scaled: NDArray[np.float32], empty: Empty = in_memory
    ) -> NDArray[np.float32]:
        """The last step alone, for intensities already in [0, 1]."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return by_slabs(lambda slab: (slab - mean) / std, scaled, empty)

    def restore(
        self, standardised: NDArray[np.float32], empty: Empty = in_memory
    ) -> NDArray[np.float32]:
        """Back to the file's units; what was clipped stays clipped."""
        width = self.high - self.low
        return by_slabs(
            lambda slab: (slab.astype(np.float64) * self.std + self.mean) * width + self.low,
            standardised,
            empty,
        )


def fit_intensities(
    where: object, volume: Volume, config: PreprocessConfig, empty: Empty = in_memory
) -> IntensityTransform:
    """Fit the intensity transform on every voxel of a volume.

    Raises:
        DataError: If nearly all voxels are equal; `where` names the file.
    """
    try:
        return IntensityTransform.fit(volume.data, config.clip_percentiles, empty)
    except ValueError as error:
        raise DataError(str(where), str(error), "Crop the empty space around the object") from None


def _mean(slabs_of_values: Iterator[NDArray]) -> float:
    """Mean of all values, summed as float64."""
    total, count = 0.0, 0
    for values in slabs_of_values:
        total += float(values.sum(dtype=np.float64))
        count += values.size
    return total / count


def fingerprint(volume: Volume) -> str:
    """sha256 of the voxels: the same scan under another name or affine is found."""
    digest = hashlib.sha256(volume.data.tobytes())
    digest.update(repr(volume.shape).encode())
    return digest.hexdigest()


def _scale(data: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    scaled = (np.clip(data, low, high) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1).astype(np.float32)
