"""What each metric of an evaluation is: its title with units or range, and which way is better."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric of evaluated volumes.

    Attributes:
        title: With units or range.
        best: "higher" or "lower", the value that is best, or None for a number that tells nothing
            of quality and is printed for comparison only.
    """

    title: str
    best: Literal["higher", "lower"] | float | None

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        if self.best is None:
            return "for comparison only"
        if isinstance(self.best, str):
            return f"{self.best} is better"
        return f"nearest {self.best:g} is best"

    def quality(self, value: float) -> float:
        """The value as a number that is higher for better ones; NaN for none."""
        if self.best is None:
            return math.nan
        if isinstance(self.best, str):
            return value if self.best == "higher" else -value
        return -abs(value - self.best)


_IMAGE = {
    "mse": Metric("MSE, {} (standardised units squared)", "lower"),
    "psnr255": Metric("PSNR, {} (dB, peak 255 as in eq. 7)", "higher"),
    "psnr": Metric("PSNR, {} (dB, peak = range of the target)", "higher"),
    "ssim_global": Metric("SSIM, {} (-1 to 1, global as in eq. 8, on [0, 1])", "higher"),
    "ssim_literal": Metric("SSIM, {} (eq. 8 as printed: a sum in its denominator)", None),
    "ssim": Metric("SSIM, {} (-1 to 1, windowed 3D, on [0, 1])", "higher"),
}


def _image(region: str, where: str) -> dict[str, Metric]:
    """Metrics of images in a region, under keys that end in it."""
    return {
        f"{key}_{region}": Metric(metric.title.format(where), metric.best)
        for key, metric in _IMAGE.items()
    }


METRICS: dict[str, Metric] = {
    **_image("mask", "mask"),
    "psnr_unlent": Metric(
        "PSNR, mask, nothing lent but the clip (dB, peak = range of the target)", "higher"
    ),
    **_image("whole", "whole volume"),
    "seam_index": Metric("Seam index, mask (jumps at borders over nearby ones, 1 = no seam)", 1.0),
    "seam_index_outside": Metric("Seam index, outside the mask (ratio, 1 = no seam)", 1.0),
    "seam_excess": Metric("Excess jump at borders, mask (standardised units, 0 = no seam)", 0.0),
    "seam_excess_outside": Metric(
        "Excess jump at borders, outside the mask (standardised units, 0 = no seam)", 0.0
    ),
    "seam_index_relative": Metric(
        "Seam index, mask, over that of the same planes of a whole-slice prediction (1 = none "
        "beyond it)",
        1.0,
    ),
    "overlap_disagreement": Metric(
        "Disagreement of overlapping windows about a voxel, mask (standard deviation, standardised "
        "units)",
        "lower",
    ),
    "overlap_disagreement_outside": Metric(
        "Disagreement of overlapping windows about a voxel, outside the mask (standard deviation, "
        "standardised units)",
        "lower",
    ),
    "checkerboard": Metric(
        "Checkerboard, mask (energy at periods 2 and 4 over nearby frequencies, 1 = none)", 1.0
    ),
    "consistency_error": Metric(
        "Consistency error (0 = agrees with source, 1 = unrelated)", "lower"
    ),
    "aurc": Metric(
        "Area under the risk-coverage curve, mask (mean absolute error of the most certain voxels "
        "over all their shares, standardised units)",
        "lower",
    ),
    "aurc_oracle": Metric(
        "The same area if voxels were ranked by their true error (standardised units)", None
    ),
    "aurc_random": Metric(
        "The same area if voxels were ranked by chance: the mean absolute error (standardised "
        "units)",
        None,
    ),
    "aurc_relative": Metric(
        "Where the area lies from the oracle's (0) to that of chance (1)", "lower"
    ),
}
"""Key -> metric, in the order of a table. Windowed means a Gaussian of 1.5 voxels; [0, 1] is the
scale of the target's 0.1 and 99.9 percentiles."""
