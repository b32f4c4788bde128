"""The report of a run after each epoch, and its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = ("epoch", "step", "metrics", "score", "best_score")
"""Fields of an EpochReport that a checkpoint keeps."""


@dataclass(frozen=True)
class EpochReport:
    """The state of a run after an epoch.

    Attributes:
        epoch: Number of completed epochs.
        step: Optimizer steps taken in the run.
        metrics: Stitched validation metrics, empty in an epoch without validation.
        score: The score that selects the best epoch, higher is better; NaN without validation.
        best_score: The best score of this epoch and all before it.
        checkpoint: The checkpoint just written; for a past epoch, the run's last one.
        past: Whether the epoch was completed before the run was resumed.
    """

    epoch: int
    step: int
    metrics: dict[str, float]
    score: float
    best_score: float
    checkpoint: Path
    past: bool = False

    def to_record(self) -> dict[str, Any]:
        """Plain values, without anything that depends on where the run's folder is."""
        return {name: getattr(self, name) for name in RECORDED}


def fruitless(reports: Sequence[EpochReport]) -> int:
    """How many validations there were since the one with the best score."""
    scores = [report.score for report in reports if report.metrics]
    known = [score for score in scores if not math.isnan(score)]
    return len(scores) - 1 - scores.index(max(known)) if known else len(scores)


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        run_dir: Its folder.
        best: Checkpoint of the epoch with the best validation score.
        last: Checkpoint of the last epoch.
        best_score: Score of the best epoch, see distsynth.metrics.objective; by default its
            stitched PSNR in the mask, in dB, with the target's own range as peak.
    """

    run_dir: str | Path
    best: str | Path
    last: str | Path
    best_score: float
