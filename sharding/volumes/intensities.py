"""Intensity transforms: clip, scale, standardise (section 5.1, 5.2); and a scan's fingerprint."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.volumes.config import Intensities, PreprocessConfig
from sharding.volumes.landmarks import PERCENTILES, check_landmarks, move, separated
from sharding.volumes.slabs import Empty, by_slabs, in_memory, slabs
from sharding.volumes.tissue import TISSUE_SHARE, mean_and_deviation, quantile, tissue_start
from sharding.volumes.volume import Volume

SCALED_MAX = 1000.0
"""Prepared volumes run from 0 to this (section 5.1)."""
LEAST_CONTRAST = 0.01
"""Least share of the intensity range that an image must span within its mask or foreground."""
LEAST_VOXELS = 27
"""Fewest voxels by which contrast is measured."""
LEVELS = 4000
"""Bins of the histogram by which contrast is measured."""
CENTRE, WIDTH = 0.2, 0.3
"""The fixed map (x - 0.2) / 0.3 of the clipped scale: about the mean and deviation of a head."""
BLOCKS, BLOCK_LEVELS = 4, 15
"""Parts of each axis, and grey levels of their means, that a fingerprint is made of."""


@dataclass(frozen=True)
class IntensityTransform:
    """Clip to [low, high], scale to [0, 1], standardise; fitted on one volume alone.

    Attributes:
        low: Intensity of the low percentile, in the file's units.
        high: Intensity of the high percentile.
        mean: What is subtracted from the scaled volume: with `standardise` its mean, unitless.
        std: What it is divided by then: with `standardise` its standard deviation, unitless.
        landmarks: Landmarks of the scaled volume, within [0, 1]; none without matching.
        standard: Where they are moved before the standardisation; none leaves them in place. Only
            a cohort knows these: the transform of a volume alone has none.
    """

    __pydantic_config__ = STRICT

    low: float
    high: float
    mean: float
    std: float
    landmarks: tuple[float, ...] = ()
    standard: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        values = (self.low, self.high, self.mean, self.std)
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"low, high, mean and std must be finite, got {values}")
        if not self.high > self.low or not self.std > 0:
            raise ValueError(f"high must exceed low and std must exceed 0, got {values}")
        check_landmarks(self.landmarks)
        check_landmarks(self.standard)

    @classmethod
    def fit(
        cls,
        data: NDArray[np.float32],
        percentiles: tuple[float, float],
        empty: Empty = in_memory,
        intensities: Intensities = "standardise",
    ) -> IntensityTransform:
        """Fit on a volume.

        Args:
            data: Shape (x, y, z).
            percentiles: Two, from 0 to 100.
            empty: Makes the arrays that are as large as the volume.
            intensities: See PreprocessConfig. With `standardise` every voxel counts.

        Raises:
            ValueError: If the percentiles coincide: nearly all voxels are equal.
        """
        sorted_in_part = empty(data.shape, order="F")
        for slab in slabs(data.shape):
            sorted_in_part[slab] = data[slab]
        if intensities != "standardise":
            return cls._fit_tissue(sorted_in_part.ravel("K"), percentiles, intensities)
        found = np.percentile(sorted_in_part.ravel("K"), percentiles, overwrite_input=True)
        low, high = (float(value) for value in found)
        if not high > low:
            raise ValueError(
                f"the {percentiles[0]} and {percentiles[1]} percentiles must differ, "
                f"both are {low:g}"
            )
        mean = _mean(scale_slab(data[slab], low, high) for slab in slabs(data.shape))
        variance = _mean(
            np.square(scale_slab(data[slab], low, high) - np.float64(mean))
            for slab in slabs(data.shape)
        )
        return cls(low, high, mean, math.sqrt(variance))

    @classmethod
    def _fit_tissue(
        cls, values: NDArray[np.float32], percentiles: tuple[float, float], intensities: Intensities
    ) -> IntensityTransform:
        """Fit on the tissue among all intensities, which are sorted in place."""
        values.sort()
        low = quantile(values, percentiles[0])
        tissue = values[tissue_start(values, low) :]
        high = quantile(tissue, max(0.0, 100 - (100 - percentiles[1]) / TISSUE_SHARE))
        if not high > low:
            raise ValueError(
                f"the {percentiles[0]} percentile and the high percentile of tissue must differ, "
                f"both are {low:g}"
            )
        mean, std = CENTRE, WIDTH
        landmarks: tuple[float, ...] = ()
        if intensities == "foreground":
            mean, std = mean_and_deviation(scale_slab(tissue, low, high))
        if intensities == "landmarks":
            found = [(quantile(tissue, each) - low) / (high - low) for each in PERCENTILES]
            landmarks = separated(found)
        return cls(low, high, mean, std, landmarks)

    def to_standard(self, standard: tuple[float, ...]) -> IntensityTransform:
        """The same transform that moves the volume's landmarks to standard ones."""
        return replace(self, standard=standard) if standard else self

    @property
    def data_range(self) -> float:
        """Width of the standardised intensities: the honest peak for PSNR."""
        return 1 / self.std

    @property
    def background(self) -> float:
        """The standardised value of the low percentile and of all that is clipped to it."""
        return -self.mean / self.std

    def scale(self, data: NDArray[np.float32], empty: Empty = in_memory) -> NDArray[np.float32]:
        """Clip and map to [0, 1]."""
        return by_slabs(partial(scale_slab, low=self.low, high=self.high), data, empty)

    def standardise(
        self, data: NDArray[np.float32], empty: Empty = in_memory
    ) -> NDArray[np.float32]:
        """Clip, map to [0, 1], then subtract the mean and divide by the deviation."""
        return self.standardise_scaled(self.scale(data, empty), empty)

    def standardise_scaled(
        self, scaled: NDArray[np.float32], empty: Empty = in_memory
    ) -> NDArray[np.float32]:
        """Only the last step, for intensities that are in [0, 1] already."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return by_slabs(
            lambda slab: (move(slab, self.landmarks, self.standard) - mean) / std, scaled, empty
        )

    def unstandardise(self, standardised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Back to the scale on which this volume lies in [0, 1]; others may exceed it."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return move(standardised * std + mean, self.standard, self.landmarks)

    def restore(
        self, standardised: NDArray[np.float32], empty: Empty = in_memory
    ) -> NDArray[np.float32]:
        """Convert back to the file's units; clipped intensities stay clipped."""
        width = self.high - self.low

        def restored(slab: NDArray[np.float32]) -> NDArray:
            scaled = slab.astype(np.float64) * self.std + self.mean
            return move(scaled, self.standard, self.landmarks) * width + self.low

        return by_slabs(restored, standardised, empty)


