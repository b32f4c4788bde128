"""How an uncertainty ranks the true error: the risk-coverage curve and its area.

Voxels are kept from the most certain one on. The coverage is the share that is kept, the risk the
mean absolute error of these. An uncertainty that ranks voxels as their errors do has the lowest
curve, the oracle's. One that tells nothing has, on average, the mean error at every coverage:
chance. The area (AURC, Geifman and El-Yaniv, 2019) is the mean risk over all coverages, in units of
the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from distsynth.metrics.views import View
from sharding.volumes.slabs import slabs

POINTS = 101
"""Coverages at which a curve is kept: 0, where it is the risk of the most certain voxel, to 1."""
EXACT = 2**23
"""Voxels up to which each is ranked by itself; of more, those whose uncertainties (or, for the
oracle, whose errors) agree to one part in LEVELS count as equal, so that memory is bounded."""
LEVELS = 2**13
MANTISSA = 2**23
"""Steps of a float32 between two powers of two."""


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The curve of one prediction.

    Attributes:
        coverage: Shares of the voxels, rising from 0 to 1, shape (POINTS,).
        risk: Mean absolute error of so many voxels, the most certain ones.
        oracle: The same, of the voxels with the smallest errors.
        area: Mean of the risk over all coverages.
        oracle_area: The same of the oracle.
        random_area: The same of an uncertainty that tells nothing: the mean absolute error.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    oracle: NDArray[np.float64]
    area: float
    oracle_area: float
    random_area: float

    @property
    def metrics(self) -> dict[str, float]:
        """Key of METRICS -> value."""
        room = self.random_area - self.oracle_area
        relative = (self.area - self.oracle_area) / room if room > 0 else math.nan
        return {
            "aurc": self.area,
            "aurc_oracle": self.oracle_area,
            "aurc_random": self.random_area,
            "aurc_relative": relative,
        }


def risk_coverage(
    error: View, uncertainty: NDArray[np.float32], mask: NDArray[np.bool_]
) -> RiskCoverage:
    """The curve of an uncertainty within a mask.

    Voxels of equal uncertainty count with the mean of their errors, in whatever order they come.

    Args:
        error: Of the prediction, shape (x, y, z); its sign does not matter.
        uncertainty: Same shape, >= 0 in any unit.
        mask: The voxels that count; at least one.

    Raises:
        ValueError: If no voxel is in the mask.
    """
    if not (count := int(np.count_nonzero(mask))):
        raise ValueError("the mask must hold at least one voxel")
    found = _ranked if count <= EXACT else _in_levels
    risk, oracle, random_area = found(error, uncertainty, mask)
    coverage = np.linspace(0, 1, POINTS)
    places = np.maximum(np.ceil(coverage * count).astype(int), 1)
    return RiskCoverage(
        coverage,
        risk.at(places),
        oracle.at(places),
        risk.area(),
        oracle.area(),
        random_area,
    )


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Groups of voxels in order, of which each voxel counts with its group's mean error."""

    sizes: NDArray[np.int64]
    sums: NDArray[np.float64]

    def at(self, places: NDArray[np.int_]) -> NDArray[np.float64]:
        """The mean error of the first so many voxels."""
        ends, totals = np.cumsum(self.sizes), np.cumsum(self.sums)
        group = np.searchsorted(ends, places)  # never an empty one
        before = places - (ends[group] - self.sizes[group])
        means = self.sums[group] / self.sizes[group]
        return (totals[group] - self.sums[group] + before * means) / places

    def area(self) -> float:
        """The mean of `at` over all numbers of voxels.

        Within a group of n voxels of the mean m, after N voxels that sum to S, it is
        m + (S - m N) / (N + j) at the j-th, whose sum is one of harmonic numbers.
        """
        kept = self.sizes > 0
        sizes, sums = self.sizes[kept], self.sums[kept]
        ends, totals = np.cumsum(sizes), np.cumsum(sums)
        begun, means = ends - sizes, sums / sizes
        harmonic = np.where(sizes == 1, 1 / ends, digamma(ends + 1.0) - digamma(begun + 1.0))
        found = sizes * means + (totals - sums - means * begun) * harmonic
        return float(found.sum() / ends[-1])


_Found = tuple[_Ranking, _Ranking, float]


def _ranked(error: View, uncertainty: NDArray[np.float32], mask: NDArray[np.bool_]) -> _Found:
    """The rankings by uncertainty and by error, and the mean error."""
    parts = [(np.abs(error[s][mask[s]]), uncertainty[s][mask[s]]) for s in slabs(mask.shape)]
    errors = np.concatenate([part for part, _ in parts]).astype(np.float64)
    _, group, sizes = np.unique(
        np.concatenate([part for _, part in parts]), return_inverse=True, return_counts=True
    )
    by_error = np.sort(errors)
    return (
        _Ranking(sizes, np.bincount(group, weights=errors).astype(np.float64)),
        _Ranking(np.ones(len(errors), np.int64), by_error),
        float(errors.mean()),
    )


def _in_levels(error: View, uncertainty: NDArray[np.float32], mask: NDArray[np.bool_]) -> _Found:
    """The same, of levels of either, slab by slab."""
    risk, oracle = (_Ranking(*_no_levels()) for _ in range(2))
    for slab in slabs(mask.shape):
        errors = np.abs(error[slab][mask[slab]])
        for ranking, by in ((risk, uncertainty[slab][mask[slab]]), (oracle, errors)):
            level = _level(by)
            ranking.sizes[:] += np.bincount(level, minlength=len(ranking.sizes))
            ranking.sums[:] += np.bincount(level, errors, len(ranking.sums))
    mean = float(oracle.sums.sum() / oracle.sizes.sum())
    return risk, oracle, mean


def _no_levels() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    count = int(_level(np.array([np.inf], np.float32))[0]) + 1
    return np.zeros(count, np.int64), np.zeros(count)


def _level(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The level of values >= 0: their bits as an integer rise with them."""
    return values.astype(np.float32).view(np.int32) // (MANTISSA // LEVELS)
