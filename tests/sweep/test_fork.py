"""A run told epoch by epoch, ended between two of them, or gone on from another's networks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import ADVERSARIAL, BATCH_NORM, losses, same, tensors, tiny_config

from distsynth.config import RunConfig
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import Checkpoint, Position, fork, load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST, RUN_FILES, epoch_checkpoint
from distsynth.runs.tracking import Trackers
from distsynth.sweep.trial import donated
from distsynth.training.loop import epochs, train
from distsynth.training.report import EpochReport
from sharding.io.errors import DataError
from sharding.io.storage import Folder

FULL = ADVERSARIAL | BATCH_NORM
KINDS: dict[str, dict[str, Any]] = {"supervised": {}, "adversarial": FULL}
THREE: dict[str, Any] = {"train.epochs": 3, "train.log_every": 5}
"""Rows end with their epochs, so that a fork loses none of the sums that make them."""


def some_epochs(config: RunConfig, run_dir: Path, count: int) -> list[EpochReport]:
    """Train until so many new epochs are done, and end the run there."""
    reports = []
    with contextlib.closing(epochs(config, run_dir, resume=True)) as run:
        for report in run:
            reports.append(report)
            if sum(not each.past for each in reports) == count:
                break
    return reports


def plain(reports: Iterable[EpochReport]) -> list[dict[str, Any]]:
    """Comparable: NaN, which is not equal to itself, as None."""
    return [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in report.to_record().items()
        }
        for report in reports
    ]


def forked(donor: Path, run_dir: Path, config: RunConfig, own: bool = False) -> Checkpoint:
    """Make a run's last checkpoint that of another, taken over."""
    before = load_checkpoint(run_dir / LAST) if own else None
    state = fork(load_checkpoint(donor / LAST), config, before)
    save_checkpoint(run_dir / LAST, state)
    return state


@pytest.fixture(scope="module")
def donors(shard_folder, tmp_path_factory):
    """Runs of three epochs of each kind: whole ones, and ones that end after the first."""
    made = {}

    def find(kind: str) -> tuple[RunConfig, Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("donors")
            config = tiny_config(shard_folder, KINDS[kind], THREE)
            train(config, folder / "whole")
            some_epochs(config, folder / "first", 1)
            made[kind] = config, folder / "whole", folder / "first"
        return made[kind]

    return find


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


# --- checkpoints that are kept


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


# --- the best epoch

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
    monkeypatch.setattr("distsynth.training.loop.Validator.__call__", lambda *_: next(found))


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
