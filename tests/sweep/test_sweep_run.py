from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from killing import FileMoment, alongside
from lab import until
from tiny_runs import launch, losses, same, tensors
from tiny_runs import run as run_alone
from tiny_sweeps import EPOCHS, SPACE, TRACKED, offline_runs, outcomes, tiny_plan

from distsynth.config import with_overrides
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import BEST, LAST, sample_pictures
from distsynth.sweep.finalists import export_best, finalists, log_sweep
from distsynth.sweep.folder import SweepFolder, searched
from distsynth.sweep.run import extend_sweep, resume_sweep, run_final, start_sweep
from distsynth.sweep.trial import KEPT_EPOCHS, SweepTrial, run_config
from distsynth.training.loop import train

pytestmark = pytest.mark.slow


def test_a_process_trains_one_trial_after_the_other_as_fresh_ones_do(finished, tmp_path):
    folder, plan, result = finished.folder, finished.plan, finished.result
    assert result.complete
    assert result.records == folder.records()
    assert [record.status for record in result.records.values()] == ["finished"] * 3
    assert 0.0 in {record.hyperparameters["loss.lambda_bce"] for record in result.records.values()}
    for name, record in result.records.items():
        config = with_overrides(
            run_config(plan, name, record.hyperparameters), {"tracking.mode": "disabled"}
        )
        alone = tmp_path / name
        assert launch(run_alone, config, alone, log=tmp_path / f"{name}.log") == [0]
        assert load_checkpoint(alone / LAST).record["best_score"] == record.best.score
        assert same(tensors(alone), tensors(Path(folder.run_dir(name))))
        assert losses(alone) == losses(Path(folder.run_dir(name)))


