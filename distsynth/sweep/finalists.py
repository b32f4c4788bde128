"""The end of a sweep: the best trials are exported, evaluated once on the test split, logged."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distsynth.evaluation.evaluate import evaluate
from distsynth.inference.predictor import load_predictor
from distsynth.metrics.results import RESULTS_FILE
from distsynth.reporting.evaluation_files import write_evaluation
from distsynth.runs.folder import BEST, CONFIG_FILE, METRICS_FILE
from distsynth.runs.tracking import log_table
from distsynth.sweep.folder import SweepFolder, TrialRecord, searched
from distsynth.sweep.leaderboard import leaderboard_rows, rank_trials
from distsynth.sweep.plan import SweepPlan
from distsynth.sweep.trial import FINAL
from sharding.io.storage import Folder
from sharding.volumes.cohort import read_cohort

logger = logging.getLogger(__name__)

BEST_FOLDER, EVALUATION_FOLDER = "best", "evaluation"
EXPORTED = (CONFIG_FILE, METRICS_FILE, BEST.as_posix())


@dataclass(frozen=True)
class ExportedTrial:
    """A trial that was taken out of a sweep.

    Attributes:
        name: RANK-TRIAL, the name of its folder; a preset that was tried too is `preset-NAME`.
        folder: A run's folder, which `distsynth predict` and `distsynth evaluate` take.
    """

    name: str
    folder: str


def finalists(plan: SweepPlan, records: Mapping[str, TrialRecord]) -> dict[str, str]:
    """Which trials are exported and evaluated: the best trials, and the presets that were tried.

    The presets are what the search has to beat.

    Returns:
        Name of the export to name of the trial.
    """
    ranked = [row for row in rank_trials(plan, searched(records)) if row.rank is not None]
    best, others = ranked[: plan.sweep.top], ranked[plan.sweep.top :]
    found = {f"{row.rank}-{row.trial.name}": row.trial.name for row in best}
    return found | {
        f"preset-{row.trial.preset}": row.trial.name for row in others if row.trial.preset
    }


def export_best(folder: SweepFolder, plan: SweepPlan) -> list[ExportedTrial]:
    """Copy the finalists, retrained if the plan says so, to best/.

    Returns:
        The exported trials, the best first.
    """
    found = []
    for name, trial in finalists(plan, folder.records()).items():
        run = f"{FINAL}{trial}" if plan.sweep.final == "retrained" else trial
        source = Folder(folder.run_dir(run))
        target = Folder(folder.folder / f"{BEST_FOLDER}/{name}")
        for file in EXPORTED:
            target.write(file, source.read(file))
        found.append(ExportedTrial(name, target.url))
    return found


def evaluate_finalists(
    folder: SweepFolder, plan: SweepPlan, exported: list[ExportedTrial]
) -> str | None:
    """Evaluate what was exported on the test split, unless that was done before.

    No trial has seen the test split, and it is used once: a search that could look at it again
    and again would fit it.

    Returns:
        The table as text; None if the sweep has no cohort.
    """
    results = f"{EVALUATION_FOLDER}/table.txt"
    if folder.folder.exists(results):
        logger.info("the test split was evaluated before; its table is kept")
        return folder.folder.read(results).decode()
    if plan.sweep.cohort is None:
        return None
    predictors = {best.name: load_predictor(best.folder) for best in exported}
    specimens = read_cohort(Path(plan.sweep.cohort))
    with tempfile.TemporaryDirectory(prefix="distsynth-") as scratch:
        work = Path(scratch)
        run_dirs = {best.name: work / "runs" / best.name for best in exported}
        for best in exported:
            path = run_dirs[best.name] / METRICS_FILE
            path.parent.mkdir(parents=True)
            path.write_bytes(Folder(best.folder).read(METRICS_FILE))
        evaluation = evaluate(predictors, specimens, "test")
        text = write_evaluation(work / "out", evaluation, predictors, run_dirs)
        files = [path for path in (work / "out").rglob("*") if path.is_file()]
        # The text comes last: it marks that the rest is complete.
        for path in sorted(files, key=lambda path: (path.name == "table.txt", path)):
            name = path.relative_to(work / "out").as_posix()
            folder.folder.write(f"{EVALUATION_FOLDER}/{name}", path.read_bytes())
    assert folder.folder.exists(f"{EVALUATION_FOLDER}/{RESULTS_FILE}")
    return text


def log_sweep(folder: SweepFolder, plan: SweepPlan) -> None:
    """Log the leaderboard and the best trial as a W&B run of the sweep's group."""
    log_table(
        folder.folder,
        plan.base.tracking,
        plan.trial_id("leaderboard"),
        f"{plan.name}-leaderboard",
        plan.name,
        "leaderboard",
        leaderboard_rows(plan, rank_trials(plan, searched(folder.records()))),
    )
