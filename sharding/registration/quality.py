"""Measures of how well a source is aligned with its target, and which specimens stand out.

Every measure is taken on intensities clipped and scaled to [0, 1000] (`SCALED_MAX`). A specimen
stands out if it breaks a fixed rule or, in a cohort that is large enough, differs from the others;
it is reported and stays in the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from sharding.io.records import STRICT
from sharding.volumes.intensities import SCALED_MAX
from sharding.volumes.masks import otsu_foreground
from sharding.volumes.transform import Transform

BINS = 64
"""Bins of either intensity in the joint histogram."""

SAMPLES = 2**22
"""Most voxels on which noise is measured."""

# Fixed rules. Interpolation alone may lower a measure a little, by up to these shares.
FELL_INFORMATION = 0.005
FELL_CORRELATION = 0.02
LEAST_OVERLAP = 0.7
LEAST_COVERAGE = 0.75
JACOBIAN_RANGE = (0.3, 3.0)
MIRRORED_GAIN = 0.02
FOREGROUND_RANGE = (0.01, 0.98)
MOST_NOISE = 0.15

# Rules of the cohort.
LEAST_COHORT = 5
MOST_DEVIATIONS = 3.5
MAD_TO_SIGMA = 1.4826
LEAST_SPREAD = 0.02
"""Least spread as a share of the median: a cohort whose values agree up to rounding has no
outliers."""


@dataclass(frozen=True)
class PairQuality:
    """How much a source on the target's grid has in common with the target."""

    __pydantic_config__ = STRICT

    mutual_information: float
    """Mutual information of the intensities in the mask, in nats, with 64 by 64 bins."""
    correlation: float
    """Pearson correlation in the mask, -1 to 1."""
    overlap: float
    """Dice coefficient of the two foregrounds within the source's field of view, 0 to 1."""


@dataclass(frozen=True)
class RegistrationOutcome:
    """What a registration step did to the alignment."""

    __pydantic_config__ = STRICT

    step: str
    """rigid, affine or deform; or such as `t2 to t1`, the rigid step of a further contrast."""
    kept: bool
    """Whether it stands; if not, what was there before it does."""
    before: float | None
    """Mutual information before the step, nats; None where too little was covered to compare."""
    after: float
    """Mutual information after it."""


@dataclass(frozen=True)
class SpecimenQuality:
    """The measures of one specimen: of its pair before and after preparing, and of its volumes."""

    __pydantic_config__ = STRICT

    name: str
    before: PairQuality
    """Placed by the headers alone."""
    after: PairQuality
    """As prepared; both are measured in the same mask, that of the prepared pair, where the source
    reaches it in both."""
    jacobian_min: float
    """Least volume change from target to source within the foreground; 1 without registration."""
    jacobian_max: float
    """Largest volume change within the foreground."""
    coverage: float
    """Share of the target's foreground inside the source's field of view, as prepared."""
    foreground: float
    """Share of the target's volume that is foreground."""
    noise_source: float
    """Standard deviation of the noise in the native source, as a share of its intensity range."""
    noise_target: float
    """Standard deviation of the noise in the target, as a share of its intensity range."""
    kept: tuple[str, ...] = ()
    """Registration steps that brought the two closer, see sharding.registration.alignment."""
    left_out: tuple[str, ...] = ()
    """Registration steps that did not, so that the step before them, or the headers, stand."""
    registration: tuple[RegistrationOutcome, ...] = ()
    """What each registration step did, in order, after those of further contrasts."""
    mirrored_gain: float = 0.0
    """Share by which the source fits better when it is mirrored left to right, by the mutual
    information after a rigid registration each; 0 where that was not measured."""


def pair_quality(
    source: NDArray[np.float32],
    target: NDArray[np.float32],
    mask: NDArray[np.bool_],
    inside: NDArray[np.bool_] | None = None,
) -> PairQuality:
    """Compare two volumes on one grid.

    Args:
        source: Intensities in [0, 1000], shape (x, y, z).
        target: Intensities in [0, 1000], same shape.
        mask: Where mutual information and correlation are measured.
        inside: The source's field of view, where the overlap is measured; None for everywhere.

    Returns:
        The measures; all zero where the mask is empty, as nothing is in common then.

    Raises:
        ValueError: If the shapes differ.
    """
    shapes = {array.shape for array in (source, target, mask, mask if inside is None else inside)}
    if len(shapes) != 1:
        raise ValueError(f"source, target, mask and inside must share one shape, got {shapes}")
    if not mask.any():
        return PairQuality(0.0, 0.0, 0.0)
    ours, theirs = otsu_foreground(source), otsu_foreground(target)
    if inside is not None:
        ours, theirs = ours & inside, theirs & inside
    total = int(ours.sum()) + int(theirs.sum())
    return PairQuality(
        mutual_information=mutual_information(source[mask], target[mask]),
        correlation=_correlation(source[mask], target[mask]),
        overlap=2 * int((ours & theirs).sum()) / total if total else 0.0,
    )


