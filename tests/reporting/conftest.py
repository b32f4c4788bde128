"""A sweep whose leaderboard is logged offline."""

from __future__ import annotations

import pytest
from dashboards import OFFLINE
from tiny_sweeps import tiny_plan

from distsynth.reporting.dashboard import BEST
from distsynth.sweep.finalists import log_sweep
from distsynth.sweep.folder import SweepFolder, TrialRecord, report_of


@pytest.fixture(scope="module")
def sweep(shard_folder, tmp_path_factory):
    """Folder of a sweep of two trials, its leaderboard logged offline."""
    place = tmp_path_factory.mktemp("sweep")
    folder = SweepFolder(place / "tiny")
    plan = tiny_plan(shard_folder, run=OFFLINE, objective=("mse",))
    folder.write_plan(plan)
    for number, error in enumerate((0.5, 0.25)):
        metrics = {f"val/{name.rpartition('/')[2]}": error for name in BEST if "score" not in name}
        values = {"epoch": 1, "step": 5, "metrics": metrics, "score": -error, "best_score": -error}
        hyperparameters = dict.fromkeys(plan.space, 0.1)
        folder.write_record(
            TrialRecord(f"{number:05}", hyperparameters, "finished", (report_of(values),))
        )
    log_sweep(folder, plan)
    return folder
