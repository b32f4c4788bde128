"""Killed, signalled or ended, a run goes on; what may not change between its parts is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from killing import CallMoment, Stop
from tiny_runs import (
    launch,
    losses,
    run,
    run_killed,
    same,
    start,
    tensors,
    tiny_config,
)
from told_epochs import FULL, KINDS

from distsynth.config import from_json
from distsynth.errors import ConfigError
from distsynth.runs.checkpoint import Position, load_checkpoint
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST
from distsynth.training.loop import train
from distsynth.training.run import TrainingRun
from distsynth.training.steps import Learner
from distsynth.training.validation import Validator
from sharding.io.errors import DataError
from sharding.io.interruption import Interrupted, signals_as_exceptions
from sharding.io.lease import LEASE_FILE

SCORE = "val/psnr"

EVERY_STEP = {"train.log_every": 1}


def trained(run_dir, shards, *more, **options):
    return train(tiny_config(shards, *more), run_dir, **options)


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
