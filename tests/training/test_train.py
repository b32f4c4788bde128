from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from killing import CallMoment, Stop
from PIL import Image
from tiny_runs import (
    ADVERSARIAL,
    BATCH_NORM,
    launch,
    losses,
    run,
    run_killed,
    same,
    start,
    tensors,
    tiny_config,
)

from distsynth.config import from_json
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import Position, load_checkpoint
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST
from distsynth.training.loop import TrainingRun, train
from distsynth.training.steps import Learner
from distsynth.training.validation import Validator
from sharding.io.errors import DataError
from sharding.io.interruption import Interrupted, signals_as_exceptions
from sharding.io.lease import LEASE_FILE
from sharding.shards.shard_set import ShardSet

SCORE = "val/psnr"
EVERY_STEP = {"train.log_every": 1}
FULL = ADVERSARIAL | BATCH_NORM
KINDS = {"supervised": {}, "adversarial": FULL}


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


KILLS = [
    # Five steps an epoch. With a checkpoint every two: steps 2 and 4, best and last of the epoch.
    ("supervised", 0, "step", 3),
    ("supervised", 1, "saved", 3),
    ("supervised", 2, "row", 4),
    ("supervised", 2, "saved", 7),
    ("supervised", 2, "saving", 2),
    ("adversarial", 1, "step", 4),
    ("adversarial", 2, "step", 5),
    ("adversarial", 2, "row", 6),
    ("adversarial", 0, "saving", 1),
    ("adversarial", 2, "step", 10),
    ("adversarial", 2, "saving", 6),
]


@pytest.fixture(scope="module")
def unbroken(shard_folder, tmp_path_factory):
    """Runs that nobody killed, by kind and steps between checkpoints."""
    made = {}

    def find(kind, every):
        if (kind, every) not in made:
            run_dir = tmp_path_factory.mktemp("unbroken") / "run"
            config = tiny_config(shard_folder, KINDS[kind], {"train.checkpoint_every": every})
            assert launch(run, config, run_dir, log=run_dir.parent / "log") == [0]
            made[kind, every] = config, run_dir
        return made[kind, every]

    return find


def assert_same_run(run_dir, expected):
    for file in (LAST, BEST):
        assert same(tensors(run_dir, file), tensors(expected, file))
    assert losses(run_dir) == losses(expected)
    ends = [load_checkpoint(each / LAST) for each in (run_dir, expected)]
    assert ends[0].position == ends[1].position
    assert ends[0].record["best_score"] == ends[1].record["best_score"]
    assert torch.equal(ends[0].random[0]["torch"], ends[1].random[0]["torch"])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "every", "what", "count"), KILLS)
def test_killed_and_resumed_ends_as_if_never_killed(kind, every, what, count, unbroken, tmp_path):
    config, expected = unbroken(kind, every)
    run_dir = tmp_path / "run"
    assert launch(run_killed, config, run_dir, what, count, log=tmp_path / "killed") == [-9]
    reached = load_checkpoint(run_dir / LAST).position.step if (run_dir / LAST).exists() else 0
    assert reached < 10
    assert launch(run, config, run_dir, True, log=tmp_path / "resumed") == [0]
    assert_same_run(run_dir, expected)
    leftovers = [path for path in (run_dir / "checkpoints").iterdir() if path.suffix != ".pt"]
    assert what == "saving" or not leftovers


@pytest.mark.slow
def test_killed_twice_from_outside_and_resumed(shard_folder, tmp_path):
    more = FULL, EVERY_STEP, {"train.checkpoint_every": 1, "train.epochs": 4}
    config = tiny_config(shard_folder, *more)
    assert launch(run, config, tmp_path / "whole", log=tmp_path / "log") == [0]
    run_dir = tmp_path / "run"
    for rows in (3, 9):
        notes = tmp_path / f"notes-{rows}"
        notes.mkdir()
        stop = Stop(CallMoment("distsynth.runs.tracking:LocalTracker.log", count=rows), notes)
        process = start(
            run, config, run_dir, True, environment=stop.environment, log=tmp_path / "killed"
        )
        stop.wait(process)
        process.kill()
        process.join()
    assert 9 < len(losses(run_dir)) < len(losses(tmp_path / "whole"))
    assert launch(run, config, run_dir, True, log=tmp_path / "resumed") == [0]
    assert_same_run(run_dir, tmp_path / "whole")


def test_a_longer_run_goes_on_where_the_shorter_ended(shard_folder, tmp_path):
    trained(tmp_path / "whole", shard_folder, {"train.epochs": 3})
    trained(tmp_path / "run", shard_folder, {"train.epochs": 2})
    trained(tmp_path / "run", shard_folder, {"train.epochs": 3}, resume=True)
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    before = losses(tmp_path / "run")
    trained(tmp_path / "run", shard_folder, {"train.epochs": 3}, resume=True)
    assert losses(tmp_path / "run") == before


