"""From the files of a specimen to one standardised pair on the target grid (section 5.1, 5.2).

The order is the paper's: clip, scale, bring the source onto the target grid, standardise. N4 bias
correction and registration come before: `sharding.registration` runs them and writes a cohort of
prepared volumes, whose pairs are aligned already. Other volumes are aligned by their
affines alone.

The source is standardised by a transform that is fitted on the source as it was scanned, on its
own grid, which is what prediction sees: fitted on a resampled one, the same tissue would have other
values in training than in prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.cohort import Specimen
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.grid import at_spacing
from sharding.volumes.intensities import (
    IntensityTransform,
    check_varies,
    fit_intensities,
    scale_slab,
)
from sharding.volumes.landmarks import Standards
from sharding.volumes.masks import read_mask, specimen_foreground
from sharding.volumes.resample import field_of_view, resample
from sharding.volumes.slabs import Empty, by_slabs, in_memory, slabs
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_pair

FINER = 0.9
"""A source is clearly the finer one if its voxels are smaller than this share of the target's."""


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
class FurtherSource:
    """A contrast of a source after the first one, on the target's grid.

    Attributes:
        scaled: Interpolated by cubic B-splines, intensities in [0, 1], shape (x, y, z).
        transform: Its intensity transform, fitted on its native voxels.
        native: The contrast on its own grid, before any registration.
    """

    scaled: NDArray[np.float32]
    transform: IntensityTransform
    native: Volume


