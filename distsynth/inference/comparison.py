"""A scan beside the scans that a network was trained on: what is unlike them, in plain words.

Thresholds are stated here and in docs/predicting.md. Beyond the second of a pair nothing that the
network learned is known to hold, and the scan is refused unless this is meant.

Not compared is what makes no difference to the network: the units of intensity, which every mode of
`preprocess.intensities` takes out, and the order and direction of the array's axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.volumes.config import Intensities
from sharding.volumes.profile import Range, ScanProfile, TrainingProfile

COARSER = (1.25, 2.0)
"""Voxel size over the largest of training."""
FINER = 1.5
"""Smallest voxel size of training over the voxel size; such scans are not refused."""
EXTENT = (1.3, 3.0)
"""Extent of tissue over the largest of training, or the smallest of training over it."""
SHARE = (1.5, 3.0)
"""The same of the share of tissue, where intensities are standardised over all voxels."""
NOISE = (2.0, 5.0)
"""Noise over the largest of training."""
LEAST_NOISE = 0.01
"""Noise of training counts as at least this share of the intensity of tissue."""
CONTRAST = 0.15
"""Root mean square by which the layers' intensities lie outside the ranges of training."""
EXCHANGED = -0.5
"""Correlation of the layers' intensities with the medians of training: bright is dark."""
FLAT = 0.03
"""Standard deviation of the layers' intensities below which no correlation is computed."""
SKEWNESS = 0.25
"""How far the skewness of tissue lies outside the range of training."""
THICK = 1.5
"""Voxels this many times as long as wide are slices."""
AXES = ("left-right", "anterior-posterior", "inferior-superior")
FORCE = (
    "Take a model that was trained on such scans; or give --force (force=True), if this is meant"
)


@dataclass(frozen=True)
class Difference:
    """One way in which a scan is unlike the training scans.

    Attributes:
        what: voxel size, extent, share of tissue, contrast or noise.
        words: What was found, what training had, and what follows.
        refused: Whether it lies beyond the threshold at which a scan is refused.
    """

    what: str
    words: str
    refused: bool = False


