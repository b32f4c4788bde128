"""A run told epoch by epoch, ended between two of them, or gone on from another's networks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import losses, same, tensors, tiny_config
from told_epochs import FULL, KINDS, THREE, plain, some_epochs

from distsynth.config import RunConfig
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import Checkpoint, Position, fork, load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST, LAST, epoch_checkpoint
from distsynth.sweep.trial import donated
from distsynth.training.loop import epochs, train
from sharding.io.errors import DataError
from sharding.io.storage import Folder


def forked(donor: Path, run_dir: Path, config: RunConfig, own: bool = False) -> Checkpoint:
    """Make a run's last checkpoint that of another, taken over."""
    before = load_checkpoint(run_dir / LAST) if own else None
    state = fork(load_checkpoint(donor / LAST), config, before)
    save_checkpoint(run_dir / LAST, state)
    return state


# --- taking over another run's networks


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_under_the_same_configuration_ends_as_its_donor(kind, donors, tmp_path):
    config, whole, first = donors(kind)
    forked(first, tmp_path, config)
    torch.rand(3)
    result = train(config, tmp_path, resume=True)
    assert same(tensors(tmp_path), tensors(whole))
    assert losses(tmp_path) == [row for row in losses(whole) if row["step"] > 5]
    ends = [load_checkpoint(each / LAST) for each in (tmp_path, whole)]
    assert ends[0].position == ends[1].position == Position(3, 0, 15)
    assert torch.equal(ends[0].random[0]["torch"], ends[1].random[0]["torch"])
    own = [row["val/psnr"] for row in losses(tmp_path) if "val/psnr" in row]
    assert result.best_score == max(own)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_has_the_donors_state_and_a_record_of_its_own(kind, donors, shard_folder):
    config, _, first = donors(kind)
    donor = load_checkpoint(first / LAST)
    other = tiny_config(shard_folder, KINDS[kind], THREE, {"optim.lr_generator": 0.02})
    state = fork(donor, other, None)
    assert state.config == other != config
    assert state.learners is donor.learners
    assert (state.position, state.data) == (Position(1, 0, 5), donor.data)
    assert state.random is donor.random
    assert state.record == {
        "best_score": -math.inf,
        "reports": [],
        "sums": {},
        "summed": {},
        "seconds": donor.record["seconds"],
    }


def test_sums_of_the_donors_losses_are_left_behind(shard_folder, tmp_path):
    config = tiny_config(shard_folder, FULL, {"train.epochs": 2, "train.log_every": 2})
    some_epochs(config, tmp_path / "donor", 1)
    assert load_checkpoint(tmp_path / "donor" / LAST).record["summed"]["generator"] == 1
    forked(tmp_path / "donor", tmp_path / "run", config)
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "donor", resume=True)
    rows, donors_rows = (
        {row["step"]: row for row in losses(tmp_path / name) if "lr/generator" in row}
        for name in ("run", "donor")
    )
    assert list(rows) == [6, 8, 10]
    assert rows[6] != donors_rows[6]
    assert [rows[step] for step in (8, 10)] == [donors_rows[step] for step in (8, 10)]


OTHER = {
    "loss.lambda_bce": 0.7,
    "loss.lambda_recon": 0.3,
    "loss.lambda_gradient": 0.0,
    "optim.lr_generator": 2e-3,
    "optim.lr_discriminator": 5e-4,
}


def test_weights_and_rates_of_the_fork_hold_from_its_first_step(donors, shard_folder, tmp_path):
    _, whole, first = donors("adversarial")
    config = tiny_config(shard_folder, FULL, THREE, OTHER)
    forked(first, tmp_path, config)
    train(config, tmp_path, resume=True)
    rows = [row for row in losses(tmp_path) if "lr/generator" in row]
    assert [row["lr/generator"] for row in rows] == [2e-3, 2e-3]
    assert [row["lr/discriminator"] for row in rows] == [5e-4, 5e-4]
    assert not [row for row in rows if "train/gradient" in row]
    total = 0.7 * rows[0]["train/bce"] + 0.3 * rows[0]["train/recon"]
    assert rows[0]["train/generator"] == pytest.approx(total, rel=1e-4)
    assert not same(tensors(tmp_path), tensors(whole))
    assert load_checkpoint(tmp_path / LAST).config == config


def test_a_discriminator_may_be_copied_by_a_run_in_which_it_has_no_weight(
    donors, shard_folder, tmp_path
):
    _, _, first = donors("adversarial")
    config = tiny_config(shard_folder, FULL, THREE, {"loss.lambda_bce": 0.0})
    forked(first, tmp_path, config)
    train(config, tmp_path, resume=True)
    assert set(load_checkpoint(tmp_path / LAST).learners) == {"generator", "discriminator"}


