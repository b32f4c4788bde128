"""What a scan is like: voxel size, extent, tissue, contrast, noise; and the same of many scans.

The profile of a network's training sources says which scans it can be expected to work on. It holds
numbers that are measured on voxels and geometry alone: no name, no path, no text of a header.

Axes are those of the world (right, anterior, superior), so that a scan whose array is flipped or
permuted has the same profile. Intensities are relative to the median of tissue, so that a scan in
other units has the same profile too; only `intensities` are in the units of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.records import STRICT
from sharding.volumes.masks import otsu_foreground
from sharding.volumes.tissue import quantile
from sharding.volumes.volume import Volume

LOW_PERCENTILE = 0.1
"""Of all voxels: the intensity of the background."""
PERCENTILES = (1.0, 25.0, 50.0, 75.0, 99.0)
"""Of tissue: the intensities that a profile holds."""
DEPTHS = 6
"""Layers of equal volume, from the surface inwards, whose median intensities are the contrast."""
EDGE_SHARE = 0.05
"""A plane belongs to the specimen if it holds this share of the tissue of the fullest plane: noise
in the background makes no specimen larger."""
MOST_VOXELS = 2**23
"""Of larger volumes every second, third ... plane is measured."""
MOST_DEEP_VOXELS = 2**20
"""Voxels, evenly spaced, on which depths are computed."""
RIM = 2.5
"""Voxels at the surface that are not part of any layer."""
MAD_TO_SIGMA = 1.4826
IMMERKAER = 6.0
"""Standard deviation that two second differences give white noise of deviation 1."""
DIGITS = 4
"""Significant digits of what is measured."""
KNOWN_STEPS = ("correct", "scale")
"""Steps of `distsynth prepare` that change a scan's intensities on its own grid."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ScanProfile:
    """One scan; triples are along right, anterior, superior.

    Attributes:
        spacing_mm: Voxel size.
        shape: Voxels.
        orientation: Directions of the array's axes, such as LPS.
        tissue_mm: Extent of the tissue.
        tissue_share: Share of the voxels that are tissue.
        intensities: PERCENTILES of tissue, in the units of the file.
        skewness: Where the median of tissue lies between its 10 and 90 percentiles: -1 at the
            upper, 0 in the middle, 1 at the lower one.
        contrast: Median intensity of DEPTHS layers from the surface inwards, over that of tissue.
        noise: Standard deviation of the noise and of texture of single voxels, over the median
            intensity of tissue.
        steps: Of KNOWN_STEPS those that are known to have been applied.
    """

    __pydantic_config__ = STRICT

    spacing_mm: Triple
    shape: tuple[int, int, int]
    orientation: str
    tissue_mm: Triple
    tissue_share: float
    intensities: tuple[float, ...]
    skewness: float
    contrast: tuple[float, ...]
    noise: float
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = (*self.spacing_mm, *self.tissue_mm, *self.intensities, *self.contrast)
        _check(values, self.tissue_share, self.skewness, self.noise)
        _check_lengths(self.intensities, self.contrast)

    @property
    def field_of_view_mm(self) -> Triple:
        """Extent of the whole scan."""
        right, anterior, superior = (
            round(side * size, 2) for side, size in zip(self.spacing_mm, self.shape, strict=True)
        )
        return right, anterior, superior


