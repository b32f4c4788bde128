"""Sweeps of runs that take a second; see tiny_runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from tiny_runs import ADVERSARIAL, tiny_config
from wandb_offline import OfflineRun, read_offline_run

from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.folder import SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig, SweepPlan, plan_from_json
from distsynth.sweep.run import SweepResult, make_plan, resume_sweep, start_sweep
from tune_spaces.domains import zero_or_log

SPACE: dict[str, Any] = {
    "loss.lambda_bce": zero_or_log(0.01, 1),
    "loss.lambda_gradient": zero_or_log(0.01, 1),
    "optim.lr_generator": tune.loguniform(1e-3, 3e-2),
}

EPOCHS = 3
TRACKED: dict[str, Any] = {
    "tracking.mode": "offline",
    "tracking.samples": 2,
    "train.epochs": EPOCHS,
    "train.checkpoint_every": 2,
}
"""Runs that keep W&B's files, and leave a checkpoint every two of their five steps an epoch."""


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


@dataclass(frozen=True)
class FinishedSweep:
    """A sweep that ended.

    Attributes:
        folder: Its folder.
        plan: What was searched.
        result: What came of it.
    """

    folder: SweepFolder
    plan: SweepPlan
    result: SweepResult


def undisturbed_sweep(parent: Path, shards: Path, address: str) -> FinishedSweep:
    """Run three trials one after the other, and check that one process does so."""
    folder = SweepFolder(parent / "tiny")
    plan = tiny_plan(shards, run=TRACKED, trials=3, seed=2, concurrent=1)
    processes = set()
    on_trial_result = SweepCallback.on_trial_result

    def noted(callback: SweepCallback, *args: Any, result: dict[str, Any], **more: Any) -> None:
        processes.add(result["pid"])
        on_trial_result(callback, *args, result=result, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepCallback, "on_trial_result", noted)
        result = start_sweep(folder, plan, address)
    assert len(processes) == 1
    return FinishedSweep(folder, plan, result)


def outcomes(records: dict[str, TrialRecord]) -> dict[str, Any]:
    """What a trial showed, without how it came to it."""
    return {
        name: (record.hyperparameters, record.status, record.reports)
        for name, record in records.items()
    }


def offline_runs(folder: SweepFolder, trial: str) -> list[OfflineRun]:
    """W&B's offline files of a trial: one, unless it failed or was killed and has not gone on."""
    run_dir = Path(folder.run_dir(trial))
    return [read_offline_run(path) for path in sorted(run_dir.rglob("*.wandb"))]


def drive(url: str, plan: str, address: str) -> None:
    """The driver of a sweep, in a process of its own: starts it, or goes on with it."""
    folder = SweepFolder(url)
    if folder.exists():
        resume_sweep(folder, None, address)
    else:
        start_sweep(folder, plan_from_json(plan, "the test"), address)
