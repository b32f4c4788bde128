"""A sweep that cannot run is refused before Ray starts."""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray import tune
from ray_cluster import autoscaled
from tiny_sweeps import tiny_plan

from distsynth.errors import ConfigError
from distsynth.runs.folder import BEST, LAST
from distsynth.sweep.checks import check_resources, warn_of_short_trials
from distsynth.sweep.folder import EpochRecord, SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.run import _planned_trials, copy_run, extend_sweep, resume_sweep, start_sweep
from sharding.io.errors import DataError
from sharding.io.storage import Folder

NOWHERE = "127.0.0.1:1"
"""An address without a cluster: a sweep that gets there is refused for another reason."""


def test_what_so_few_steps_can_show_is_told(shard_folder, caplog):
    caplog.set_level(logging.WARNING, "distsynth")
    warn_of_short_trials(tiny_plan(shard_folder))
    (message,) = [record.message for record in caplog.records]
    assert "a trial takes 10 optimiser steps in 2 epochs" in message
    assert "--train.epochs 200 takes 1,000 steps" in message
    caplog.clear()
    warn_of_short_trials(tiny_plan(shard_folder, run={"train.epochs": 200}))
    warn_of_short_trials(tiny_plan(shard_folder, run={"train.minutes": 5.0}))
    assert not caplog.records


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ({"search": "grid", "trials": 9}, "the grid has 3 combinations, and a grid search tries"),
        ({"search": "grid", "trials": 3}, ""),
        (
            {"search": "optuna", "trials": 9},
            "only 3 different sets of hyperparameters for 9",
        ),
        ({"search": "optuna", "trials": 2}, ""),
        ({"search": "random", "trials": 9}, "only 3 of 9 trials are run: the others would have"),
    ],
)
def test_fewer_trials_than_asked_for_are_told(sweep, told, shard_folder, caplog):
    caplog.set_level(logging.INFO, "distsynth")
    space = {"loss.lambda_gradient": tune.choice([0.0, 0.5, 1.0])}
    plan = tiny_plan(shard_folder, space=space, **sweep)
    planned = _planned_trials(plan, space, {})
    assert len(planned) == (0 if sweep["search"] == "optuna" else 3)
    assert told in caplog.text
    assert bool(told) == bool(caplog.records)


@pytest.fixture
def no_ray(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", fail)


def gap(plan: SweepPlan, _: Path) -> SweepPlan:
    """A trim that leaves gaps at the stride of the shards."""
    stitch = replace(plan.base.stitch, trim=5, stride=4)
    return replace(plan, base=replace(plan.base, stitch=stitch))


def misspelt(plan: SweepPlan, shards: Path) -> SweepPlan:
    """A cohort that is not there."""
    return replace(plan, sweep=replace(plan.sweep, cohort=str(shards / "cohrt.csv")))


def lost(plan: SweepPlan, shards: Path) -> SweepPlan:
    """A shard is gone."""
    min(shards.rglob("*.tar")).unlink()
    return plan


IMPOSSIBLE = [
    pytest.param(gap, ConfigError, r"stitch\.trim=5 leaves voxels of .* stride of 8", id="trim"),
    pytest.param(misspelt, DataError, r"cohrt\.csv", id="cohort"),
    pytest.param(lost, DataError, "1 of its shards are missing, the first is .*tar", id="shards"),
]


@pytest.fixture
def shards(shard_folder, tmp_path):
    return Path(shutil.copytree(shard_folder, tmp_path / "shards"))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("broken", "error", "message"), IMPOSSIBLE)