def profile_scan(volume: Volume, steps: Sequence[str] = ()) -> ScanProfile:
    """Measure a scan on its own grid.

    Args:
        volume: Any units of intensity; its voxels must not all be equal.
        steps: What was done to its intensities before, as far as it is known.
    """
    upright = volume.reoriented("RAS")
    every = math.ceil(volume.data.size / MOST_VOXELS)
    data = np.asarray(upright.data[..., ::every], np.float32)
    right, anterior, superior = upright.spacing_mm
    spacing = right, anterior, superior * every
    low = float(np.percentile(data, LOW_PERCENTILE))
    tissue = otsu_foreground(data)
    if not tissue.any():  # A few bright voxels alone, which are blurred away.
        tissue = data >= low
    values = np.sort(data[tissue])
    middle = quantile(values, 50) - low
    unit = middle if middle > 0 else 1.0
    return ScanProfile(
        spacing_mm=_rounded_triple(upright.spacing_mm),
        shape=upright.shape,
        orientation=volume.orientation,
        tissue_mm=_rounded_triple(_extent(tissue, spacing)),
        tissue_share=_rounded(float(tissue.mean())),
        intensities=tuple(_rounded(quantile(values, each)) for each in PERCENTILES),
        skewness=_rounded(_skewness(values)),
        contrast=_contrast(data, tissue, spacing, low, unit),
        noise=_rounded(_noise(data, tissue, spacing) / unit),
        steps=tuple(step for step in KNOWN_STEPS if step in steps),
    )


def known_steps(path: Path) -> tuple[str, ...]:
    """Which of KNOWN_STEPS `distsynth prepare` has applied to a file that it wrote.

    The record beside the file says it; without one nothing is known.
    """
    try:
        order = json.loads((path.parent / "step.json").read_bytes())["order"]
        return tuple(step for step in KNOWN_STEPS if step in order)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


@dataclass(frozen=True)
class Range:
    """The values of several scans."""

    __pydantic_config__ = STRICT

    low: float
    median: float
    high: float

    def __post_init__(self) -> None:
        _check((self.low, self.median, self.high))
        if not self.low <= self.high:
            raise ValueError(f"a range must rise, got {self.low} to {self.high}")

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Least, median and largest of one value or more."""
        return cls(min(values), _rounded(float(np.median(values))), max(values))

    def text(self, form: str = ".3g") -> str:
        """`1 to 2`, or a single number where both ends are printed alike."""
        low, high = format(self.low, form), format(self.high, form)
        return low if low == high else f"{low} to {high}"


Ranges = tuple[Range, ...]


@dataclass(frozen=True)
class TrainingProfile:
    """What the training sources are like: ranges over them of what ScanProfile holds.

    Attributes:
        scans: How many they are.
        orientations: Every orientation among them.
        steps: What is known to have been done to each of them.
    """

    __pydantic_config__ = STRICT

    scans: int
    spacing_mm: tuple[Range, Range, Range]
    shape: tuple[Range, Range, Range]
    orientations: tuple[str, ...]
    field_of_view_mm: tuple[Range, Range, Range]
    tissue_mm: tuple[Range, Range, Range]
    tissue_share: Range
    intensities: Ranges
    skewness: Range
    contrast: Ranges
    noise: Range
    steps: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.scans < 1:
            raise ValueError(f"scans must be >= 1, got {self.scans}")
        _check_lengths(self.intensities, self.contrast)

    @classmethod
    def of(cls, scans: Sequence[ScanProfile]) -> TrainingProfile | None:
        """Summarise scans; None if there is none."""
        if not scans:
            return None

        def triple(rows: Sequence[Sequence[float]]) -> tuple[Range, Range, Range]:
            first, second, third = _ranges(rows)
            return first, second, third

        return cls(
            scans=len(scans),
            spacing_mm=triple([scan.spacing_mm for scan in scans]),
            shape=triple([scan.shape for scan in scans]),
            orientations=tuple(sorted({scan.orientation for scan in scans})),
            field_of_view_mm=triple([scan.field_of_view_mm for scan in scans]),
            tissue_mm=triple([scan.tissue_mm for scan in scans]),
            tissue_share=Range.of([scan.tissue_share for scan in scans]),
            intensities=_ranges([scan.intensities for scan in scans]),
            skewness=Range.of([scan.skewness for scan in scans]),
            contrast=_ranges([scan.contrast for scan in scans]),
            noise=Range.of([scan.noise for scan in scans]),
            steps=tuple(step for step in KNOWN_STEPS if all(step in scan.steps for scan in scans)),
        )


def _check(values: Sequence[float], *more: float) -> None:
    """Raise ValueError unless all values are finite."""
    if not all(math.isfinite(value) for value in (*values, *more)):
        raise ValueError(f"a profile must be of finite numbers, got {(*values, *more)}")


def _check_lengths(intensities: Sequence[object], contrast: Sequence[object]) -> None:
    """Raise ValueError unless a profile has a value for each percentile and each layer."""
    if (len(intensities), len(contrast)) != (len(PERCENTILES), DEPTHS):
        raise ValueError(
            f"a profile must have {len(PERCENTILES)} intensities and {DEPTHS} layers, got "
            f"{len(intensities)} and {len(contrast)}"
        )


def _ranges(rows: Sequence[Sequence[float]]) -> Ranges:
    return tuple(Range.of(column) for column in zip(*rows, strict=True))


def _extent(tissue: NDArray[np.bool_], spacing: Triple) -> Triple:
    """Size of the tissue along each axis in mm."""
    sides = []
    for axis, side in enumerate(spacing):
        others = tuple(other for other in range(3) if other != axis)
        counts = np.count_nonzero(tissue, axis=others)
        planes = np.flatnonzero(counts >= max(1, EDGE_SHARE * counts.max()))
        sides.append((int(planes[-1]) - int(planes[0]) + 1) * side)
    right, anterior, superior = sides
    return right, anterior, superior


def _skewness(ascending: NDArray[np.float32]) -> float:
    """Kelly's measure of skewness."""
    low, middle, high = (quantile(ascending, each) for each in (10, 50, 90))
    return (high + low - 2 * middle) / (high - low) if high > low else 0.0


