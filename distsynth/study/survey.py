"""What a cohort is like: sizes, resolutions, tissue, and how well its pairs are aligned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from sharding.io.errors import DataError
from sharding.io.progress import progress
from sharding.io.records import STRICT
from sharding.registration.alignment import compare
from sharding.registration.config import RegisterConfig
from sharding.registration.register import register_rigid
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.contrasts import common_contrasts
from sharding.volumes.intensities import SCALED_MAX, fit_intensities
from sharding.volumes.masks import otsu_foreground
from sharding.volumes.pair import source_of
from sharding.volumes.resample import field_of_view
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_pair

logger = logging.getLogger(__name__)

MEASURED = 4
"""Specimens, evenly spaced in the cohort, whose alignment is measured."""
DISPLACED = 0.5
"""Voxels; a pair that a registration moves by less is aligned already."""
COARSE = RegisterConfig(affine_shrink=(8, 4))
"""The rigid registration that measures an alignment: half a voxel is seen at a quarter of the
resolution."""


@dataclass(frozen=True)
class Alignment:
    """How far a rigid registration moves a pair whose headers align it.

    Attributes:
        displacement_voxels: Mean displacement of the target's foreground, in its own voxels.
        better: Whether the pair fits better for it; see sharding.registration.alignment. Where it
            moves by less than DISPLACED nothing follows from it, and it is false, unmeasured.
    """

    __pydantic_config__ = STRICT

    displacement_voxels: float
    better: bool


@dataclass(frozen=True)
class PairFacts:
    """One specimen.

    Attributes:
        specimen: Its name.
        shape: Voxels of the target.
        spacing_mm: Voxel size of the target.
        source_spacing_mm: Voxel size of the source, or its first contrast, along the axes of the
            target.
        orientation: Axis codes of the target, such as RAS.
        foreground: Share of the target's voxels that hold tissue.
        split: The split that the cohort states.
        alignment: Of the measured specimens; of several contrasts the one that needs a
            registration most.
    """

    __pydantic_config__ = STRICT

    specimen: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    source_spacing_mm: tuple[float, float, float]
    orientation: str
    foreground: float
    split: Split | None = None
    alignment: Alignment | None = None


@dataclass(frozen=True)
class Survey:
    """A cohort.

    Attributes:
        pairs: Its specimens.
        contrasts: Names of the contrasts of a source; none where there is one source.
    """

    __pydantic_config__ = STRICT

    pairs: tuple[PairFacts, ...]
    contrasts: tuple[str, ...] = ()

    @property
    def smallest(self) -> tuple[int, int, int]:
        """The fewest voxels of any target along each axis."""
        shapes = [pair.shape for pair in self.pairs]
        return tuple(min(sizes) for sizes in zip(*shapes, strict=True))  # type: ignore[return-value]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The median voxel size of the targets."""
        return _median([pair.spacing_mm for pair in self.pairs])

    @property
    def source_spacing_mm(self) -> tuple[float, float, float]:
        """The median voxel size of the sources, along the axes of the targets."""
        return _median([pair.source_spacing_mm for pair in self.pairs])

    @property
    def foreground(self) -> float:
        """The median share of tissue."""
        return float(np.median([pair.foreground for pair in self.pairs]))

    @property
    def displacement_voxels(self) -> float:
        """The largest displacement of a measured pair that a registration improves; 0 for none."""
        found = [pair.alignment for pair in self.pairs if pair.alignment and pair.alignment.better]
        return max((alignment.displacement_voxels for alignment in found), default=0.0)


SURVEY: TypeAdapter[Survey] = TypeAdapter(Survey)


def survey(specimens: Sequence[Specimen], config: PreprocessConfig | None = None) -> Survey:
    """Look at every pair of a cohort, and measure the alignment of a few.

    Args:
        specimens: With sources.
        config: How volumes are read, and what counts as foreground.

    Raises:
        DataError: If a file is bad, a specimen has no source, or specimens have different
            contrasts.
    """
    contrasts = common_contrasts(specimens)
    config = config or PreprocessConfig()
    spread = np.linspace(0, len(specimens) - 1, min(MEASURED, len(specimens))).round()
    measured = set(spread.astype(int).tolist())
    return Survey(
        tuple(
            _facts(specimen, config, index in measured)
            for index, specimen in enumerate(progress(specimens, "surveying", len(specimens)))
        ),
        contrasts,
    )


def _facts(specimen: Specimen, config: PreprocessConfig, measure: bool) -> PairFacts:
    source_of(specimen)
    read = [read_pair(file, specimen.target, config.orientation) for file in specimen.sources]
    for where, (contrast, target) in zip(specimen.sources, read, strict=True):
        if not field_of_view(contrast, target.shape, target.affine).any():
            rule = "the fields of view of source and target do not meet"
            remedy = "Check that the two are of one specimen, and their headers"
            raise DataError(where, rule, remedy)
    source, target = read[0]
    scaled = _scaled(specimen.target, target, config)
    tissue = otsu_foreground(scaled.data)
    alignments = []
    for where, (contrast, _) in zip(specimen.sources, read, strict=True):
        if measure:
            own = _scaled(where, contrast, config)
            alignments.append(_alignment(specimen.name, own, scaled, tissue))
    found = [alignment for alignment in alignments if alignment]
    return PairFacts(
        specimen.name,
        target.shape,
        target.spacing_mm,
        _spacing_along(source, target),
        target.orientation,
        round(float(tissue.mean()), 4),
        specimen.split,
        max(found, key=lambda each: (each.better, each.displacement_voxels), default=None),
    )


def _scaled(where: Path, volume: Volume, config: PreprocessConfig) -> Volume:
    """The volume with intensities as the registration's measures want them.

    Raises:
        DataError: If nearly all voxels are equal.
    """
    fitted = fit_intensities(where, volume, replace(config, intensities="standardise"))
    return volume.with_data(fitted.scale(volume.data) * SCALED_MAX)


def _spacing_along(source: Volume, target: Volume) -> tuple[float, float, float]:
    """Voxel size of the source along each axis of the target."""
    directions = source.affine[:3, :3] / np.linalg.norm(source.affine[:3, :3], axis=0)
    axes = target.affine[:3, :3] / np.linalg.norm(target.affine[:3, :3], axis=0)
    nearest = np.abs(axes.T @ directions).argmax(axis=1)
    first, second, third = (float(source.spacing_mm[axis]) for axis in nearest)
    return first, second, third


def _alignment(
    name: str, source: Volume, target: Volume, tissue: NDArray[np.bool_]
) -> Alignment | None:
    """How far a coarse rigid registration moves the tissue; None, with a warning, if it fails."""
    if not tissue.any():
        logger.warning("the alignment of %s could not be measured: nothing stands out", name)
        return None
    start = Transform.identity()
    try:
        found = register_rigid(source, target, COARSE, tissue)
    except DataError as error:
        logger.warning("the alignment of %s could not be measured: %s", name, error)
        return None
    inside = np.argwhere(tissue)[:: max(1, int(tissue.sum()) // 10_000)]
    points = inside @ target.affine[:3, :3].T + target.affine[:3, 3]
    moved = np.linalg.norm(found.points(points) - points, axis=1) / min(target.spacing_mm)
    displacement = float(moved.mean())
    # Whole volumes are interpolated to compare: most of the time of a survey.
    better = displacement >= DISPLACED and compare(source, target, start, found, tissue).kept
    return Alignment(round(displacement, 3), better)


def _median(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in np.median(np.array(rows), axis=0))
    return first, second, third