def fit_intensities(
    where: object, volume: Volume, config: PreprocessConfig, empty: Empty = in_memory
) -> IntensityTransform:
    """Fit the intensity transform of a volume.

    Raises:
        DataError: If nearly all voxels are equal; `where` names the file.
    """
    try:
        return IntensityTransform.fit(
            volume.data, config.clip_percentiles, empty, config.intensities
        )
    except ValueError as error:
        raise DataError(str(where), str(error), "Crop the empty space around the object") from None


def _mean(slabs_of_values: Iterator[NDArray]) -> float:
    """Mean of all values, summed as float64."""
    total, count = 0.0, 0
    for values in slabs_of_values:
        total += float(values.sum(dtype=np.float64))
        count += values.size
    return total / count


def check_varies(
    where: object, scaled: NDArray[np.float32], region: NDArray[np.bool_], named: str
) -> None:
    """Refuse an image that is nearly constant within a region, whatever it shows elsewhere.

    Args:
        where: Names the file in the error.
        scaled: Intensities in [0, 1], shape (x, y, z).
        region: Where the image must vary, same shape.
        named: The region in words, for the error.

    Raises:
        DataError: If the 1 and 99 percentiles there differ by less than LEAST_CONTRAST of the
            intensity range.
    """
    counts = np.zeros(LEVELS + 1, np.int64)
    for slab in slabs(scaled.shape):
        counts += _histogram(scaled[slab][region[slab]])
    _refuse_constant(where, counts, named)


