"""From two files to one aligned, standardised pair on the target's grid (section 5.1, 5.2).

The order is the paper's: clip, scale, bring the source onto the target grid, standardise. N4 bias
correction and registration come before: `sharding.registration` runs them and writes a cohort of
prepared volumes, for which nothing is left to move here. Other volumes are aligned by their
affines alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.errors import DataError
from sharding.io.records import STRICT
from sharding.volumes.cohort import Specimen
from sharding.volumes.resample import field_of_view, resample
from sharding.volumes.slabs import Empty, by_slabs, in_memory, slabs
from sharding.volumes.volume import Volume, read_volume

SCALED_MAX = 1000.0
"""Prepared volumes run from 0 to this (section 5.1)."""

FINER = 0.9
"""A source whose voxels are below this share of the target's volume is clearly the finer one."""

GRID_TOLERANCE = 0.1
"""Share of a voxel by which the corners of one grid may differ in two headers."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How volumes become pairs."""

    __pydantic_config__ = STRICT

    clip_percentiles: tuple[float, float] = (0.1, 99.9)
    """Intensities outside are clipped (section 5.1)."""
    foreground_threshold: float = 0.05
    """Foreground is where the scaled target, 0 to 1, exceeds this, with holes filled."""
    min_overlap: float = 0.25
    """Least share of the target's foreground that the source must cover."""
    allow_finer_source: bool = False
    """Let the source's voxels be finer than the target's; else the files are taken for swapped."""

    def __post_init__(self) -> None:
        low, high = self.clip_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(
                f"clip_percentiles must rise within 0 to 100, got {self.clip_percentiles}"
            )
        if not 0 <= self.foreground_threshold < 1:
            raise ValueError(
                f"foreground_threshold must be from 0 to below 1, got {self.foreground_threshold}"
            )
        if not 0 < self.min_overlap <= 1:
            raise ValueError(f"min_overlap must be above 0, at most 1, got {self.min_overlap}")


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


@dataclass(frozen=True, eq=False)
class SourceOnGrid:
    """A source volume brought onto a grid.

    Attributes:
        scaled: Interpolated by cubic B-splines, intensities in [0, 1], shape (x, y, z).
        inside: Voxels that lie in the source's field of view.
        native: The source as read, on its own grid.
        transform: Its intensity transform, fitted on the native voxels.
    """

    scaled: NDArray[np.float32]
    inside: NDArray[np.bool_]
    native: Volume
    transform: IntensityTransform


