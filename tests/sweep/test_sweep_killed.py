"""Whatever dies, a sweep goes on and ends as one that nothing happened to."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from lab import is_running, kill, until
from ray_cluster import loopback_cluster
from tiny_runs import losses, same, start, tensors
from tiny_sweeps import drive, offline_runs, outcomes, tiny_plan

from distsynth.runs.folder import LAST
from distsynth.sweep.folder import ENDED, SweepFolder
from distsynth.sweep.run import resume_sweep, start_sweep
from distsynth.sweep.trial import run_config
from distsynth.training.loop import train

pytestmark = pytest.mark.slow

EPOCHS = 8
RUN = {"train.epochs": EPOCHS, "train.checkpoint_every": 2}


@pytest.fixture(scope="module")
def cluster():
    with loopback_cluster(2, RAY_worker_niceness="0") as cluster:
        yield cluster.address


def killed_sweep(folder, plan, cluster, moment, tmp_path):
    """Start a sweep and kill its driver once something has come to be.

    Returns:
        The records as the driver left them.
    """
    environment = {"OMP_NUM_THREADS": "1"}
    process = start(
        drive, folder.url, plan.to_json(), cluster, environment=environment, log=tmp_path / "log"
    )
    try:
        until(moment, process, seconds=120, pause=0.01)
        assert process.is_alive(), (tmp_path / "log").read_text()
    except TimeoutError as error:
        error.add_note((tmp_path / "log").read_text())
        raise
    finally:
        kill(process.pid)
        process.join()
    return folder.records()


def status(folder, trial):
    file = Path(folder.url) / f"trials/{trial}.json"
    try:
        return json.loads(file.read_text())["status"]
    except FileNotFoundError:
        return None


@pytest.fixture(scope="module")
def undisturbed(cluster, shard_folder, tmp_path_factory):
    """The sweep that nobody kills."""
    folder = SweepFolder(tmp_path_factory.mktemp("undisturbed") / "tiny")
    plan = tiny_plan(shard_folder, run=RUN, trials=4, seed=5)
    start_sweep(folder, plan, cluster)
    return folder


MOMENTS = {
    "before any trial runs": lambda folder: (Path(folder.url) / "sweep.json").exists(),
    "in the first epochs": lambda folder: (Path(folder.run_dir("00000")) / LAST).exists(),
    "in the last trial": lambda folder: (Path(folder.run_dir("00003")) / LAST).exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_sweep_whose_driver_is_killed_ends_as_if_it_never_was(
    cluster, shard_folder, undisturbed, tmp_path, moment
):
    folder = SweepFolder(tmp_path / "tiny")
    plan = tiny_plan(shard_folder, run=RUN, trials=4, seed=5)
    before = killed_sweep(folder, plan, cluster, lambda: MOMENTS[moment](folder), tmp_path)
    assert any(record.status not in ENDED for record in before.values()) or not before
    result = resume_sweep(folder, None, cluster)
    assert result.complete
    assert outcomes(result.records) == outcomes(undisturbed.records())
    for name, record in before.items():
        if record.status in ENDED:
            assert result.records[name] == record
    for file in ("leaderboard.csv", "leaderboard.json"):
        assert (Path(folder.url) / file).read_bytes() == (Path(undisturbed.url) / file).read_bytes()
    for name in result.records:
        run_dir, whole = Path(folder.run_dir(name)), Path(undisturbed.run_dir(name))
        assert same(tensors(run_dir), tensors(whole))
        assert losses(run_dir) == losses(whole)


def test_wandb_keeps_every_row_of_a_killed_and_resumed_trial(cluster, shard_folder, tmp_path):
    folder = SweepFolder(tmp_path / "tiny")
    run = RUN | {"tracking.mode": "offline", "train.epochs": 60}
    plan = tiny_plan(shard_folder, run=run, trials=1)

    def third_epoch():
        return any(row.get("epoch") == 3 for row in losses(Path(folder.run_dir("00000"))))

    killed_sweep(folder, plan, cluster, third_epoch, tmp_path)
    resume_sweep(folder, None, cluster)
    runs = offline_runs(folder, "00000")
    assert len(runs) == 2
    assert {run.id for run in runs} == {plan.trial_id("00000")}
    rows: dict[int, dict[str, float]] = {}
    for run in runs:
        for row in run.rows:
            rows.setdefault(row["_step"], {}).update(row)
    for row in losses(Path(folder.run_dir("00000"))):
        kept = {name: rows[row["step"]][name] for name in row if name != "step"}
        assert kept == {name: value for name, value in row.items() if name != "step"}


@pytest.mark.parametrize("kind", ["asha", "pbt", "optuna"])
def test_other_searches_go_on_after_their_driver_is_killed(cluster, shard_folder, tmp_path, kind):
    folder = SweepFolder(tmp_path / kind)
    more = {"search": "optuna"} if kind == "optuna" else {"scheduler": kind}
    trials = 2 if kind == "pbt" else 4
    plan = tiny_plan(shard_folder, kind, RUN, trials=trials, asha_reduction=2, **more)

    def going():
        if kind == "pbt":
            return len(list(Path(folder.run_dir("00000")).rglob("epoch-*.pt"))) == 3
        return status(folder, "00000") in ENDED or status(folder, "00001") in ENDED

    before = killed_sweep(folder, plan, cluster, going, tmp_path)
    assert any(record.status not in ENDED for record in before.values())
    result = resume_sweep(folder, None, cluster)
    assert result.complete
    assert len(result.records) == trials
    for name, record in before.items():
        after = result.records[name]
        if record.status in ENDED:
            assert after == record
        if kind != "pbt":
            assert after.point == record.point
            assert after.reports[: record.epochs] == record.reports
        else:
            assert after.epochs == EPOCHS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_goes_on_when_a_node_of_it_is_lost(shard_folder, tmp_path, workers):
    """The nodes have a core each: the ranks of a trial of two workers are on two of the three."""
    with loopback_cluster(0, 1, 1, 1, RAY_worker_niceness="0") as cluster:
        folder = SweepFolder(tmp_path / "lost")
        run = {"train.epochs": 40, "train.checkpoint_every": 2}
        plan = tiny_plan(shard_folder, "lost", run, trials=1, workers=workers)
        lost = []

        def lose():
            until(lambda: (Path(folder.run_dir("00000")) / LAST).exists(), seconds=120, pause=0.01)
            doomed = node_of_a_trial(cluster)
            cluster.remove_node(doomed, allow_graceful=False)
            lost.append(doomed)

        thread = threading.Thread(target=lose)
        thread.start()
        result = start_sweep(folder, plan, cluster.address)
        thread.join()
        assert len(lost) == 1
        (record,) = result.records.values()
        assert (record.status, record.epochs) == ("finished", 40)
        assert len(record.failures) == 1
    if workers == 1:
        train(run_config(plan, "00000", record.point), tmp_path / "alone")
        assert same(tensors(tmp_path / "alone"), tensors(Path(folder.run_dir("00000"))))


def node_of_a_trial(cluster):
    """A node whose processes train; with several ranks that of the other one, where it is apart."""
    found = []
    for candidate in cluster.list_all_nodes():
        raylet = candidate.all_processes["raylet"][0].process.pid
        for task in Path(f"/proc/{raylet}/task").iterdir():
            for child in (task / "children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if is_running(int(child)) and (b"Trainable" in command or b"_Worker" in command):
                    found.append((b"_Worker" in command, candidate))
    return max(found, key=lambda pair: pair[0])[1]
