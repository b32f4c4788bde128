"""Whatever dies, a sweep goes on and ends as one that nothing happened to."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest
from killing import FileMoment, Stop, alongside
from lab import kill
from tiny_runs import losses, same, start, tensors
from tiny_sweeps import TRACKED, drive, offline_runs, outcomes, tiny_plan

from distsynth.runs.folder import LAST
from distsynth.sweep.folder import ENDED, SweepFolder
from distsynth.sweep.run import resume_sweep, start_sweep
from distsynth.sweep.trial import run_config
from distsynth.training.loop import train

pytestmark = pytest.mark.slow

RUN = {"train.epochs": 4, "train.checkpoint_every": 2}


def kill_driver(folder, plan, cluster, moment, tmp_path):
    """Start a sweep, or go on with it, and kill its driver at a moment.

    Returns:
        The records as the driver left them.
    """
    notes, log = tmp_path / f"notes-{len(list(tmp_path.iterdir()))}", tmp_path / "log"
    notes.mkdir()
    stop = Stop(moment, notes)
    environment = {"OMP_NUM_THREADS": "1"} | stop.environment
    driver = start(drive, folder.url, plan.to_json(), cluster, environment=environment, log=log)
    try:
        stop.wait(driver)
    except (AssertionError, TimeoutError) as error:
        error.add_note(log.read_text())
        raise
    finally:
        driver.kill()
        driver.join()
    return folder.records()


def of_trial(name, count):
    """When the driver writes a trial's record for the N-th time: it is listed, then reports."""
    return FileMoment(f"*/trials/{name}.json", "rename", count)


def test_a_sweep_whose_driver_is_killed_ends_as_if_it_never_was(
    cluster, shard_folder, finished, tmp_path
):
    """Before all trials are listed, in the first epochs, and in the last trial."""
    folder = SweepFolder(tmp_path / "tiny")
    plan = tiny_plan(shard_folder, run=TRACKED, trials=3, seed=2, concurrent=1)
    before = {}
    for moment in (of_trial("00001", 1), of_trial("00000", 3), of_trial("00002", 2)):
        reached = kill_driver(folder, plan, cluster, moment, tmp_path)
        assert any(record.status not in ENDED for record in reached.values())
        for name, record in before.items():
            assert record.status not in ENDED or reached[name] == record
        before = reached
    assert len(before) == 3
    assert any(record.status in ENDED for record in before.values())
    result = resume_sweep(folder, None, cluster)
    assert result.complete
    assert outcomes(result.records) == outcomes(finished.result.records)
    for name, record in before.items():
        if record.status in ENDED:
            assert result.records[name] == record
    for file in ("leaderboard.csv", "leaderboard.json"):
        whole = Path(finished.folder.url) / file
        assert (Path(folder.url) / file).read_bytes() == whole.read_bytes()
    for name in result.records:
        run_dir, whole = Path(folder.run_dir(name)), Path(finished.folder.run_dir(name))
        assert same(tensors(run_dir), tensors(whole))
        assert losses(run_dir) == losses(whole)
    for name in result.records:
        assert_wandb_has_every_row(folder, name)


def assert_wandb_has_every_row(folder, name):
    """In W&B's one file of a trial, however often it was started."""
    (run,) = offline_runs(folder, name)
    assert run.id == folder.plan().trial_id(name)
    rows: dict[int, dict[str, float]] = {}
    for row in run.rows:
        rows.setdefault(row["_step"], {}).update(row)
    for row in losses(Path(folder.run_dir(name))):
        kept = {key: rows[row["step"]][key] for key in row if key != "step"}
        assert kept == {key: value for key, value in row.items() if key != "step"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        # With two at a time, the third one starts when one of them has ended.
        ("asha", of_trial("00002", 2)),
        ("optuna", of_trial("00002", 1)),
        ("pbt", of_trial("00000", 4)),
    ],
)
def test_other_searches_go_on_after_their_driver_is_killed(
    cluster, shard_folder, tmp_path, kind, moment
):
    folder = SweepFolder(tmp_path / kind)
    more = {"search": "optuna"} if kind == "optuna" else {"scheduler": kind}
    trials = 2 if kind == "pbt" else 4
    plan = tiny_plan(shard_folder, kind, RUN, trials=trials, asha_reduction=2, concurrent=2, **more)
    before = kill_driver(folder, plan, cluster, moment, tmp_path)
    assert any(record.status not in ENDED for record in before.values())
    assert kind == "pbt" or any(record.status in ENDED for record in before.values())
    result = resume_sweep(folder, None, cluster)
    assert result.complete
    assert len(result.records) == trials
    for name, record in before.items():
        after = result.records[name]
        if record.status in ENDED:
            assert after == record
        if kind != "pbt":
            assert after.hyperparameters == record.hyperparameters
            assert after.reports[: record.epochs] == record.reports
        else:
            assert after.epochs == RUN["train.epochs"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_goes_on_when_a_node_of_it_is_lost(nodes, cluster, shard_folder, tmp_path, workers):
    """The nodes have a core each: the ranks of a trial of two workers are on two of them."""
    folder = SweepFolder(tmp_path / "lost")
    plan = tiny_plan(shard_folder, "lost", RUN, trials=1, workers=workers)

    def lose() -> None:
        first = stop.wait_anywhere()
        doomed = node_of_a_trial(nodes, first, apart=workers == 2)
        its = nodes.processes(doomed)
        nodes.remove(doomed)
        for process in its:
            with contextlib.suppress(ProcessLookupError):
                kill(process)
        if workers == 2:
            os.kill(first, signal.SIGCONT)

    moment = FileMoment(f"*/runs/00000/{LAST}", "rename", count=4)
    try:
        with nodes.stopping(moment) as stop, alongside(lose):
            result = start_sweep(folder, plan, cluster)
    finally:
        nodes.add(1)
    (record,) = result.records.values()
    assert (record.status, record.epochs) == ("finished", RUN["train.epochs"])
    assert len(record.failures) == 1
    if workers == 1:
        train(run_config(plan, "00000", record.hyperparameters), tmp_path / "alone")
        assert same(tensors(tmp_path / "alone"), tensors(Path(folder.run_dir("00000"))))


def node_of_a_trial(nodes, first, apart):
    """The node of a trial's first rank or, apart from it, of another rank."""
    found = []
    for node in nodes.all():
        its = nodes.processes(node)
        names = [Path(f"/proc/{process}/cmdline").read_bytes() for process in its]
        # Those of a node itself are agents, and what waits for work is idle.
        at_work = any(b"ray::" in name and not re.search(b"Agent|IDLE", name) for name in names)
        if (at_work and first not in its) if apart else first in its:
            found.append(node)
    (node,) = found
    return node
