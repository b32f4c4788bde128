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

POINTS = 101
"""Coverages at which a curve is kept: 0, where it is the risk of the most certain voxel, to 1."""


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
    error: NDArray[np.float32], uncertainty: NDArray[np.float32], mask: NDArray[np.bool_]
) -> RiskCoverage:
    """The curve of an uncertainty within a mask.

    Voxels of equal uncertainty count with the mean of their errors, in whatever order they come.

    Args:
        error: Of the prediction, shape (x, y, z); its sign does not matter.
        uncertainty: Same shape, in any unit.
        mask: The voxels that count; at least one.

    Raises:
        ValueError: If no voxel is in the mask.
    """
    errors = np.abs(error[mask]).astype(np.float64)
    if not errors.size:
        raise ValueError("the mask must hold at least one voxel")
    _, group, sizes = np.unique(uncertainty[mask], return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=errors) / sizes
    # The groups come in the order of their uncertainty.
    risk = _running_mean(np.repeat(means, sizes))
    oracle = _running_mean(np.sort(errors))
    coverage = np.linspace(0, 1, POINTS)
    places = np.maximum(np.ceil(coverage * errors.size).astype(int), 1) - 1
    return RiskCoverage(
        coverage,
        risk[places],
        oracle[places],
        float(risk.mean()),
        float(oracle.mean()),
        float(errors.mean()),
    )


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.cumsum(values) / np.arange(1, len(values) + 1)
