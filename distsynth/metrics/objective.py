"""The score by which the best epoch of a run and the best trial of a sweep are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping

from distsynth.config import TrainConfig
from distsynth.errors import ConfigError

OBJECTIVES: dict[str, bool] = {"psnr": True, "ssim_2d": True, "ssim_global": True, "mse": False}
"""Stitched validation metrics that can be an objective, and whether higher is better."""
VALIDATION_METRICS = ("psnr", "ssim_2d", "ssim_global", "mse", "seam_index")
"""Stitched validation metrics, in the mask, that tables and panels show."""
SEAM_METRICS = (
    *("seam_index_outside", "seam_excess", "seam_excess_outside"),
    *("overlap_disagreement", "overlap_disagreement_outside", "checkerboard"),
)
"""More of them on what patches and strides leave, for panels alone."""
ADVERSARIAL_TERMS = ("bce", "generator", "discriminator", "adversarial", "lambda_bce")


def score(metrics: Mapping[str, float], config: TrainConfig) -> float:
    """One number for a validation, higher being better.

    The objective, its sign turned where lower is better, less `seam_penalty` for every unit that
    the seam index exceeds 1; an index below 1 is no seam and costs nothing. A volume without
    seams (one patch covers a slice) has no seam index and pays nothing.

    Args:
        metrics: Stitched validation metrics `val/<name>`, in the mask.
        config: The objective and the penalty.

    Returns:
        The score, in units of the objective; NaN if the epoch was not validated.
    """
    value = metrics.get(f"val/{config.objective}", math.nan)
    sign = 1.0 if OBJECTIVES[config.objective] else -1.0
    seam = metrics.get("val/seam_index", math.nan)
    # A missing seam index is no seam, and an infinite one costs nothing where nothing is charged.
    charged = config.seam_penalty and seam > 1
    return sign * value - (config.seam_penalty * (seam - 1) if charged else 0.0)


def check_objective(name: str) -> str:
    """The name, if it can be an objective.

    Raises:
        ConfigError: If not; says why for the adversarial losses.
    """
    plain = name.removeprefix("val/").removeprefix("train/")
    if plain in OBJECTIVES:
        return plain
    if plain in ADVERSARIAL_TERMS:
        raise ConfigError(
            f"objective must not be an adversarial loss, got {name}: it tells how well a generator "
            "fools the discriminator of its own trial at that moment, so that a weak discriminator "
            "makes it good, and it cannot be compared between trials or epochs. Choose one of "
            + ", ".join(OBJECTIVES)
        )
    raise ConfigError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name}")
