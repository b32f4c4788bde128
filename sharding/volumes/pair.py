"""A specimen's source and target on the target's grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.cohort import Specimen
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.intensities import IntensityTransform, _scale, fit_intensities
from sharding.volumes.masks import specimen_foreground
from sharding.volumes.resample import field_of_view, resample
from sharding.volumes.slabs import Empty, by_slabs, in_memory, slabs
from sharding.volumes.volume import Volume, read_volume

FINER = 0.9
"""A source whose voxels are below this share of the target's volume is clearly the finer one."""


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
    """One specimen, ready to be cut into patches or evaluated; all arrays on the target grid.

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
