from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import (
    losses,
    same,
    tensors,
    tiny_config,
)
from told_epochs import FULL, KINDS

from distsynth.config import from_json
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST
from distsynth.runs.sample_patches import TITLE_HEIGHT
from distsynth.training.loop import train
from distsynth.training.steps import Learner
from sharding.io.errors import DataError
from sharding.shards.shard_set import ShardSet

SCORE = "val/psnr"
EVERY_STEP = {"train.log_every": 1}


def trained(run_dir, shards, *more, **options):
    return train(tiny_config(shards, *more), run_dir, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind, shard_folder, tmp_path):
    result = trained(tmp_path, shard_folder, KINDS[kind], {"train.epochs": 8})
    rows = losses(tmp_path)
    steps = [row for row in rows if "train/recon" in row]
    assert steps[-1]["train/recon"] < 0.8 * steps[0]["train/recon"]
    scores = [row[SCORE] for row in rows if SCORE in row]
    assert scores[-1] > scores[0] + 1
    assert result.best_score == max(scores)
    if kind == "adversarial":
        assert {"train/discriminator", "train/bce", "train/gradient"} <= steps[0].keys()
        assert {"grad_norm/discriminator", "lr/discriminator"} <= steps[0].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_every_bit(kind, shard_folder, tmp_path):
    for name, seed in (("one", 4), ("two", 4), ("three", 5)):
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        trained(tmp_path / name, shard_folder, KINDS[kind], {"train.seed": seed})
    one, two, three = (tensors(tmp_path / name) for name in ("one", "two", "three"))
    assert same(one, two)
    assert not same(one, three)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_workers_accumulation_and_window_of_shards_do_not_change_the_sums(shard_folder, tmp_path):
    trained(tmp_path / "plain", shard_folder)
    trained(tmp_path / "workers", shard_folder, {"data.workers": 2})
    assert same(tensors(tmp_path / "plain"), tensors(tmp_path / "workers"))
    trained(tmp_path / "parts", shard_folder, {"train.accumulation": 4})
    for one, other in zip(losses(tmp_path / "plain"), losses(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


GOLDEN = {
    "supervised": [1.294017, 1.219657, 1.220398, 1.163117, 1.052016],
    "adversarial": [1.823814, 1.670971, 1.666736, 1.448888, 1.328909],
}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_losses(kind, shard_folder, tmp_path):
    """Refactoring must not change these; a change of the network, loss or data may."""
    trained(tmp_path, shard_folder, KINDS[kind], EVERY_STEP, {"train.epochs": 1})
    found = [row["train/generator"] for row in losses(tmp_path) if "train/generator" in row]
    assert found == pytest.approx(GOLDEN[kind], rel=1e-4)


@pytest.mark.parametrize("log_every", [1, 100])
@pytest.mark.parametrize("every", [0, 1])
def test_a_diverged_run_stops_and_keeps_no_broken_checkpoint(
    log_every, every, shard_folder, tmp_path, monkeypatch
):
    """Also when it breaks between two rows, before the validation."""
    backward, calls = Learner.backward, itertools.count(1)

    def breaking(self, loss):
        backward(self, loss * float("nan") if next(calls) == 8 else loss)

    monkeypatch.setattr(Learner, "backward", breaking)
    more = {"train.log_every": log_every, "train.checkpoint_every": every}
    with pytest.raises(FloatingPointError) as caught:
        trained(tmp_path, shard_folder, more)
    message = str(caught.value)
    assert "the run diverged" in message
    assert "Lower optim.lr_generator" in message
    for file in (LAST, BEST):
        weights = tensors(tmp_path, file)
        assert all(value.isfinite().all() for value in weights.values() if torch.is_tensor(value))


def test_a_run_that_breaks_in_its_last_step_is_found_by_validation(
    shard_folder, tmp_path, monkeypatch
):
    update = Learner.update

    def breaking(self, step):
        norm = update(self, step)
        if step == 4:
            next(self.raw.parameters()).data.fill_(float("nan"))
        return norm

    monkeypatch.setattr(Learner, "update", breaking)
    with pytest.raises(FloatingPointError, match="val/mse is nan at step 5"):
        trained(tmp_path, shard_folder)
    assert not (tmp_path / BEST).exists()


def test_on_epoch_gets_each_epoch(shard_folder, tmp_path):
    reports = []

    def watch(report):
        assert load_checkpoint(report.checkpoint).position.epoch == report.epoch
        reports.append(report)

    trained(tmp_path, shard_folder, {"train.epochs": 5, "train.validate_every": 2}, on_epoch=watch)
    assert [(report.epoch, report.step) for report in reports] == [(n, 5 * n) for n in range(1, 6)]
    # Every second epoch, and the last one.
    assert [bool(report.metrics) for report in reports] == [False, True, False, True, True]
    rows = [row for row in losses(tmp_path) if SCORE in row]
    assert [row["step"] for row in rows] == [10, 20, 25]
    for row, report in zip(rows, [reports[1], reports[3], reports[4]], strict=True):
        assert row == {"step": report.step, "epoch": report.epoch, **report.metrics}


def test_an_exception_of_on_epoch_ends_the_run(shard_folder, tmp_path):
    def stop(report):
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, shard_folder, {"train.epochs": 4}, on_epoch=stop)
    assert load_checkpoint(tmp_path / LAST).position.epoch == 2
    trained(tmp_path, shard_folder, {"train.epochs": 4}, resume=True)
    assert [row["step"] for row in losses(tmp_path) if SCORE in row] == [5, 10, 15, 20]


def test_the_best_checkpoint_is_of_the_best_epoch(shard_folder, tmp_path):
    """A rate this high makes the score go up and down."""
    kept = {}

    def keep(report):
        kept[report.metrics[SCORE]] = tensors(tmp_path)

    more = {"train.epochs": 6, "optim.lr_generator": 0.3}
    result = trained(tmp_path, shard_folder, more, on_epoch=keep)
    scores = list(kept)
    assert scores.index(max(scores)) < len(scores) - 1
    assert result.best_score == max(scores)
    assert same(tensors(tmp_path, BEST), kept[max(scores)])
    assert same(tensors(tmp_path, LAST), kept[scores[-1]])

    for epochs in range(1, 7):
        resumed = more | {"train.epochs": epochs}
        again = trained(tmp_path / "again", shard_folder, resumed, resume=True)
    assert again.best_score == max(scores)
    assert same(tensors(tmp_path / "again", BEST), kept[max(scores)])


def test_samples_show_as_many_patches_as_asked(shard_folder, tmp_path):
    trained(tmp_path, shard_folder, {"tracking.samples": 3})
    pictures = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert pictures == ["samples-0000005.png", "samples-0000010.png"]
    with Image.open(tmp_path / "samples" / pictures[0]) as image:
        # Five columns under their titles, each patch shown large.
        assert image.width % (5 * 16) == 0
        pixels = image.width // (5 * 16)
        assert image.height == TITLE_HEIGHT + 3 * 16 * pixels
        assert np.asarray(image).std() > 10


def test_samples_change_no_number(shard_folder, tmp_path):
    trained(tmp_path / "with", shard_folder, FULL, {"tracking.samples": 4})
    trained(tmp_path / "without", shard_folder, FULL)
    assert same(tensors(tmp_path / "with"), tensors(tmp_path / "without"))


def test_rows_are_means_over_the_steps_between_them(shard_folder, tmp_path):
    trained(tmp_path / "each", shard_folder, EVERY_STEP)
    trained(tmp_path / "some", shard_folder, {"train.log_every": 3})
    each = [row["train/recon"] for row in losses(tmp_path / "each") if "train/recon" in row]
    some = {
        row["step"]: row["train/recon"]
        for row in losses(tmp_path / "some")
        if "lr/generator" in row
    }
    assert len(each) == 10
    # The window of steps 4 to 6 spans two epochs; the run's last step has a row of its own.
    windows = {3: each[:3], 6: each[3:6], 9: each[6:9], 10: each[9:]}
    assert some == {
        step: pytest.approx(np.mean(window), rel=1e-5) for step, window in windows.items()
    }


def test_a_schedule_ends_with_the_run(shard_folder, tmp_path):
    trained(tmp_path, shard_folder, EVERY_STEP, {"optim.schedule": "linear"})
    rates = [row["lr/generator"] for row in losses(tmp_path) if "lr/generator" in row]
    assert rates == pytest.approx([0.01 * (1 - step / 10) for step in range(10)])


def test_bf16_trains(shard_folder, tmp_path):
    trained(tmp_path, shard_folder, FULL, {"train.precision": "bf16"})
    dtypes = {value.dtype for value in tensors(tmp_path).values() if torch.is_tensor(value)}
    assert torch.bfloat16 not in dtypes


def test_fp16_without_a_gpu_is_refused(shard_folder, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.precision must be auto, no or bf16 without a GPU"
    ):
        trained(tmp_path, shard_folder, {"train.precision": "fp16"})


def test_patches_of_another_size_are_refused(shard_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.patch_size must be \(16, 16\).*\(32, 32\)"):
        trained(tmp_path, shard_folder, {"data.patch_size": (32, 32)})
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_changed_shards_are_found_before_training(split, shard_folder, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    shards = ShardSet(folder)
    path = shards.path(shards.shards(split)[-1])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if split == "test":
        # Nobody reads it while training.
        trained(tmp_path / "run", folder, {"train.epochs": 1})
        return
    with pytest.raises(DataError, match=rf"{path.name}: the shard's checksum"):
        trained(tmp_path / "run", folder)
    assert not (tmp_path / "run").exists()


def test_the_run_describes_itself(shard_folder, tmp_path):
    config = tiny_config(shard_folder, {"train.epochs": 1})
    result = train(config, tmp_path / "run")
    assert from_json((tmp_path / "run" / CONFIG_FILE).read_text()) == config
    assert (result.run_dir, result.best, result.last) == (
        tmp_path / "run",
        tmp_path / "run" / BEST,
        tmp_path / "run" / LAST,
    )
    found = load_checkpoint(result.best)
    assert found.config == config
    assert found.data.manifest_sha256 == ShardSet(shard_folder).manifest.sha256


@pytest.mark.parametrize("kind", KINDS)
def test_patches_kept_in_memory_change_no_bit(kind, shard_folder, tmp_path):
    for resident in ("auto", "never"):
        trained(tmp_path / resident, shard_folder, KINDS[kind], {"data.resident": resident})
    assert same(tensors(tmp_path / "auto"), tensors(tmp_path / "never"))
    assert losses(tmp_path / "auto") == losses(tmp_path / "never")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_leaves_the_checkpoint_of_a_plain_one(shard_folder, tmp_path, monkeypatch):
    """By a backend that computes as the plain network does; see test_compiling for the real one."""
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr("distsynth.training.compile.why_not", lambda _: None)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compile_in_place(self, backend="eager")
    )
    compiled = {"train.compile": True}
    trained(tmp_path / "plain", shard_folder, FULL)
    trained(tmp_path / "compiled", shard_folder, FULL, compiled)
    assert same(tensors(tmp_path / "plain"), tensors(tmp_path / "compiled"))
    # And each goes on from the other's.
    trained(tmp_path / "mixed", shard_folder, FULL, compiled, {"train.epochs": 1})
    trained(tmp_path / "mixed", shard_folder, FULL, resume=True)
    assert same(tensors(tmp_path / "plain"), tensors(tmp_path / "mixed"))


def test_a_run_without_a_compiler_goes_on_and_says_why(shard_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("distsynth.training.compile.why_not", lambda _: "no compiler here")
    trained(tmp_path / "plain", shard_folder)
    assert "train.compile" not in caplog.text
    trained(tmp_path / "wished", shard_folder, {"train.compile": True})
    assert "train.compile is ignored: no compiler here" in caplog.text
    assert same(tensors(tmp_path / "plain"), tensors(tmp_path / "wished"))
