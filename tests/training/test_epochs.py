"""A run told epoch by epoch, and the epochs that it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import losses, same, tensors, tiny_config
from told_epochs import FULL, KINDS, THREE, plain, some_epochs

from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import Position, fork, load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST, RUN_FILES, epoch_checkpoint
from distsynth.runs.tracking import Trackers
from distsynth.training.loop import epochs, train
from distsynth.training.report import EpochReport


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_closed_after_each_epoch_ends_as_an_unbroken_one(kind, donors, tmp_path):
    config, whole, _ = donors(kind)
    for done in range(1, 4):
        reports = some_epochs(config, tmp_path, 1)
        assert [report.epoch for report in reports] == list(range(1, done + 1))
        assert load_checkpoint(tmp_path / LAST).position == Position(done, 0, 5 * done)
    for file in (LAST, BEST):
        assert same(tensors(tmp_path, file), tensors(whole, file))
    assert losses(tmp_path) == losses(whole)


def test_closing_ends_a_run_in_good_order_and_an_error_does_not(
    shard_folder, tmp_path, monkeypatch
):
    ends = []
    finish = Trackers.finish

    def recorded(self: Trackers, failed: bool = False) -> None:
        ends.append(failed)
        finish(self, failed)

    monkeypatch.setattr(Trackers, "finish", recorded)
    config = tiny_config(shard_folder)
    some_epochs(config, tmp_path / "closed", 1)
    train(config, tmp_path / "whole")

    def stop(report: EpochReport) -> None:
        raise RuntimeError(f"enough after {report.epoch}")

    with pytest.raises(RuntimeError, match="enough after 1"):
        train(config, tmp_path / "failed", on_epoch=stop)
    assert ends == [False, False, True]
    expected = [row for row in losses(tmp_path / "whole") if row["step"] <= 5]
    assert losses(tmp_path / "closed") == expected


def test_nothing_is_written_before_the_first_epoch_is_asked_for(shard_folder, tmp_path):
    run = epochs(tiny_config(shard_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run.close()
    assert not (tmp_path / "run").exists()


def test_the_generator_returns_what_train_does(donors, tmp_path):
    config, _, _ = donors("supervised")
    run = epochs(config, tmp_path / "run")
    with pytest.raises(StopIteration) as end:
        while True:
            next(run)
    assert end.value.value == train(config, tmp_path / "run", resume=True)
    assert end.value.value.last == tmp_path / "run" / LAST


@pytest.mark.parametrize("every", [1, 2])
def test_past_reports_come_first_with_equal_values(every, shard_folder, tmp_path):
    config = tiny_config(shard_folder, {"train.epochs": 4, "train.validate_every": every})
    whole = list(epochs(config, tmp_path / "whole"))
    assert [math.isnan(report.score) for report in whole] == [
        every == 2 and epoch % 2 == 1 for epoch in range(1, 5)
    ]
    some_epochs(config, tmp_path / "run", 3)
    reports = list(epochs(config, tmp_path / "run", resume=True))
    assert plain(reports) == plain(whole)
    assert [report.past for report in reports] == [True, True, True, False]
    assert {report.checkpoint for report in reports} == {tmp_path / "run" / LAST}
    again = list(epochs(config, tmp_path / "run", resume=True))
    assert plain(again) == plain(whole)
    assert all(report.past for report in again)


def test_a_new_run_has_no_past(shard_folder, tmp_path):
    config = tiny_config(shard_folder)
    assert not [report for report in epochs(config, tmp_path) if report.past]
    replaced = list(epochs(config, tmp_path, overwrite=True))
    assert [(report.epoch, report.past) for report in replaced] == [(1, False), (2, False)]


def test_a_run_of_an_older_version_goes_on_without_its_past(shard_folder, tmp_path):
    config = tiny_config(shard_folder)
    some_epochs(config, tmp_path, 1)
    last = load_checkpoint(tmp_path / LAST)
    record = {name: value for name, value in last.record.items() if name != "reports"}
    save_checkpoint(tmp_path / LAST, replace(last, record=record))
    reports = list(epochs(config, tmp_path, resume=True))
    assert [(report.epoch, report.past) for report in reports] == [(2, False)]


def test_on_epoch_is_called_for_new_epochs_only(shard_folder, tmp_path):
    config = tiny_config(shard_folder, {"train.epochs": 3})
    some_epochs(config, tmp_path, 2)
    seen = []
    train(config, tmp_path, resume=True, on_epoch=seen.append)
    assert [(report.epoch, report.past) for report in seen] == [(3, False)]
    train(config, tmp_path, resume=True, on_epoch=seen.append)
    assert len(seen) == 1


def kept(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / LAST.parent).iterdir())


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(0, []), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])],
)
def test_just_the_latest_epochs_are_kept(keep, expected, shard_folder, tmp_path):
    config = tiny_config(shard_folder, {"train.epochs": 4, "train.keep_epochs": keep})
    weights = {}
    for report in epochs(config, tmp_path):
        weights[report.epoch] = tensors(tmp_path)
        latest = [epoch for epoch in range(1, report.epoch + 1) if epoch > report.epoch - keep]
        names = [epoch_checkpoint(epoch).name for epoch in latest]
        assert kept(tmp_path) == sorted(["best.pt", *names, "last.pt"])
    assert kept(tmp_path)[1:-1] == [f"epoch-{epoch:05d}.pt" for epoch in expected]
    for epoch in expected:
        assert load_checkpoint(tmp_path / epoch_checkpoint(epoch)).position.epoch == epoch
        assert same(tensors(tmp_path, epoch_checkpoint(epoch)), weights[epoch])


def test_keeping_epochs_goes_on_when_a_run_is_resumed_and_changes_no_number(shard_folder, tmp_path):
    config = tiny_config(shard_folder, FULL, {"train.epochs": 4, "train.keep_epochs": 2})
    for _ in range(4):
        some_epochs(config, tmp_path / "run", 1)
    assert kept(tmp_path / "run") == ["best.pt", "epoch-00003.pt", "epoch-00004.pt", "last.pt"]
    train(tiny_config(shard_folder, FULL, {"train.epochs": 4}), tmp_path / "plain")
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "plain"))
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")


def test_a_kept_epoch_can_be_gone_on_from(shard_folder, tmp_path):
    config = tiny_config(shard_folder, FULL, THREE, {"train.keep_epochs": 3})
    train(config, tmp_path / "donor")
    donor = load_checkpoint(tmp_path / "donor" / epoch_checkpoint(2))
    save_checkpoint(tmp_path / "run" / LAST, fork(donor, config, None))
    train(config, tmp_path / "run", resume=True)
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "donor"))
    assert kept(tmp_path / "run") == ["best.pt", "epoch-00003.pt", "last.pt"]


def test_a_replaced_run_leaves_no_kept_epochs(shard_folder, tmp_path):
    train(tiny_config(shard_folder, {"train.keep_epochs": 2}), tmp_path)
    train(tiny_config(shard_folder), tmp_path, overwrite=True)
    assert kept(tmp_path) == ["best.pt", "last.pt"]
    assert {path.name for path in tmp_path.iterdir()} <= {*RUN_FILES, "checkpoints"}


STORY: list[dict[str, float]] = [
    {"psnr": 20.0, "ssim_2d": 0.5, "ssim_global": 0.9, "mse": 0.10, "seam_index": 1.5},
    {"psnr": 23.0, "ssim_2d": 0.6, "ssim_global": 0.1, "mse": 0.20, "seam_index": 1.9},
    {"psnr": 22.0, "ssim_2d": 0.9, "ssim_global": 0.2, "mse": 0.30, "seam_index": 0.9},
    {"psnr": 21.0, "ssim_2d": 0.7, "ssim_global": 0.3, "mse": 0.05, "seam_index": 0.1},
]
"""Validations of four epochs, each the best in something."""


@pytest.fixture
def told(monkeypatch):
    """Let every validation find what the story tells."""

    def validations() -> Iterator[dict[str, float]]:
        for row in STORY:
            yield {f"val/{name}": value for name, value in row.items()}

    found = validations()
    monkeypatch.setattr("distsynth.training.run.Validator.__call__", lambda *_: next(found))


@pytest.mark.parametrize(
    ("objective", "penalty", "epoch", "scores"),
    [
        ("psnr", 0.0, 2, (20.0, 23.0, 22.0, 21.0)),
        ("psnr", 5.0, 3, (17.5, 18.5, 22.0, 21.0)),
        ("ssim_2d", 0.0, 3, (0.5, 0.6, 0.9, 0.7)),
        ("ssim_global", 0.0, 1, (0.9, 0.1, 0.2, 0.3)),
        ("mse", 0.0, 4, (-0.1, -0.2, -0.3, -0.05)),
        ("mse", 1.0, 4, (-0.6, -1.1, -0.3, -0.05)),
    ],
)
@pytest.mark.usefixtures("told")
def test_the_objective_chooses_the_best_epoch(
    objective, penalty, epoch, scores, shard_folder, tmp_path
):
    chosen = {"train.objective": objective, "train.seam_penalty": penalty}
    config = tiny_config(shard_folder, {"train.epochs": 4}, chosen)
    reports = some_epochs(config, tmp_path, 2)
    result = train(config, tmp_path, resume=True, on_epoch=reports.append)
    assert [report.score for report in reports] == pytest.approx(scores)
    best = [max(scores[: n + 1]) for n in range(4)]
    assert [report.best_score for report in reports] == pytest.approx(best)
    assert result.best_score == pytest.approx(max(scores))
    assert load_checkpoint(tmp_path / BEST).position.epoch == epoch
    assert load_checkpoint(tmp_path / LAST).position.epoch == 4


@pytest.mark.parametrize("objective", ["mse", "ssim_2d"])
def test_the_best_checkpoint_holds_the_weights_of_the_best_epoch(objective, shard_folder, tmp_path):
    """A rate this high makes the scores go up and down."""
    more = {"train.epochs": 6, "optim.lr_generator": 0.3, "train.objective": objective}
    weights = {}
    reports = []
    for report in epochs(tiny_config(shard_folder, more), tmp_path):
        reports.append(report)
        weights[report.epoch] = tensors(tmp_path)
    values = [report.metrics[f"val/{objective}"] for report in reports]
    best = 1 + values.index(min(values) if objective == "mse" else max(values))
    assert best < 6
    assert same(tensors(tmp_path, BEST), weights[best])
    assert load_checkpoint(tmp_path / BEST).config.train.objective == objective


@pytest.mark.parametrize(
    "changed", [{"train.objective": "mse"}, {"train.seam_penalty": 1.0}], ids=["objective", "seam"]
)
def test_the_objective_of_a_run_may_not_change(changed, shard_folder, tmp_path):
    config = tiny_config(shard_folder)
    some_epochs(config, tmp_path, 1)
    before = (tmp_path / CONFIG_FILE).read_text()
    with pytest.raises(ConfigError, match=f"{next(iter(changed))} must be"):
        train(tiny_config(shard_folder, changed), tmp_path, resume=True)
    assert (tmp_path / CONFIG_FILE).read_text() == before
