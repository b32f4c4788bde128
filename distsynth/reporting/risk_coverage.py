"""Risk-coverage curves of evaluated ensembles: a picture and a table of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from distsynth.metrics.risk_coverage import RiskCoverage
from sharding.io.tables import rows_csv

Curves = Mapping[str, Mapping[str, RiskCoverage]]
"""Method -> specimen -> curve."""
CSV = "risk_coverage.csv"
CAPTION = (
    "{method}: mean absolute error of the voxels that are kept, the most certain first, mean over "
    "{count} specimens, beside a ranking by the true error (oracle) and by chance. An uncertainty "
    "is the more useful the lower its curve lies towards the left."
)


def risk_coverage_figure(curves: Mapping[str, RiskCoverage]) -> Figure:
    """The mean curve of a method over its specimens, each of which is drawn thinly.

    Args:
        curves: Specimen -> curve; at least one.
    """
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    panel = figure.subplots()
    found = list(curves.values())
    coverage = found[0].coverage
    if len(found) > 1:
        for each in found:
            panel.plot(coverage, each.risk, color="#1f77b4", linewidth=0.5, alpha=0.4)
    panel.plot(coverage, np.mean([each.risk for each in found], axis=0), label="uncertainty")
    panel.plot(coverage, np.mean([each.oracle for each in found], axis=0), label="oracle")
    chance = float(np.mean([each.random_area for each in found]))
    panel.axhline(chance, color="#666666", linestyle="--", label="chance")
    panel.set(xlabel="share of voxels kept", ylabel="mean absolute error", xlim=(0, 1))
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)
    return figure


def risk_coverage_caption(method: str, curves: Mapping[str, RiskCoverage]) -> str:
    """The words beneath the figure of a method."""
    return CAPTION.format(method=method, count=len(curves))


def risk_coverage_csv(curves: Curves) -> str:
    """Every point: method, specimen, coverage, risk, oracle."""
    rows = [
        {
            "method": method,
            "specimen": specimen,
            "coverage": float(coverage),
            "risk": float(risk),
            "oracle": float(oracle),
        }
        for method, by_specimen in curves.items()
        for specimen, curve in by_specimen.items()
        for coverage, risk, oracle in zip(curve.coverage, curve.risk, curve.oracle, strict=True)
    ]
    return rows_csv(rows)