def _contrast(
    data: NDArray[np.float32],
    tissue: NDArray[np.bool_],
    spacing: Triple,
    low: float,
    unit: float,
) -> tuple[float, ...]:
    """Median intensity of layers of equal volume, the outermost first."""
    every = max(1, math.ceil((data.size / MOST_DEEP_VOXELS) ** (1 / 3)))
    coarse = (slice(None, None, every),) * 3
    inside, values = tissue[coarse], data[coarse]
    if not inside.any():
        inside, values = tissue, data
    whole = np.pad(inside, 1) if inside.all() else inside
    depth = np.asarray(ndimage.distance_transform_edt(whole, sampling=spacing))
    if whole.shape != inside.shape:
        depth = depth[1:-1, 1:-1, 1:-1]
    # The rim is half background, whatever the contrast.
    inner = inside & (depth > RIM * min(spacing))
    inner = inner if inner.any() else inside
    order = np.argsort(depth[inner], kind="stable")
    layers = np.array_split(values[inner][order], DEPTHS)
    medians = [float(np.median(layer)) if layer.size else low + unit for layer in layers]
    return tuple(_rounded((median - low) / unit) for median in medians)


def _noise(
    data: NDArray[np.float32],
    tissue: NDArray[np.bool_],
    spacing: Triple,
) -> float:
    """Standard deviation of what differs from voxel to voxel in the planes of finest voxels.

    Second differences along two axes leave noise and little of the edges (after Immerkaer, 1996).
    """
    first, second = sorted(range(3), key=lambda axis: round(spacing[axis], 3))[:2]
    rough = data
    for axis in (first, second):
        rough = ndimage.correlate1d(rough, [1, -2, 1], axis=axis, mode="reflect")
    flat = np.ones([3 if axis in (first, second) else 1 for axis in range(3)], bool)
    inner = np.asarray(ndimage.binary_erosion(tissue, flat, iterations=2), bool)
    values = np.abs(np.asarray(rough)[inner if inner.any() else tissue])
    return float(np.median(values)) * MAD_TO_SIGMA / IMMERKAER


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _rounded_triple(values: Sequence[float]) -> Triple:
    first, second, third = map(_rounded, values)
    return first, second, third