def test_random_draws_go_on_where_they_were(shard_folder, tmp_path, monkeypatch):
    """No network of ours draws while it trains yet: let each update do so."""
    update, draws = Learner.update, []

    def drawing(self, step):
        draws.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002
        return update(self, step)

    monkeypatch.setattr(Learner, "update", drawing)
    trained(tmp_path / "whole", shard_folder)
    expected, draws[:] = list(draws), []
    trained(tmp_path / "run", shard_folder, {"train.epochs": 1})
    random.seed(99)
    trained(tmp_path / "run", shard_folder, resume=True)
    assert draws == expected
    assert len(set(draws)) == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim.lr_generator": 0.5}, r"optim.lr_generator must be 0.01 .* got 0.5"),
        ({"train.batch_size": 8}, r"train.batch_size must be 24 as in the run .* got 8"),
        ({"generator.channels": (6,)}, r"generator.channels must be \(4,\) .* got \(6,\)"),
    ],
)
def test_resuming_with_another_configuration_is_refused(changed, message, shard_folder, tmp_path):
    trained(tmp_path, shard_folder, {"train.epochs": 1})
    before = tensors(tmp_path)
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, shard_folder, changed, resume=True)
    assert same(tensors(tmp_path), before)


def test_resuming_on_other_data_is_refused(shard_folder, tmp_path):
    trained(tmp_path / "run", shard_folder, {"train.epochs": 1})
    other = tmp_path / "shards"
    shutil.copytree(shard_folder, other)
    trained(tmp_path / "run", other, {"train.epochs": 2}, resume=True)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["seed"] += 1
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"data\.shards must hold the data .* fingerprint"):
        trained(tmp_path / "run", other, {"train.epochs": 3}, resume=True)


def test_what_may_change_when_resuming(shard_folder, tmp_path):
    trained(tmp_path, shard_folder, {"train.epochs": 1})
    more = {"train.epochs": 2, "data.workers": 1, "tracking.samples": 1}
    trained(tmp_path, shard_folder, more, resume=True)
    assert from_json((tmp_path / CONFIG_FILE).read_text()).data.workers == 1


def test_an_existing_run_is_refused_and_replaced_only_when_told(shard_folder, tmp_path):
    run_dir = tmp_path / "run"
    trained(run_dir, shard_folder, {"train.epochs": 1, "tracking.samples": 1})
    (run_dir / "notes.txt").write_text("mine")
    before = (run_dir / LAST).read_bytes()
    with pytest.raises(DataError, match=r"run: the folder holds a run already.*--resume"):
        trained(run_dir, shard_folder)
    assert (run_dir / LAST).read_bytes() == before
    trained(run_dir, shard_folder, {"train.seed": 1, "train.epochs": 1}, overwrite=True)
    assert load_checkpoint(run_dir / LAST).config.train.seed == 1
    assert not (run_dir / "samples").exists()
    assert (run_dir / "notes.txt").read_text() == "mine"


def test_resuming_nothing_starts_afresh(shard_folder, tmp_path):
    trained(tmp_path / "a", shard_folder, resume=True)
    trained(tmp_path / "b", shard_folder)
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


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
        assert image.size == (4 * 16 * 3, 3 * 16 * 3)
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


@pytest.mark.parametrize(("before", "after"), [("auto", "never"), ("never", "auto")])
def test_a_run_goes_on_within_an_epoch_with_or_without_patches_in_memory(
    before, after, shard_folder, tmp_path, monkeypatch
):
    more = FULL, {"train.checkpoint_every": 1, "data.resident": before}
    trained(tmp_path / "whole", shard_folder, *more)
    update = Learner.update

    def breaking(self, step):
        if step == 7:
            raise RuntimeError("broken off")
        return update(self, step)

    monkeypatch.setattr(Learner, "update", breaking)
    with pytest.raises(RuntimeError, match="broken off"):
        trained(tmp_path / "run", shard_folder, *more)
    monkeypatch.undo()
    position = load_checkpoint(tmp_path / "run" / LAST).position
    assert (position.epoch, position.step_in_epoch) == (1, 2)
    trained(tmp_path / "run", shard_folder, *more, {"data.resident": after}, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


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


def run_signalled(config, run_dir, step, number):
    """Train with the program's signal handling, and send this process a signal within a step."""
    inner = TrainingRun._step

    def signalled(self, batch, at):
        if at == step:
            os.kill(os.getpid(), number)
        return inner(self, batch, at)

    TrainingRun._step = signalled
    with signals_as_exceptions():
        train(config, run_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_run_between_steps_with_a_checkpoint(number, shard_folder, tmp_path):
    config = tiny_config(shard_folder, FULL, EVERY_STEP)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(TrainingRun, "_step", TrainingRun._step)
        run_signalled(config, tmp_path / "stopped", 6, number)
    assert caught.value.signal == number
    assert load_checkpoint(tmp_path / "stopped" / LAST).position.step == 7
    train(config, tmp_path / "stopped", resume=True)
    train(config, tmp_path / "whole")
    assert same(tensors(tmp_path / "stopped"), tensors(tmp_path / "whole"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_signal_during_validation_keeps_the_epoch(shard_folder, tmp_path, monkeypatch):
    config = tiny_config(shard_folder, FULL)
    validate = Validator.__call__

    def interrupted(*args):
        validate(*args)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(Validator, "__call__", interrupted)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "stopped")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "stopped" / LAST).position == Position(0, 5, 5)
    train(config, tmp_path / "stopped", resume=True)
    train(config, tmp_path / "whole")
    assert same(tensors(tmp_path / "stopped"), tensors(tmp_path / "whole"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_a_second_process_on_a_run_is_refused(shard_folder, tmp_path, refused):
    config = tiny_config(shard_folder)

    def again(report):  # noqa: ARG001
        with refused(str(tmp_path), "another process is writing here: process", "Wait for it"):
            train(config, tmp_path, resume=True)

    train(config, tmp_path, on_epoch=again)
    assert not (tmp_path / LEASE_FILE).exists()