def test_a_sweep_that_cannot_run_is_refused(shards, tmp_path, broken, error, message):
    folder = SweepFolder(tmp_path / "sweep")
    plan = broken(tiny_plan(shards, trials=1), shards)
    with pytest.raises(error, match=message):
        start_sweep(folder, plan, NOWHERE)
    assert not Path(folder.url).exists()


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("broken", "error", "message"), IMPOSSIBLE)
def test_so_is_what_goes_on_with_it(shards, tmp_path, broken, error, message):
    old, new = SweepFolder(tmp_path / "old"), SweepFolder(tmp_path / "new")
    plan = broken(tiny_plan(shards, trials=1), shards)
    old.write_plan(plan)
    hyperparameters = {
        "optim.lr_generator": 0.01,
        "loss.lambda_bce": 0.1,
        "loss.lambda_gradient": 0.1,
    }
    old.write_record(
        TrialRecord("00000", hyperparameters, "finished", (EpochRecord(1, 5, {}, 1.0, 1.0),))
    )
    with pytest.raises(error, match=message):
        resume_sweep(old, None, NOWHERE)
    with pytest.raises(error, match=message):
        extend_sweep(old, new, 1, None, NOWHERE)
    assert not Path(new.url).exists()
    assert old.plan() == plan


def test_windowed_ssim_is_checked_as_any_of_the_objectives(shards, monkeypatch, tmp_path):
    monkeypatch.setattr("distsynth.training.setup.SSIM_WINDOW", 1000)
    sweep = SweepConfig(trials=1, search="optuna", objective=("psnr", "ssim_2d"))
    plan = replace(tiny_plan(shards, trials=1), sweep=sweep)
    with pytest.raises(ConfigError, match=r"ssim_2d needs validation slices"):
        start_sweep(SweepFolder(tmp_path / "sweep"), plan, NOWHERE)


@pytest.mark.parametrize(
    ("asked", "lack"),
    [
        (
            {"gpus": 1.0},
            r"sweep\.gpus must fit a cluster .* needs 1 CPU, 1 GPU, it has 4 CPU, 0 GPU",
        ),
        ({"workers": 6}, r"sweep\.cpus must fit .* sweep\.workers=6 needs 6 CPU, it has 4 CPU"),
        ({"cpus": 2}, r"needs 2 CPU, it has 4 CPU, spread over nodes that each have too few"),
    ],
)
def test_what_a_cluster_can_never_run_is_refused(cluster, shards, tmp_path, asked, lack):
    plan = tiny_plan(shards, trials=1)
    plan = replace(plan, sweep=replace(plan.sweep, **asked))
    folder = SweepFolder(tmp_path / "sweep")
    with pytest.raises(ConfigError, match=lack + ".*; ask for less, or add nodes"):
        start_sweep(folder, plan, cluster)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("kinds", "waits"), [({"node_f3a5": 1}, False), ({"head": 1, "gpu-worker": 0}, True)]
)
def test_a_cluster_that_grows_is_waited_for(cluster, shards, caplog, kinds, waits):
    caplog.set_level(logging.INFO)
    plan = tiny_plan(shards, trials=1)
    plan = replace(plan, sweep=replace(plan.sweep, gpus=1.0))
    ray.init(cluster, log_to_driver=False)
    refused = pytest.raises(ConfigError, match=r"sweep\.gpus must fit")
    with autoscaled(kinds), contextlib.nullcontext() if waits else refused:
        check_resources(plan, local=False)
    said = "a trial needs 1 CPU, 1 GPU, the cluster has 4 CPU, 0 GPU now: trials wait"
    assert (said in caplog.text) == waits


def test_a_run_is_copied_with_its_pictures_and_without_files_of_wandb(tmp_path):
    old, new = SweepFolder(tmp_path / "old"), SweepFolder(tmp_path / "new")
    kept = ["config.json", "metrics.jsonl", "samples/samples-0000005.png"]
    kept += [LAST.as_posix(), BEST.as_posix()]
    other = ["run_id", "wandb/offline-run-1/run-1.wandb", "samples/.samples-0000010.png.partial"]
    for name in (*kept, *other):
        Folder(old.run_dir("00000")).write(name, name)
    copy_run(old, new, "00000")
    copied = Folder(new.run_dir("00000"))
    assert {name: copied.read(name).decode() for name in copied.names()} == {n: n for n in kept}