def noise_estimate(scaled: NDArray[np.float32]) -> float:
    """Standard deviation of the noise, as a share of the intensity range.

    The volume's second difference along all three axes together leaves noise and little of the
    edges; its median size in the foreground gives the standard deviation (after Immerkaer, 1996,
    in 3D). Noise that is correlated between voxels, as after interpolation, is underestimated, and
    texture of single voxels is taken for noise.

    Args:
        scaled: Intensities in [0, 1000] on the scanner's own grid, shape (x, y, z).
    """
    rough = np.asarray(scaled, np.float32) / np.float32(SCALED_MAX)
    for axis in range(3):
        rough = ndimage.correlate1d(rough, [1, -2, 1], axis=axis, mode="reflect")
    # The outline is an edge in all directions; clipped voxels hold no noise.
    inner = np.asarray(ndimage.binary_erosion(otsu_foreground(scaled), iterations=2), bool)
    values = np.abs(rough[inner & (scaled > 0) & (scaled < SCALED_MAX)])
    if not values.size:
        return 0.0
    values = values[:: math.ceil(values.size / SAMPLES)]
    return float(np.median(values) * MAD_TO_SIGMA / math.sqrt(6) ** 3)


MEASURES: dict[str, Callable[[SpecimenQuality], float]] = {
    "mutual information": lambda row: row.after.mutual_information,
    "correlation": lambda row: row.after.correlation,
    "overlap": lambda row: row.after.overlap,
    "least Jacobian determinant": lambda row: row.jacobian_min,
    "largest Jacobian determinant": lambda row: row.jacobian_max,
    "coverage": lambda row: row.coverage,
    "foreground share": lambda row: row.foreground,
    "noise of the source": lambda row: row.noise_source,
    "noise of the target": lambda row: row.noise_target,
}
"""What is compared between the specimens of a cohort."""


def flag_outliers(rows: Sequence[SpecimenQuality]) -> dict[str, list[str]]:
    """Name the specimens that stand out, each with the reasons.

    Fixed rules look at each specimen alone. In a cohort of at least `LEAST_COHORT` specimens, a
    measure is flagged too when it lies more than 3.5 robust standard deviations (1.4826 times the
    median absolute deviation) from the median.

    Returns:
        Specimen name to reasons, for those with any, in the order of the rows.
    """
    reasons = {row.name: _broken_rules(row) for row in rows}
    if len(rows) >= LEAST_COHORT:
        for title, measure in MEASURES.items():
            for row, deviation, median in _deviations(rows, measure):
                if abs(deviation) > MOST_DEVIATIONS:
                    reasons[row.name].append(
                        f"{title} {measure(row):.3g} is unusual: the cohort's median is "
                        f"{median:.3g}, {abs(deviation):.1f} robust standard deviations away"
                    )
    return {name: found for name, found in reasons.items() if found}


def rules_in_words() -> list[str]:
    """The rules of flag_outliers, a sentence each, for the page."""
    return [
        f"mutual information fell by more than {FELL_INFORMATION:.1%} from before to after",
        f"the size of the correlation fell by more than {FELL_CORRELATION}",
        f"the foregrounds overlap by less than {LEAST_OVERLAP}",
        f"the source covers less than {LEAST_COVERAGE:.0%} of the foreground",
        "the Jacobian determinant leaves {} to {}".format(*JACOBIAN_RANGE),
        f"the mutual information is more than {MIRRORED_GAIN:.0%} higher for the source mirrored "
        "left to right",
        "the foreground is less than {:.0%} or more than {:.0%} of the volume".format(
            *FOREGROUND_RANGE
        ),
        f"the noise exceeds {MOST_NOISE:.0%} of the intensity range",
        f"in a cohort of {LEAST_COHORT} or more, a measure lies more than {MOST_DEVIATIONS} robust "
        "standard deviations from the median",
    ]


