"""Sweeps of runs that take a second; see tiny_runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from tiny_runs import ADVERSARIAL, tiny_config
from wandb_offline import OfflineRun, read_offline_run

from distsynth.sweep.folder import SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig, SweepPlan, plan_from_json
from distsynth.sweep.run import make_plan, resume_sweep, start_sweep
from tune_spaces.domains import zero_or_log

SPACE: dict[str, Any] = {
    "loss.lambda_bce": zero_or_log(0.01, 1),
    "loss.lambda_gradient": zero_or_log(0.01, 1),
    "optim.lr_generator": tune.loguniform(1e-3, 3e-2),
}


def tiny_plan(
    shards: Path,
    name: str = "tiny",
    run: dict[str, Any] | None = None,
    space: dict[str, Any] | None = None,
    **sweep: Any,
) -> SweepPlan:
    """A sweep over the weights and rate of an adversarial run of two epochs."""
    config = tiny_config(shards, ADVERSARIAL, run or {})
    return make_plan(name, config, SPACE if space is None else space, SweepConfig(**sweep))


def outcomes(records: dict[str, TrialRecord]) -> dict[str, Any]:
    """What a trial showed, without how it came to it."""
    return {name: (record.point, record.status, record.reports) for name, record in records.items()}


def offline_runs(folder: SweepFolder, trial: str) -> list[OfflineRun]:
    """W&B's offline files of a trial, one for each time that its process was started."""
    run_dir = Path(folder.run_dir(trial))
    return [read_offline_run(path) for path in sorted(run_dir.rglob("*.wandb"))]


def drive(url: str, plan: str, address: str) -> None:
    """The driver of a sweep, in a process of its own: starts it, or goes on with it."""
    folder = SweepFolder(url)
    if folder.exists():
        resume_sweep(folder, None, address)
    else:
        start_sweep(folder, plan_from_json(plan, "the test"), address)