@pytest.mark.parametrize(
    "changed",
    [
        OTHER,
        {"data.workers": 2, "data.cache_gb": 1.0, "data.shards": "elsewhere"},
        {"tracking.name": "again", "tracking.samples": 3},
        {"train.device": "auto", "loss.vgg_weights": "vgg.pth"},
    ],
)
def test_what_may_differ_from_the_donor(changed, donors, shard_folder):
    donor = load_checkpoint(donors("adversarial")[2] / LAST)
    config = tiny_config(shard_folder, FULL, THREE, changed)
    assert fork(donor, config, None).config == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generator.channels": (6,)}, r"generator.channels must be \(4,\) .* got \(6,\)"),
        ({"discriminator.norm": "none"}, "discriminator.norm must be batch .* got none"),
        ({"discriminator.conditional": True}, "discriminator.conditional must be False"),
        ({"loss.recon": "l2"}, "loss.recon must be l1 as in the run copied, got l2"),
        ({"optim.beta1": 0.5}, "optim.beta1 must be 0.9"),
        ({"optim.schedule": "cosine"}, "optim.schedule must be constant"),
        ({"train.epochs": 4}, "train.epochs must be 3 as in the run copied, got 4"),
        ({"train.batch_size": 12}, "train.batch_size must be 24"),
        ({"train.seed": 1}, "train.seed must be 0"),
        ({"train.objective": "mse"}, "train.objective must be psnr"),
    ],
)
def test_what_may_not_differ_from_the_donor(changed, message, donors, shard_folder):
    donor = load_checkpoint(donors("adversarial")[2] / LAST)
    config = tiny_config(shard_folder, FULL, THREE, changed)
    with pytest.raises(ConfigError, match=message):
        fork(donor, config, None)


def test_best_score_and_past_reports_stay_the_runs_own(donors, shard_folder, tmp_path):
    _, _, first = donors("supervised")
    config = tiny_config(shard_folder, THREE, {"optim.lr_generator": 0.05})
    own = some_epochs(config, tmp_path, 1)
    best = (tmp_path / BEST).read_bytes()
    state = forked(first, tmp_path, config, own=True)
    assert same(tensors(tmp_path), tensors(first))
    assert state.record["best_score"] == own[0].best_score
    assert (tmp_path / BEST).read_bytes() == best
    reports = list(epochs(config, tmp_path, resume=True))
    assert [(report.epoch, report.past) for report in reports] == [
        (1, True),
        (2, False),
        (3, False),
    ]
    assert plain(reports[:1]) == plain(own)
    scores = [report.score for report in reports]
    assert [report.best_score for report in reports] == [max(scores[: n + 1]) for n in range(3)]
    assert [row["epoch"] for row in losses(tmp_path) if "val/psnr" in row] == [1, 2, 3]


def test_reports_of_epochs_after_the_donors_are_forgotten(donors, shard_folder, tmp_path):
    """A run that was ahead goes back to where the donor was."""
    _, _, first = donors("supervised")
    config = tiny_config(shard_folder, THREE, {"optim.lr_generator": 0.05})
    own = some_epochs(config, tmp_path, 2)
    state = forked(first, tmp_path, config, own=True)
    assert [report["epoch"] for report in state.record["reports"]] == [1]
    assert state.record["best_score"] == max(report.score for report in own)
    reports = list(epochs(config, tmp_path, resume=True))
    assert [report.epoch for report in reports] == [1, 2, 3]
    steps = [row["step"] for row in losses(tmp_path)]
    assert steps == sorted(steps)
    assert steps.count(10) == 2


def test_a_fork_takes_over_runs_of_older_versions(donors):
    config, _, first = donors("supervised")
    donor = load_checkpoint(first / LAST)
    old = {"best_score": 3.0, "sums": {}, "summed": {}, "wandb_id": "x"}
    record = fork(donor, config, replace(donor, record=old)).record
    assert record == {**old, "reports": [], "seconds": donor.record["seconds"]}


# --- an epoch at a time


# --- checkpoints that are kept


# --- the best epoch


def test_a_donor_that_goes_on_gives_the_first_epoch_that_is_left(
    shard_folder, tmp_path, monkeypatch
):
    """Epochs are removed before, and while, they are looked for."""
    config = tiny_config(shard_folder, {"train.epochs": 4, "train.keep_epochs": 4})
    train(config, tmp_path / "run")
    donor = Folder(tmp_path / "run")
    assert donated(donor, 2).position.epoch == 2
    (donor.local / epoch_checkpoint(1)).unlink()
    assert donated(donor, 1).position.epoch == 2
    assert donated(donor, 9).position.epoch == 4  # the last checkpoint

    listed = donor.names("checkpoints")
    for epoch in (2, 3):
        (donor.local / epoch_checkpoint(epoch)).unlink()
    lists = [listed]
    names = Folder.names
    monkeypatch.setattr(Folder, "names", lambda *given: lists.pop() if lists else names(*given))
    assert donated(donor, 2).position.epoch == 4
    assert not lists

    (donor.local / epoch_checkpoint(4)).write_bytes(b"cut")
    with pytest.raises(DataError, match="epoch-00004"):
        donated(donor, 4)