@dataclass(frozen=True, eq=False)
class Pair:
    """One specimen, ready for patches and for judging; all arrays on the target grid.

    Attributes:
        name: The specimen.
        source_scaled: Source, [0, 1], shape (x, y, z).
        target_scaled: Target, [0, 1], same shape.
        mask: Foreground of the target inside the source's field of view.
        source_transform: Intensity transform of the source.
        target_transform: Intensity transform of the target.
        native_source: The source on its own grid, in its file's units.
        grid: The target as read: geometry and header of everything here.
        overlap: Share of the target's foreground inside the source's field of view.
    """

    name: str
    source_scaled: NDArray[np.float32]
    target_scaled: NDArray[np.float32]
    mask: NDArray[np.bool_]
    source_transform: IntensityTransform
    target_transform: IntensityTransform
    native_source: Volume
    grid: Volume
    overlap: float

    @property
    def source(self) -> NDArray[np.float32]:
        """Standardised source: what a generator sees, and the cubic baseline."""
        return self.source_transform.standardise_scaled(self.source_scaled)

    @property
    def target(self) -> NDArray[np.float32]:
        """Standardised target: what a generator should return."""
        return self.target_transform.standardise_scaled(self.target_scaled)

    @property
    def nearest(self) -> NDArray[np.float32]:
        """Standardised source without interpolation: the identity baseline."""
        data = resample(self.native_source, self.grid.shape, self.grid.affine, order=0)
        return self.source_transform.standardise(data)

    def degrade(self, standardised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a volume on the target grid to the source's own grid and resolution."""
        volume = self.grid.with_data(standardised)
        return resample(volume, self.native_source.shape, self.native_source.affine, order=1)

    @property
    def native_mask(self) -> NDArray[np.bool_]:
        """The mask on the source's own grid, within the target's field of view."""
        source, grid = self.native_source, self.grid
        covered = field_of_view(grid, source.shape, source.affine)
        return (self.degrade(self.mask.astype(np.float32)) > 0.5) & covered


def prepare_pair(specimen: Specimen, config: PreprocessConfig) -> Pair:
    """Read a specimen's two files and bring them onto the target's grid.

    Raises:
        DataError: If a file is bad, the source is missing or finer than the target, the mask does
            not fit, or the two do not overlap.
    """
    source_file = source_of(specimen)
    target = read_volume(specimen.target)
    target_transform = fit_intensities(specimen.target, target, config)
    target_scaled = target_transform.scale(target.data)
    native = read_volume(source_file)
    check_not_finer(source_file, native, target, config)
    source = place_source(native, target.shape, target.affine, config, source_file)
    foreground = specimen_foreground(specimen, target.with_data(target_scaled), config)
    mask = foreground & source.inside
    overlap = float(mask.sum() / foreground.sum())
    if overlap < config.min_overlap:
        raise DataError(
            source_file,
            f"source and target must overlap: it covers {overlap:.0%} of the foreground of "
            f"{specimen.target}, at least {config.min_overlap:.0%} is needed",
            "Check the affines, or that the files belong together",
        )
    return Pair(
        name=specimen.name,
        source_scaled=source.scaled,
        target_scaled=target_scaled,
        mask=mask,
        source_transform=source.transform,
        target_transform=target_transform,
        native_source=source.native,
        grid=target,
        overlap=overlap,
    )


def source_of(specimen: Specimen) -> Path:
    """The specimen's source.

    Raises:
        DataError: If it has none.
    """
    if specimen.source is None:
        raise DataError(
            specimen.name,
            "the specimen has no source volume",
            "Add a source column to the cohort, or run distsynth simulate",
        )
    return specimen.source


def check_not_finer(
    where: object, source: Volume, target: Volume, config: PreprocessConfig
) -> None:
    """Refuse a source whose voxels are clearly smaller than the target's: swapped files.

    Raises:
        DataError: If so, unless the configuration allows it.
    """
    ours, theirs = np.prod(source.spacing_mm), np.prod(target.spacing_mm)
    if ours < FINER * theirs and not config.allow_finer_source:
        raise DataError(
            str(where),
            f"the source is finer than the target: swapped? Its voxels are {ours:.3g} mm3, those "
            f"of the target {theirs:.3g} mm3",
            "Swap the two, or give --preprocess.allow-finer-source if this is meant",
        )


def specimen_foreground(
    specimen: Specimen, scaled: Volume, config: PreprocessConfig
) -> NDArray[np.bool_]:
    """The specimen's mask, or else the voxels of the target over the threshold.

    Args:
        specimen: Names the mask, if any.
        scaled: The target, intensities in [0, 1].
        config: Gives the threshold.

    Raises:
        DataError: If it is empty, or the mask is bad or lies on another grid.
    """
    if specimen.mask is not None:
        return read_mask(specimen.mask, scaled)
    foreground = foreground_mask(scaled.data, config.foreground_threshold)
    if not foreground.any():
        raise DataError(
            specimen.target,
            f"no voxel of the scaled target exceeds {config.foreground_threshold}",
            "Lower --preprocess.foreground-threshold",
        )
    return foreground


def read_mask(path: Path, grid: Volume) -> NDArray[np.bool_]:
    """Read a mask: inside is where it is not zero.

    Raises:
        DataError: If the file is bad, lies on another grid, or is zero everywhere.
    """
    mask = read_volume(path, constant=True)
    if mask.shape != grid.shape:
        rule = f"a mask must have the target's shape {grid.shape}, found {mask.shape}"
        raise DataError(path, rule, "Draw or resample it on the target's grid")
    corners = np.array([*itertools.product(*((0, size - 1) for size in grid.shape))])
    shifts = apply_affine(mask.affine, corners) - apply_affine(grid.affine, corners)
    apart = np.linalg.norm(shifts, axis=1).max()
    if apart > GRID_TOLERANCE * min(grid.spacing_mm):
        rule = f"a mask must have the target's affine, its corners are up to {apart:.3g} mm away"
        raise DataError(path, rule, "Draw or resample it on the target's grid")
    inside = mask.data != 0
    if not inside.any():
        raise DataError(path, "the mask is zero everywhere", "Mark the specimen with ones")
    return inside


def place_source(
    source: Volume,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    config: PreprocessConfig,
    where: object = "source",
    empty: Empty = in_memory,
) -> SourceOnGrid:
    """Bring a source onto a grid by the affines, scaled to [0, 1].

    The intensity transform is fitted on the source's own voxels, so that it is the same whatever
    the grid, with a target at hand or without.

    Args:
        source: The volume.
        shape: Of the grid.
        affine: Of the grid, index to world millimetres.
        config: Percentiles to clip at.
        where: Names the source in errors.
        empty: Makes the arrays that are as large as a volume.

    Raises:
        DataError: If nearly all voxels of the source are equal.
    """
    transform = fit_intensities(where, source, config, empty)
    clip = partial(np.clip, a_min=transform.low, a_max=transform.high)
    clipped = source.with_data(by_slabs(clip, source.data, empty))
    on_grid = resample(clipped, shape, affine, 3, empty)
    inside = field_of_view(source, shape, affine, empty)
    for slab in slabs(shape):
        on_grid[slab][~inside[slab]] = transform.low
        on_grid[slab] = _scale(on_grid[slab], transform.low, transform.high)
    return SourceOnGrid(on_grid, inside, source, transform)


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


def foreground_mask(scaled: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Voxels over the threshold, with enclosed holes (dark ventricles, vessels) filled.

    Args:
        scaled: Volume scaled to [0, 1], shape (x, y, z).
        threshold: Between 0 and 1.
    """
    return np.asarray(ndimage.binary_fill_holes(scaled > threshold), bool)


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