@dataclass(frozen=True, eq=False)
class Pair:
    """One specimen, ready to be cut into patches or evaluated; all arrays on the target grid.

    Attributes:
        name: The specimen.
        source_scaled: Source, [0, 1], shape (x, y, z).
        target_scaled: Target, [0, 1], same shape.
        mask: Foreground of the target inside the source's field of view, that of each contrast.
        source_transform: Intensity transform of the source, fitted on the native source.
        target_transform: Intensity transform of the target.
        native_source: The source on its own grid, before any registration.
        grid: The target as read: geometry and header of everything here.
        overlap: Share of the target's foreground inside the source's field of view.
        registration: Target world to native source world for a prepared specimen; None if the
            headers align the two.
        config: How the pair was made.
        further: The contrasts of the source after the first one, which all else here is about.
        empty: Makes the arrays that are as large as a volume, those of the properties too.
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
    registration: Transform | None = None
    config: PreprocessConfig = field(default_factory=PreprocessConfig)
    further: tuple[FurtherSource, ...] = ()
    empty: Empty = in_memory

    @cached_property
    def measured_transform(self) -> IntensityTransform:
        """The transform of the target on whose scale predictions are measured.

        It is the paper's: percentiles, mean and deviation of all voxels. So numbers of networks
        that see other intensities are of one scale, and can be compared.
        """
        if self.config.intensities == "standardise":
            return self.target_transform
        return IntensityTransform.fit(self.grid.data, self.config.clip_percentiles, self.empty)

    @cached_property
    def measured_target(self) -> NDArray[np.float32]:
        """The target on the scale of `measured_transform`."""
        if self.config.intensities == "standardise":
            return self.target
        return self.measured_transform.standardise(self.grid.data, self.empty)

    def measured(self, synthetic: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a synthetic volume to the scale of `measured_transform`, without clipping."""
        if self.target_transform is self.measured_transform:
            return synthetic
        unstandardise = self.target_transform.unstandardise
        return by_slabs(
            lambda slab: self.measured_scaled(unstandardise(slab)), synthetic, self.empty
        )

    def measured_scaled(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same for voxels on the scale of the target's own clip, [0, 1]."""
        own, transform = self.target_transform, self.measured_transform
        width = transform.high - transform.low
        factor, offset = (own.high - own.low) / width, (own.low - transform.low) / width
        return transform.standardise_scaled(scaled * np.float32(factor) + np.float32(offset))

    @property
    def measured_unit(self) -> float:
        """What one standardised unit of the target is on the scale of `measured_transform`."""
        own, transform = self.target_transform, self.measured_transform
        widths = (own.high - own.low) / (transform.high - transform.low)
        return widths * own.std / transform.std

    @property
    def source(self) -> NDArray[np.float32]:
        """Standardised source, of several contrasts the first one: the cubic baseline."""
        return self.source_transform.standardise_scaled(self.source_scaled, self.empty)

    @property
    def network_source(self) -> NDArray[np.float32]:
        """What a generator sees: shape (x, y, z), or (contrasts, x, y, z) where there are some."""
        if not self.further:
            return self.source
        stacked = self.empty((1 + len(self.further), *self.source_scaled.shape))
        stacked[0] = self.source
        for index, each in enumerate(self.further, start=1):
            stacked[index] = each.transform.standardise_scaled(each.scaled, self.empty)
        return stacked

    @property
    def target(self) -> NDArray[np.float32]:
        """Standardised target: what a generator should return."""
        return self.target_transform.standardise_scaled(self.target_scaled, self.empty)

    @property
    def nearest(self) -> NDArray[np.float32]:
        """Standardised source without interpolation: the identity baseline."""
        native, grid = self.native_source, self.grid
        if self.registration is None:
            data = resample(native, grid.shape, grid.affine, 0, self.empty)
        else:
            data, _ = self.registration.apply(native, grid.shape, grid.affine, 0, self.empty)
        return self.source_transform.standardise(data, self.empty)

    @property
    def native(self) -> NDArray[np.float32]:
        """Standardised source on its own grid."""
        return self.source_transform.standardise(self.native_source.data, self.empty)

    def degrade(self, standardised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a volume on the target grid to the source's own grid and resolution."""
        return self._on_native_grid(standardised)[0]

    @property
    def native_mask(self) -> NDArray[np.bool_]:
        """The mask on the source's own grid, within the target's field of view."""
        share, covered = self._on_native_grid(by_slabs(lambda slab: slab, self.mask, self.empty))
        for slab in slabs(covered.shape):
            covered[slab] &= share[slab] > 0.5
        return covered

    def _on_native_grid(
        self, data: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Data of the target grid on the native source's, and where that lies in the former."""
        volume, native = self.grid.with_data(data), self.native_source
        if self.registration is not None:
            return self.registration.apply_inverse(
                volume, native.shape, native.affine, 1, self.empty
            )
        covered = field_of_view(volume, native.shape, native.affine, self.empty)
        return resample(volume, native.shape, native.affine, 1, self.empty), covered


def prepare_pair(
    specimen: Specimen,
    config: PreprocessConfig,
    standards: Standards | None = None,
    empty: Empty = in_memory,
) -> Pair:
    """Read a specimen's files and bring its source onto the target's grid.

    Args:
        specimen: Its files.
        config: How the pair is made.
        standards: Standard landmarks of the cohort; without them landmarks stay where they are.
        empty: Makes the arrays that are as large as a volume, and those of the pair's properties.

    Raises:
        DataError: If a file is bad, the source is missing, finer than the target or constant within
            the mask, the mask does not fit, or source and target do not overlap.
    """
    source_of(specimen)
    source, given = read_pair(specimen.sources[0], specimen.target, config.orientation, empty)
    target, foreground, target_transform = _target(specimen, given, config, empty)
    voxels = foreground.sum()
    first = _placed(specimen, 0, source, given, target, config, empty)
    mask = foreground
    overlap = _narrow(mask, specimen, 0, first, voxels, config)
    others: list[SourceOnGrid] = []
    for index, contrast in enumerate(specimen.further, start=1):
        source, _ = read_pair(contrast.source, specimen.target, config.orientation, empty)
        others.append(_placed(specimen, index, source, given, target, config, empty))
        overlap = _narrow(mask, specimen, index, others[-1], voxels, config)
    for file, each in zip(specimen.sources, (first, *others), strict=True):
        check_varies(file, each.scaled, mask, "the mask")
    standards = standards or Standards()
    registration = Transform.load(specimen.transform) if specimen.transform else None
    return Pair(
        name=specimen.name,
        source_scaled=first.scaled,
        target_scaled=target_transform.scale(target.data, empty),
        mask=mask,
        source_transform=first.transform.to_standard(standards.source),
        target_transform=target_transform.to_standard(standards.target),
        native_source=first.native,
        grid=target,
        overlap=overlap,
        registration=registration,
        config=config,
        further=tuple(
            FurtherSource(
                each.scaled, each.transform.to_standard(standards.of_source(index)), each.native
            )
            for index, each in enumerate(others, start=1)
        ),
        empty=empty,
    )


def _placed(
    specimen: Specimen,
    index: int,
    source: Volume,
    given: Volume,
    target: Volume,
    config: PreprocessConfig,
    empty: Empty,
) -> SourceOnGrid:
    """A contrast of the source, by its number, on the target's grid.

    Args:
        specimen: Its files.
        index: The number of the contrast.
        source: The contrast as read; of a prepared specimen on the target's grid already.
        given: The target as read.
        target: The target at the configured spacing.
        config: How the pair is made.
        empty: Makes the arrays that are as large as a volume.
    """
    file = specimen.sources[index]
    unmoved = specimen.further[index - 1].native_source if index else specimen.native_source
    native, fitted = source, None
    if unmoved:
        native, _ = read_pair(unmoved, specimen.target, config.orientation, empty)
        fitted = fit_intensities(unmoved, native, config, empty)
    check_not_finer(file, native, given, config)
    placed = place_source(source, target.shape, target.affine, config, file, empty, fitted)
    return replace(placed, native=native)


def _narrow(
    mask: NDArray[np.bool_],
    specimen: Specimen,
    index: int,
    placed: SourceOnGrid,
    voxels: int,
    config: PreprocessConfig,
) -> float:
    """Take out of the mask what a contrast does not cover; return what is left of the foreground.

    Raises:
        DataError: If too little is left.
    """
    for slab in slabs(mask.shape):
        mask[slab] &= placed.inside[slab]
    overlap = float(mask.sum() / voxels)
    if overlap < config.min_overlap:
        more = " together with the contrasts before it" if index else ""
        raise DataError(
            specimen.sources[index],
            f"source and target must overlap: it covers {overlap:.0%} of the foreground of "
            f"{specimen.target}{more}, at least {config.min_overlap:.0%} is needed",
            "Check the affines, or that the files belong together",
        )
    return overlap


def _target(
    specimen: Specimen, target: Volume, config: PreprocessConfig, empty: Empty
) -> tuple[Volume, NDArray[np.bool_], IntensityTransform]:
    """The target at the configured spacing, its foreground, and its intensity transform."""
    spaced = target
    if config.target_spacing_mm:
        spaced = at_spacing(target, config.target_spacing_mm, empty=empty)
    transform = fit_intensities(specimen.target, spaced, config, empty)
    if specimen.mask is None or spaced is target:
        scaled = spaced.with_data(transform.scale(spaced.data, empty))
        return spaced, specimen_foreground(specimen, scaled, config, empty), transform
    mask = read_mask(specimen.mask, target, config.orientation, empty)
    marked = target.with_data(by_slabs(lambda slab: slab, mask, empty))
    share = resample(marked, spaced.shape, spaced.affine, 1, empty)
    inside = empty(share.shape, np.bool_)
    for slab in slabs(share.shape):
        inside[slab] = share[slab] > 0.5
    if not inside.any():
        rule = f"the mask is empty at the spacing of {config.target_spacing_mm} mm"
        raise DataError(specimen.mask, rule, "Give a finer target spacing")
    return spaced, inside, transform


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
    fitted: IntensityTransform | None = None,
) -> SourceOnGrid:
    """Bring a source onto a grid by the affines, scaled to [0, 1].

    The intensity transform is fitted on the source's own voxels, so that it is the same whatever
    the grid, with a target at hand or without.

    Args:
        source: The volume.
        shape: Shape of the grid.
        affine: Grid index to world millimetres, shape (4, 4).
        config: Percentiles to clip at.
        where: Names the source in errors.
        empty: Makes the arrays that are as large as a volume.
        fitted: Intensity transform of the native source, where this one has been resampled
            already; None fits this one.

    Raises:
        DataError: If nearly all voxels of the source are equal.
    """
    transform = fitted or fit_intensities(where, source, config, empty)
    clip = partial(np.clip, a_min=transform.low, a_max=transform.high)
    clipped = source.with_data(by_slabs(clip, source.data, empty))
    on_grid = resample(clipped, shape, affine, 3, empty)
    inside = field_of_view(source, shape, affine, empty)
    for slab in slabs(shape):
        on_grid[slab][~inside[slab]] = transform.low
        on_grid[slab] = scale_slab(on_grid[slab], transform.low, transform.high)
    return SourceOnGrid(on_grid, inside, source, transform)
