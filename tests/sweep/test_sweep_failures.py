"""Trials that diverge, are killed or cannot run, and what the sweep says of them."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from killing import FileMoment, alongside
from ray_cluster import autoscaled
from tiny_runs import losses, same, tensors, tiny_config
from tiny_sweeps import SPACE, tiny_plan

from distsynth.errors import ConfigError
from distsynth.runs.folder import LAST
from distsynth.sweep.folder import SweepFolder, TrialRecord
from distsynth.sweep.plan import SweepConfig
from distsynth.sweep.run import make_plan, resume_sweep, start_sweep
from distsynth.sweep.trial import run_config
from distsynth.training.loop import train
from sharding.io.errors import DataError
from sharding.io.interruption import Interrupted

pytestmark = pytest.mark.slow


def test_a_trial_that_diverges_is_listed_and_the_rest_goes_on(cluster, shard_folder, tmp_path):
    folder = SweepFolder(tmp_path / "diverging")
    grid = {"optim.lr_generator": {"grid_search": [1e30, 1e-3]}}
    run = {"loss.recon": "l2"}
    plan = tiny_plan(shard_folder, "diverging", run, grid, search="grid", concurrent=1)
    result = start_sweep(folder, plan, cluster)
    assert result.complete
    bad, good = result.records.values()
    assert (bad.status, good.status) == ("failed", "finished")
    assert "the run diverged" in bad.cause
    assert bad.failures == ()
    rows = json.loads((tmp_path / "diverging" / "leaderboard.json").read_text())["trials"]
    assert [(row["trial"], row["rank"]) for row in rows] == [("00001", 1), ("00000", None)]


@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_diverging_trial_ends_no_schedule(cluster, shard_folder, tmp_path, scheduler):
    folder = SweepFolder(tmp_path / "diverging")
    plan = tiny_plan(
        shard_folder,
        "diverging",
        # The first epoch has no validation, so no score.
        {"loss.recon": "l2", "train.epochs": 4, "train.validate_every": 2},
        {"optim.lr_generator": SPACE["optim.lr_generator"]},
        scheduler=scheduler,
        trials=3,
        pbt_quantile=0.5,
        pbt_resample=0.0,
        concurrent=3,
    )
    folder.write_plan(plan)
    for number, rate in enumerate([1e30, 1e-3, 2e-3]):
        folder.write_record(TrialRecord(f"{number:05d}", {"optim.lr_generator": rate}))
    result = resume_sweep(folder, None, cluster)
    assert result.complete
    bad, *good = result.records.values()
    assert all(record.status in ("finished", "stopped") for record in good)
    assert all(record.failures == () for record in good)
    if scheduler == "asha":
        assert bad.status == "failed" and "the run diverged" in bad.cause
        again = resume_sweep(folder, None, cluster, retry_failed=True)
        assert again.complete and again.records["00000"].status == "failed"
        return
    assert "the run diverged" in bad.failures[0]
    if bad.copies:
        assert (bad.status, bad.epochs) == ("finished", 4)
        assert bad.copies[0].trial in {"00001", "00002"}
        assert 1e-3 <= bad.hyperparameters["optim.lr_generator"] <= 3e-2
    else:
        # The others ended before it could take one over: it does not wait for nobody.
        assert bad.status == "failed" and "the run diverged" in bad.cause


def test_a_trial_whose_process_is_killed_goes_on_until_it_is_listed(
    nodes, cluster, shard_folder, tmp_path
):
    folder = SweepFolder(tmp_path / "killed")
    grid = {"optim.lr_generator": {"grid_search": [1e-2, 1e-3]}}
    run = {"train.epochs": 4, "train.checkpoint_every": 2}
    plan = tiny_plan(shard_folder, "killed", run, grid, search="grid", retries=1, concurrent=1)
    first = FileMoment(f"*/runs/00000/{LAST}", "rename", count=4)
    second = FileMoment(f"*/runs/00000/{LAST}", "rename", count=4)

    def kill_twice() -> None:
        process = one.wait_anywhere()
        with nodes.stopping(second) as other:
            os.kill(process, signal.SIGKILL)
            os.kill(other.wait_anywhere(), signal.SIGKILL)

    with nodes.stopping(first) as one, alongside(kill_twice):
        result = start_sweep(folder, plan, cluster)
    assert result.complete
    hit, other = result.records.values()
    assert other.status == "finished"
    assert len(hit.failures) == 2
    # Killed again in the epoch after that of the first time: it went on from where it was.
    assert hit.epochs == 2
    assert hit.status == "failed"
    assert "died" in hit.cause or "killed" in hit.cause
    again = resume_sweep(folder, None, cluster, retry_failed=True)
    assert [record.status for record in again.records.values()] == ["finished"] * 2
    hit = again.records["00000"]
    assert (hit.epochs, hit.cause) == (4, None)
    train(run_config(plan, "00000", hit.hyperparameters), tmp_path / "alone")
    assert same(tensors(tmp_path / "alone"), tensors(Path(folder.run_dir("00000"))))
    assert losses(tmp_path / "alone") == losses(Path(folder.run_dir("00000")))


def test_shards_of_another_split_are_refused(shard_folder, phantom_cohort, small_shards, tmp_path):
    from sharding.shards.write import write_shards
    from sharding.volumes.cohort import read_cohort

    other = replace(small_shards, fractions=(0.4, 0.4, 0.2))
    write_shards(read_cohort(phantom_cohort), tmp_path / "other", other, workers=1)
    space = {"data.shards": {"grid_search": [str(shard_folder), str(tmp_path / "other")]}}
    with pytest.raises(ConfigError, match="must hold the specimens and splits of"):
        make_plan("two", tiny_config(shard_folder), space, SweepConfig(search="grid"))


def test_waiting_for_what_the_cluster_lacks_is_told(
    cluster, shard_folder, tmp_path, monkeypatch, caplog
):
    from distsynth.sweep import callback

    monkeypatch.setattr(callback, "SECONDS_OF_WAITING", 1.0)
    folder = SweepFolder(tmp_path / "waiting")
    plan = tiny_plan(shard_folder, "waiting", trials=1, cpus=64)
    caplog.set_level(logging.INFO, "distsynth")

    def interrupt():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if "no trial has started" in caplog.text:
                break
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ray.init(cluster, log_to_driver=False)
    with autoscaled({"head": 1, "large-worker": 0}), pytest.raises(Interrupted):
        start_sweep(folder, plan, cluster)
    thread.join()
    text = caplog.text
    assert "a trial needs 64 CPU, and the cluster of 5 nodes has 4 CPU" in text
    assert "it lacks CPU: add nodes, or start again with fewer --cpus" in text


def test_a_log_says_now_and_then_where_the_running_trials_are(
    cluster, shard_folder, tmp_path, monkeypatch, caplog
):
    from distsynth.sweep import callback

    monkeypatch.setattr(callback, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO, "distsynth")
    ray.init(cluster, log_to_driver=False)
    start_sweep(SweepFolder(tmp_path / "told"), tiny_plan(shard_folder, "told", trials=1), cluster)
    assert "running: 00000 (0 of 2 epochs)" in caplog.text
    assert "running: 00000 (1 of 2 epochs)" in caplog.text


def test_a_sweep_that_cannot_be_found_is_named(tmp_path, refused):
    with refused(tmp_path / "nowhere", "no sweep here", "--storage"):
        resume_sweep(SweepFolder(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no sweep here"):
        SweepFolder(tmp_path / "nowhere").plan()