def _broken_rules(row: SpecimenQuality) -> list[str]:
    """The fixed rules that a specimen breaks, in words."""
    before, after = row.before, row.after
    found = []
    if after.mutual_information < before.mutual_information * (1 - FELL_INFORMATION):
        found.append(
            f"mutual information fell from {before.mutual_information:.3f} to "
            f"{after.mutual_information:.3f}"
        )
    # By magnitude: contrasts may be opposed, so that good alignment gives a large negative value.
    if abs(after.correlation) < abs(before.correlation) - FELL_CORRELATION:
        found.append(f"correlation fell from {before.correlation:.3f} to {after.correlation:.3f}")
    if after.overlap < LEAST_OVERLAP:
        found.append(f"overlap of the foregrounds {after.overlap:.2f} is below {LEAST_OVERLAP}")
    if row.coverage < LEAST_COVERAGE:
        found.append(f"the source covers {row.coverage:.0%} of the foreground")
    low, high = JACOBIAN_RANGE
    if row.jacobian_min < low or row.jacobian_max > high:
        found.append(
            f"Jacobian determinant {row.jacobian_min:.2f} to {row.jacobian_max:.2f} leaves "
            f"{low} to {high}"
        )
    if row.mirrored_gain > MIRRORED_GAIN:
        found.append(
            "the source fits better when it is mirrored left to right (mutual information "
            f"{row.mirrored_gain:+.0%}): check the orientation of both files"
        )
    low, high = FOREGROUND_RANGE
    if not low <= row.foreground <= high:
        found.append(f"the foreground is {row.foreground:.1%} of the volume")
    for title, noise in (("source", row.noise_source), ("target", row.noise_target)):
        if noise > MOST_NOISE:
            found.append(f"noise of the {title} is {noise:.0%} of its range")
    return found


def _deviations(
    rows: Sequence[SpecimenQuality], measure: Callable[[SpecimenQuality], float]
) -> list[tuple[SpecimenQuality, float, float]]:
    """Each row with its robust deviation and the median."""
    values = np.array([measure(row) for row in rows])
    median = float(np.median(values))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(values - median)))
    spread = max(spread, LEAST_SPREAD * abs(median), 1e-6)
    deviations = (values - median) / spread
    return [(row, float(z), median) for row, z in zip(rows, deviations, strict=True)]


def mutual_information(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mutual information of two lists of intensities in [0, 1000], in nats."""
    scale = np.float32(BINS / SCALED_MAX)
    bins = [np.clip((values * scale).astype(np.int64), 0, BINS - 1) for values in (one, other)]
    counts = np.bincount(bins[0] * BINS + bins[1], minlength=BINS * BINS).reshape(BINS, BINS)
    joint = counts / counts.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Pearson correlation; 0 if either is constant."""
    first, second = (values - values.mean(dtype=np.float64) for values in (one, other))
    # Without BLAS, whose last digit depends on the number of threads.
    joint, ours, theirs = (
        float((a * b).sum()) for a, b in ((first, second), (first, first), (second, second))
    )
    size = math.sqrt(ours * theirs)
    return joint / size if size else 0.0


def jacobian_range(
    transform: Transform, foreground: NDArray[np.bool_], affine: NDArray[np.float64]
) -> tuple[float, float]:
    """Least and largest volume change at the nodes of the field that the foreground depends on.

    Args:
        transform: From the target's space to the source's.
        foreground: On the target's grid, shape (x, y, z).
        affine: Grid index to world millimetres, shape (4, 4).
    """
    change = transform.jacobian()
    if transform.field_affine is None:
        return float(change.min()), float(change.max())
    to_node = np.linalg.inv(transform.field_affine) @ affine
    last = np.array(change.shape) - 1
    near = np.zeros(change.shape, bool)
    for x, plane in enumerate(foreground):
        index = np.argwhere(plane)
        index = np.column_stack([np.full(len(index), x), index])
        node = np.floor(apply_affine(to_node, index)).astype(int)
        # All corners of the cell that holds the voxel.
        for corner in np.ndindex(2, 2, 2):
            near[tuple(np.clip(node + corner, 0, last).T)] = True
    return float(change[near].min()), float(change[near].max())