def _histogram(scaled: NDArray[np.float32]) -> NDArray[np.int64]:
    """Counts of intensities in [0, 1], by LEVELS steps."""
    levels = np.rint(scaled * LEVELS).astype(np.int64)
    return np.bincount(levels.ravel(), minlength=LEVELS + 1)


def _refuse_constant(where: object, counts: NDArray[np.int64], named: str) -> None:
    """Raise DataError if a histogram covers too little of the intensity range."""
    if counts.sum() < LEAST_VOXELS:
        return
    below = np.cumsum(counts) / counts.sum()
    low, high = (int(np.searchsorted(below, share)) / LEVELS for share in (0.01, 0.99))
    if high - low < LEAST_CONTRAST:
        raise DataError(
            str(where),
            f"the image is nearly constant within {named}: its 1 and 99 percentiles there lie "
            f"{high - low:.2%} of its intensity range apart, at least {LEAST_CONTRAST:.0%} is "
            "needed",
            "Check the export of this volume, and that its affine, units and mask are right",
        )


def check_foreground_varies(
    where: object, volume: Volume, transform: IntensityTransform, threshold: float
) -> None:
    """Refuse a scan without a mask whose foreground is nearly constant.

    Args:
        where: Names the file in the error.
        volume: The scan.
        transform: Its intensity transform.
        threshold: What exceeds it, on the scaled intensities, is foreground.

    Raises:
        DataError: As check_varies.
    """
    counts = np.zeros(LEVELS + 1, np.int64)
    for slab in slabs(volume.shape):
        scaled = scale_slab(volume.data[slab], transform.low, transform.high)
        counts += _histogram(scaled[scaled > threshold])
    _refuse_constant(where, counts, "its foreground")


def fingerprint(volume: Volume) -> str:
    """A digest of a scan's content, by which the same scan is found under another name.

    It does not change when the intensities are scaled or shifted and rounded to integers, nor when
    the axes are flipped or permuted, nor with the affine. It does change when the scan is cropped,
    clipped or resampled; such copies are not found.
    """
    means = np.zeros((BLOCKS, BLOCKS, BLOCKS))
    weights = [_block_weights(size) for size in volume.shape]
    for slab in slabs(volume.shape):
        partial_sum = np.tensordot(weights[0], volume.data[slab].astype(np.float64), axes=1)
        partial_sum = np.tensordot(weights[1], partial_sum, axes=(1, 1))
        means += np.tensordot(partial_sum, weights[2][:, slab[2]], axes=(2, 1)).transpose(1, 0, 2)
    low, high = means.min(), means.max()
    levels = np.rint((means - low) / max(high - low, 1e-300) * BLOCK_LEVELS).astype(np.uint8)
    turned = (levels.transpose(axes) for axes in itertools.permutations(range(3)))
    signs = list(itertools.product((1, -1), repeat=3))
    arrangements = (cube[::a, ::b, ::c].tobytes() for cube in turned for a, b, c in signs)
    return hashlib.sha256(min(arrangements)).hexdigest()


def _block_weights(size: int) -> NDArray[np.float64]:
    """Weights of an axis's voxels in the means of BLOCKS equal parts, shape (BLOCKS, size)."""
    edges = np.linspace(0, size, BLOCKS + 1)
    index = np.arange(size)
    ends = np.minimum(index + 1, edges[1:, None])
    shares = np.clip(ends - np.maximum(index, edges[:-1, None]), 0, None)
    return shares / shares.sum(axis=1, keepdims=True)


def scale_slab(data: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    scaled = (np.clip(data, low, high) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1).astype(np.float32)