@dataclass(frozen=True)
class Comparison:
    """A scan beside the training scans.

    Attributes:
        scans: How many training scans there are; 0 if the model does not tell what they were like.
        differences: What is unlike them.
    """

    scans: int
    differences: tuple[Difference, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the scan could be compared."""
        return self.scans > 0

    @property
    def line(self) -> str:
        """The outcome in one line."""
        if not self.known:
            return (
                "the model does not tell what its training scans were like, so that this scan "
                "cannot be compared with them"
            )
        if not self.differences:
            return (
                f"like the {self.scans} training scans in voxel size, extent of tissue, contrast "
                "and noise"
            )
        found = "; ".join(each.words for each in self.differences)
        return f"unlike the {self.scans} training scans: {found}"

    def check(self, where: object) -> None:
        """Refuse a scan that is too unlike training.

        Raises:
            DataError: If a difference is one that is refused.
        """
        if any(each.refused for each in self.differences):
            raise DataError(str(where), self.line, FORCE)


def compare(
    scan: ScanProfile, training: TrainingProfile | None, intensities: Intensities = "standardise"
) -> Comparison:
    """Compare a scan with the training scans.

    Args:
        scan: What was measured on it.
        training: What was measured on them; None if the model does not tell.
        intensities: The mode of the model, see PreprocessConfig.
    """
    if training is None:
        return Comparison(0)
    found = [
        *_spacing(scan, training),
        *_extent(scan, training),
        *(_share(scan, training) if intensities == "standardise" else ()),
        *_contrast(scan, training),
        *_noise(scan, training),
        *_steps(scan, training),
    ]
    return Comparison(training.scans, tuple(found))


def together(found: Mapping[str, Comparison]) -> Comparison:
    """The comparisons of several contrasts of a scan as one.

    Args:
        found: Name of each contrast -> how it compares with the training scans of that contrast.
    """
    return Comparison(
        min(comparison.scans for comparison in found.values()),
        tuple(
            replace(each, words=f"{name}: {each.words}")
            for name, comparison in found.items()
            for each in comparison.differences
        ),
    )


def _spacing(scan: ScanProfile, training: TrainingProfile) -> Iterator[Difference]:
    finest = min(scan.spacing_mm)
    # (What was found and had, what follows, whether it is refused) -> the axes of which it holds.
    found: dict[tuple[str, str, str, bool], list[str]] = {}
    for axis, side, seen in zip(AXES, scan.spacing_mm, training.spacing_mm, strict=True):
        kind = "slices" if side > THICK * finest else "voxels"
        if side > COARSER[0] * seen.high:
            lost = "detail across slices" if kind == "slices" else "detail"
            follows, refused = f"{lost} cannot be restored", side > COARSER[1] * seen.high
        elif side < seen.low / FINER:
            follows, refused = "the network never saw detail this fine", False
        else:
            continue
        size, had = f"{kind} of {side:.3g} mm", f"where training had {seen.text()} mm"
        found.setdefault((size, had, follows, refused), []).append(axis)
    for (size, had, follows, refused), axes in found.items():
        where = f" ({', '.join(axes)})" if len(axes) < len(AXES) else ""
        yield Difference("voxel size", f"{size}{where} {had}: {follows}", refused)


def _extent(scan: ScanProfile, training: TrainingProfile) -> Iterator[Difference]:
    for axis, side, seen in zip(AXES, scan.tissue_mm, training.tissue_mm, strict=True):
        factor, larger = _outside(side, seen)
        if factor > EXTENT[0]:
            follows = "a larger specimen" if larger else "a part of the specimen, or a smaller one"
            words = (
                f"tissue over {side:.3g} mm ({axis}) where training had {seen.text()} mm: {follows}"
            )
            yield Difference("extent", words, factor > EXTENT[1])


def _share(scan: ScanProfile, training: TrainingProfile) -> Iterator[Difference]:
    seen = training.tissue_share
    factor, _ = _outside(scan.tissue_share, seen)
    if factor > SHARE[0]:
        words = (
            f"{scan.tissue_share:.0%} of the voxels are tissue where training had "
            f"{seen.text('.0%')}: intensities, which are standardised over all voxels, are shifted"
        )
        yield Difference("share of tissue", words, factor > SHARE[1])


def _contrast(scan: ScanProfile, training: TrainingProfile) -> Iterator[Difference]:
    found = np.array(scan.contrast)
    if not found.max() > 0:
        yield Difference("contrast", "no tissue stands out from the background", True)
        return
    medians = np.array([each.median for each in training.contrast])
    inwards = (
        f"from the surface inwards {_thirds(found)} of the median intensity where training had "
        f"{_thirds(medians)}"
    )
    if min(found.std(), medians.std()) > FLAT:
        alike = float(np.corrcoef(found, medians)[0, 1])
        if alike < EXCHANGED:
            words = f"bright and dark tissue are exchanged: {inwards}"
            yield Difference("contrast", words, True)
            return
    beyond = [_beyond(value, each) for value, each in zip(found, training.contrast, strict=True)]
    apart = math.sqrt(float(np.mean(np.square(beyond))))
    if apart > CONTRAST:
        yield Difference(
            "contrast",
            f"another contrast: {inwards}",
        )
    elif _beyond(scan.skewness, training.skewness) > SKEWNESS:
        yield Difference(
            "contrast",
            f"another contrast: the skewness of tissue is {scan.skewness:.2f} where training had "
            f"{training.skewness.text('.2f')}",
        )


def _noise(scan: ScanProfile, training: TrainingProfile) -> Iterator[Difference]:
    factor = scan.noise / max(training.noise.high, LEAST_NOISE)
    if factor > NOISE[0]:
        words = (
            f"noise of {scan.noise:.1%} of the intensity of tissue where training had "
            f"{training.noise.text('.1%')}: noise may be taken for detail"
        )
        yield Difference("noise", words, factor > NOISE[1])


def _steps(scan: ScanProfile, training: TrainingProfile) -> Iterator[Difference]:
    if "correct" in training.steps and "correct" not in scan.steps:
        yield Difference(
            "preparation",
            "training scans were bias corrected, and nothing tells that this one was (distsynth "
            "correct does it)",
        )
    elif "correct" in scan.steps and "correct" not in training.steps:
        yield Difference("preparation", "bias corrected, which training scans were not")


def _outside(value: float, seen: Range) -> tuple[float, bool]:
    """By which factor a value lies outside a range, at least 1, and whether above it."""
    if value > seen.high:
        return (value / seen.high if seen.high > 0 else math.inf), True
    if value < seen.low:
        return (seen.low / value if value > 0 else math.inf), False
    return 1.0, False


def _beyond(value: float, seen: Range) -> float:
    """By how much a value lies outside a range, at least 0."""
    return max(0.0, value - seen.high, seen.low - value)


def _thirds(layers: NDArray[np.float64]) -> str:
    """The mean intensities of the outer, the middle and the inner third of the layers."""
    return ", ".join(f"{part.mean():.0%}" for part in np.array_split(layers, 3))
