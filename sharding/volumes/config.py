"""How volumes become pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sharding.io.records import STRICT
from sharding.volumes.header import LEAST_MM, MOST_MM, Orientation

Intensities = Literal["standardise", "percentile", "foreground", "landmarks"]
"""Ways to bring intensities to the scale that networks see."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How volumes become pairs."""

    __pydantic_config__ = STRICT

    clip_percentiles: tuple[float, float] = (0.1, 99.9)
    """Intensities outside are clipped (section 5.1)."""
    intensities: Intensities = "standardise"
    """What networks see. standardise: mean and deviation of all voxels (section 5.2), which depend
    on how much background a scan holds. The others do not: percentile takes a fixed map of the
    clipped scale, (x - 0.2) / 0.3; foreground takes mean and deviation of tissue; landmarks also
    matches percentiles of tissue to those of the training specimens. Tissue is found by a rule, see
    sharding/volumes/tissue.py, and these three take the high percentile of tissue."""
    foreground_threshold: float = 0.05
    """Foreground is where the scaled target, 0 to 1, exceeds this, with holes filled."""
    min_overlap: float = 0.25
    """Least share of the target's foreground that the source must cover."""
    allow_finer_source: bool = False
    """Accept a source whose voxels are finer than the target's, instead of taking the two files for
    swapped."""
    orientation: Orientation = "header"
    """"array" accepts pairs of which a file has lost its orientation (qform and sform codes 0), and
    lays the array of the source along the axes of the target's array."""
    target_spacing_mm: tuple[float, float, float] | None = None
    """Voxel size to resample every target to; None takes targets as they are, which must then all
    have the same."""

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
        if self.target_spacing_mm and not all(
            LEAST_MM <= side <= MOST_MM for side in self.target_spacing_mm
        ):
            raise ValueError(
                f"target_spacing_mm must be from {LEAST_MM} to {MOST_MM:g}, got "
                f"{self.target_spacing_mm}"
            )
