"""What an evaluation says, in a sentence: better than the baselines, no better, or too few to tell.

A model is compared with each baseline specimen by specimen, in PSNR within the mask. It counts as
better where the 95 % bootstrap interval of the mean difference lies above 0, as worse where it lies
below, and as no better otherwise. With fewer than six specimens no paired test can reach p < 0.05
(statistics.smallest_p), which the sentence then says; of a single one nothing can be said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distsynth.metrics.results import format_value
from distsynth.metrics.statistics import Difference, Results, differences_between, smallest_p

VERDICT_METRIC = "psnr_mask"
SECOND_METRIC = "ssim_mask"
UNITS = {VERDICT_METRIC: " dB", SECOND_METRIC: ""}
NAMES = {VERDICT_METRIC: "PSNR", SECOND_METRIC: "SSIM"}
SIGNIFICANT = 0.05


def verdicts(results: Results, models: Sequence[str]) -> list[str]:
    """A sentence for each model about the baselines.

    Args:
        results: Method -> specimen -> key of METRICS -> value.
        models: The methods that are models; all others are baselines.
    """
    baselines = [method for method in results if method not in models]
    return [verdict(results, model, baselines) for model in models]


def verdict(results: Results, model: str, baselines: Sequence[str]) -> str:
    """What the values of a model beside those of the baselines mean, in a sentence or two.

    Raises:
        ValueError: If a method is unknown or was evaluated on other specimens.
    """
    if not baselines:
        return f"{model} was evaluated without a baseline: nothing can be said of its worth."
    pairs = [(model, baseline, VERDICT_METRIC) for baseline in baselines]
    found = [row for row in differences_between(results, pairs) if math.isfinite(row.mean)]
    if not found:
        return f"{model} cannot be compared: its PSNR or the baselines' is not finite."
    # A baseline that is not clearly worse than the model comes before those that are.
    nearest = min(found, key=lambda row: (row.low > 0, row.mean))
    count = len(nearest.specimens)
    if count == 1:
        return (
            "Too few specimens to tell: on a single one "
            f"{model} differs from {nearest.reference} by {_signed(nearest)}."
        )
    words = _words(model, nearest, len(baselines))
    few = smallest_p(count) >= SIGNIFICANT
    after = f" With {count} specimens no test can be significant: evaluate more." if few else ""
    return f"{words} ({_numbers(nearest)}).{_in_ssim(results, nearest)}{after}"


def _words(model: str, nearest: Difference, baselines: int) -> str:
    """The finding about the baseline that comes nearest to the model, or exceeds it most."""
    every = f"every baseline, {nearest.reference} the nearest" if baselines > 1 else ""
    if nearest.low > 0:
        return f"{model} is better than {every or nearest.reference}"
    if nearest.high < 0:
        return f"{model} is worse than {nearest.reference}"
    return f"{model} is no better than {nearest.reference}"


def _numbers(row: Difference) -> str:
    low, high = (format_value(row.metric, value) for value in (row.low, row.high))
    shown = f"paired over {len(row.specimens)} specimens, {_signed(row)}, interval {low} to {high}"
    return shown if math.isnan(row.p) else f"{shown}, p {row.p:.2g}"


def _signed(row: Difference) -> str:
    sign = "-" if row.mean < 0 else "+"
    return f"{sign}{format_value(row.metric, abs(row.mean))}{UNITS[row.metric]}"


def _in_ssim(results: Results, nearest: Difference) -> str:
    """A sentence if the structural similarity says otherwise than the PSNR."""
    pair = (nearest.method, nearest.reference, SECOND_METRIC)
    row = differences_between(results, [pair])[0]
    if not math.isfinite(row.mean):
        return ""
    worse, better = row.high < 0, row.low > 0
    agrees = better if nearest.low > 0 else worse if nearest.high < 0 else not (worse or better)
    if agrees:
        return ""
    what = "lower" if worse else "higher" if better else "no different"
    title = NAMES[SECOND_METRIC]
    return f" Its {title} is {what} ({_numbers(row)})."