def test_ranks_beside_the_first_do_without_tune():
    needed = "distsynth.sweep.folder, distsynth.sweep.ddp_workers, distsynth.training.loop"
    code = f"import sys, {needed}; sys.exit('ray.tune' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_leaderboard_ranks_and_tells_what_matters(finished):
    folder, result = finished.folder, finished.result
    content = json.loads((Path(folder.url) / "leaderboard.json").read_text())
    with (Path(folder.url) / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [record.best.score for record in result.records.values()]
    assert [float(row["score"]) for row in rows] == sorted(scores, reverse=True)
    assert [row["rank"] for row in content["trials"]] == [1, 2, 3]
    best = result.records[rows[0]["trial"]]
    assert float(rows[0]["psnr"]) == best.best.metrics["val/psnr"] == best.best.score
    assert {field: float(rows[0][field]) for field in SPACE} == best.hyperparameters


def test_every_trial_is_a_whole_run_of_wandb(finished):
    folder, plan, result = finished.folder, finished.plan, finished.result
    for name in result.records:
        (run,) = offline_runs(folder, name)
        assert (run.id, run.group, run.exit_code) == (plan.trial_id(name), "tiny", 0)
        assert_whole(run, folder, name, epochs=EPOCHS)


def assert_whole(run, folder, name, epochs):
    """Rows of losses, stitched metrics and sample patches, and nothing of this machine."""
    rows = [row for row in run.rows if "val/psnr" in row]
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert [row["_step"] for row in rows] == [5 * row["epoch"] for row in rows]
    told = {row["_step"]: row["train/recon"] for row in run.rows if "train/recon" in row}
    kept = {
        row["step"]: row["train/recon"]
        for row in losses(Path(folder.run_dir(name)))
        if "train/recon" in row
    }
    assert told == {step: value for step, value in kept.items() if step <= max(told)} != {}
    assert len([row for row in run.rows if "samples" in row]) == epochs
    assert run.host == ""
    assert str(Path(folder.url).parent).encode() not in run.content


def test_a_trial_leaves_the_drivers_wandb_service_alone(finished, monkeypatch):
    folder, result = finished.folder, finished.result
    monkeypatch.setenv("WANDB_SERVICE", "of the driver")
    SweepTrial(
        {"sweep": folder.url, "trial": {"hyperparameters": result.records["00000"].hyperparameters}}
    )
    assert "WANDB_SERVICE" not in os.environ


def test_the_table_and_the_best_trial_are_logged(finished):
    folder, plan = finished.folder, finished.plan
    log_sweep(folder, plan)
    log_sweep(folder, plan)  # in the place of the first
    (offline,) = (Path(folder.url) / "wandb").glob("offline-run-*")
    (file,) = offline.rglob("*.wandb")
    from wandb_offline import read_offline_run

    run = read_offline_run(file)
    assert (run.id, run.group, run.exit_code) == (plan.trial_id("leaderboard"), "tiny", 0)
    assert not run.staged, "an artifact lies outside the folder that is synced"
    (name,) = run.files
    table = file.parent / "files" / name
    assert str(Path(folder.url)).encode() not in run.content
    assert str(Path.home()).encode() not in run.content
    content = json.loads(table.read_text())
    assert [row[0] for row in content["data"]] == [1, 2, 3]
    assert set(SPACE) <= set(content["columns"])


def test_a_second_start_is_refused_and_a_resumed_one_changes_nothing(finished, cluster, refused):
    folder, plan = finished.folder, finished.plan
    with refused(folder.url, "there is a sweep of this name already", "--resume"):
        start_sweep(folder, plan, cluster)
    before = outcomes(folder.records())
    again = resume_sweep(folder, replace(plan, id="another"), cluster)
    assert outcomes(again.records) == before
    assert folder.plan() == plan


def test_a_changed_space_is_refused_and_the_difference_shown(finished, cluster):
    folder, plan = finished.folder, finished.plan
    space = plan.space | {"optim.lr_generator": {"loguniform": [1e-3, 5e-2]}}
    with pytest.raises(ConfigError, match=r"lr_generator: .*0\.03.* before, .*0\.05.* now"):
        resume_sweep(folder, replace(plan, space=space), cluster)


def test_the_best_are_exported_as_they_are_or_retrained(finished, cluster):
    folder, plan, result = finished.folder, finished.plan, finished.result
    (name,) = finalists(plan, result.records).values()
    (best,) = export_best(folder, plan)
    assert best.name == f"1-{name}"
    run_dir = Path(folder.run_dir(name))
    assert same(tensors(Path(best.folder), BEST), tensors(run_dir, BEST))

    again = replace(plan, sweep=replace(plan.sweep, final="retrained", final_epochs=1))
    folder.write_plan(again)
    try:
        (record,) = run_final(folder, again, [name], cluster).values()
        assert (record.status, record.epochs) == ("finished", 1)
        (best,) = export_best(folder, again)
        checkpoint = load_checkpoint(Path(best.folder) / BEST)
        assert checkpoint.config.train.seed == plan.base.train.seed + 1
        assert not same(tensors(Path(best.folder), BEST), tensors(run_dir, BEST))
        assert set(searched(folder.records())) == set(result.records)
    finally:
        folder.write_plan(plan)


def test_an_extended_sweep_takes_over_trials_and_checkpoints(finished, cluster, tmp_path):
    old, result = finished.folder, finished.result
    new = SweepFolder(tmp_path / "more")
    more = extend_sweep(old, new, trials=1, epochs=EPOCHS + 1, address=cluster)
    assert more.complete
    assert len(more.records) == 4
    for name, record in result.records.items():
        taken = more.records[name]
        assert taken.taken_from == f"tiny/{name}"
        assert taken.reports[:EPOCHS] == record.reports
        assert taken.epochs == EPOCHS + 1
    candidates = [record.hyperparameters for record in more.records.values()]
    assert all(candidates.count(hyperparameters) == 1 for hyperparameters in candidates)
    assert searched(old.records()) == result.records
    # The epoch that was added is the one that a run of four epochs would have had.
    best = more.records["00000"]
    config = run_config(more.folder.plan(), "00000", best.hyperparameters)
    config = with_overrides(config, {"tracking.mode": "disabled"})
    train(config, tmp_path / "alone")
    assert same(tensors(tmp_path / "alone"), tensors(Path(new.run_dir("00000"))))
    # Pictures of every epoch, those before the extension too.
    assert list(sample_pictures(Path(new.run_dir("00000")))) == [5, 10, 15, 20]


@pytest.mark.parametrize("workers", [1, 2])
def test_asha_stops_the_worse_and_their_records_are_whole(cluster, shard_folder, tmp_path, workers):
    folder = SweepFolder(tmp_path / "asha")
    # The good come first, so that the bad ones meet full rungs.
    rates = [1e-2, 9e-3, 1e-6, 2e-6] if workers == 1 else [1e-2, 1e-6]
    grid = {"optim.lr_generator": {"grid_search": rates}}
    plan = tiny_plan(
        shard_folder,
        "asha",
        TRACKED,
        grid,
        search="grid",
        scheduler="asha",
        asha_reduction=2,
        workers=workers,
        concurrent=1,
    )
    records = start_sweep(folder, plan, cluster).records
    stopped = {name for name, record in records.items() if record.status == "stopped"}
    assert {f"{number:05d}" for number, rate in enumerate(rates) if rate < 1e-4} <= stopped
    assert any(record.status == "finished" for record in records.values())
    for name, record in records.items():
        assert record.failures == ()
        (run,) = offline_runs(folder, name)
        assert run.exit_code == 0
        assert_whole(run, folder, name, record.epochs)
        assert len(load_checkpoint(Path(folder.run_dir(name)) / LAST).random) == workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_population_copies_the_better_and_mutates(
    nodes, cluster, shard_folder, tmp_path, workers
):
    folder = SweepFolder(tmp_path / "pbt")
    epochs, every = 8, 2
    tracked = {"tracking.mode": "offline", "tracking.samples": 1} if workers == 1 else {}
    plan = tiny_plan(
        shard_folder,
        "pbt",
        {"train.epochs": epochs} | tracked,
        {
            "optim.lr_generator": SPACE["optim.lr_generator"],
            "loss.lambda_bce": SPACE["loss.lambda_bce"],
        },
        trials=2,
        scheduler="pbt",
        workers=workers,
        pbt_every=every,
        pbt_quantile=0.5,
        pbt_resample=0,
    )

    def wait_for_the_other() -> None:
        process = stop.wait_anywhere()
        until(lambda: len(list((tmp_path / "pbt/runs").glob(f"*/{LAST}"))) == 1)
        os.kill(process, signal.SIGCONT)

    # Processes take seconds to start: one trial would end before the other begins.
    first = FileMoment(f"*/runs/*/{LAST}", "rename")
    with nodes.stopping(first) as stop, alongside(wait_for_the_other):
        result = start_sweep(folder, plan, cluster)
    assert result.complete
    copies = [(name, copy) for name, record in result.records.items() for copy in record.copies]
    assert copies
    for name, copy in copies:
        assert copy.trial != name
        assert 1e-3 <= copy.hyperparameters["optim.lr_generator"] <= 3e-2
    for name, record in result.records.items():
        assert record.failures == ()
        assert record.epochs == epochs
        run_dir = Path(folder.run_dir(name))
        checkpoint = load_checkpoint(run_dir / LAST)
        assert checkpoint.config.optim.lr_generator == record.hyperparameters["optim.lr_generator"]
        # What is kept does not grow with the epochs.
        assert len(list((run_dir / "checkpoints").glob("epoch-*.pt"))) == KEPT_EPOCHS
        if tracked:
            # Nor with its pauses: one record of W&B's, and each picture once there and once here.
            files = [path for path in run_dir.rglob("*") if path.is_file()]
            assert len([path for path in files if path.suffix == ".wandb"]) == 1
            assert len(files) <= 9 + 2 * record.epochs
        if record.copies:
            last = record.copies[-1]
            donor = result.records[last.trial]
            assert record.reports[0] != donor.reports[0]
    assert not (Path(folder.url) / "ray").exists()


@pytest.mark.parametrize(("workers", "trials"), [(1, 4), (2, 2)])
def test_optuna_suggests_hyperparameters_from_what_was_seen(
    cluster, shard_folder, tmp_path, workers, trials
):
    folder = SweepFolder(tmp_path / "optuna")
    more = {"train.epochs": 1}
    plan = tiny_plan(
        shard_folder, "optuna", more, trials=trials, search="optuna", workers=workers, concurrent=1
    )
    result = start_sweep(folder, plan, cluster)
    assert result.complete
    assert [record.status for record in result.records.values()] == ["finished"] * trials
    candidates = [tuple(record.hyperparameters.items()) for record in result.records.values()]
    assert len(set(candidates)) == trials


def test_several_objectives_leave_a_front(cluster, shard_folder, tmp_path):
    folder = SweepFolder(tmp_path / "front")
    plan = tiny_plan(
        shard_folder,
        "front",
        {"train.epochs": 1},
        trials=3,
        search="optuna",
        objective=("ssim_2d", "mse"),
        concurrent=1,
    )
    result = start_sweep(folder, plan, cluster)
    rows = json.loads((tmp_path / "front" / "leaderboard.json").read_text())["trials"]
    assert rows[0]["pareto"] is True
    assert [row["score"] for row in rows] == [row["ssim_2d"] for row in rows]
    assert (
        load_checkpoint(Path(result.folder.run_dir("00000")) / LAST).config.train.objective
        == "ssim_2d"
    )


def test_a_sweep_lives_in_a_bucket(cluster, server, shard_folder, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    folder = SweepFolder(f"{server.new_folder()}/remote")
    plan = tiny_plan(shard_folder, "remote", {"train.epochs": 2}, trials=2, scheduler="pbt")
    result = start_sweep(folder, plan, cluster)
    assert result.complete
    assert folder.records() == result.records
    assert [record.status for record in result.records.values()] == ["finished"] * 2
    (best,) = export_best(folder, plan)
    assert folder.folder.exists(f"best/{best.name}/{BEST}")
    assert not folder.folder.names("ray")
