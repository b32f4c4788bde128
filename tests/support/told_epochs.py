"""Runs told epoch by epoch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiny_runs import ADVERSARIAL, BATCH_NORM

from distsynth.config import RunConfig
from distsynth.training.loop import epochs
from distsynth.training.report import EpochReport

FULL = ADVERSARIAL | BATCH_NORM

KINDS: dict[str, dict[str, Any]] = {"supervised": {}, "adversarial": FULL}

THREE: dict[str, Any] = {"train.epochs": 3, "train.log_every": 5}
"""Rows end with their epochs, so that a fork loses none of the sums that make them."""


def some_epochs(config: RunConfig, run_dir: Path, count: int) -> list[EpochReport]:
    """Train until so many new epochs are done, and end the run there."""
    reports = []
    with contextlib.closing(epochs(config, run_dir, resume=True)) as run:
        for report in run:
            reports.append(report)
            if sum(not each.past for each in reports) == count:
                break
    return reports


def plain(reports: Iterable[EpochReport]) -> list[dict[str, Any]]:
    """Comparable: NaN, which is not equal to itself, as None."""
    return [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in report.to_record().items()
        }
        for report in reports
    ]
