"""Averaged weights, budgets in time, early ends, starts from other runs, aligned blocks."""

from __future__ import annotations

import json
import math
from itertools import count

import numpy as np
import pytest
import torch
from tiny_runs import losses, same, tensors, tiny_config
from told_epochs import some_epochs

from distsynth.config import to_dict
from distsynth.data.dataset import PatchDataset
from distsynth.data.standardiser import Standardiser
from distsynth.errors import ConfigError
from distsynth.inference.predictor import load_predictor
from distsynth.models.intensity_map import IntensityCurve
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import BEST, LAST, METRICS_FILE, open_run
from distsynth.runs.package import export_files, read_export, write_files
from distsynth.training.checkpointing import read_resumed
from distsynth.training.loop import train
from distsynth.training.report import EpochReport, fruitless
from distsynth.training.run import TrainingRun
from distsynth.training.steps import Learner
from sharding.io.errors import DataError
from sharding.io.interruption import Interrupted
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.simulation.phantom import write_phantom_cohort
from sharding.volumes.cohort import read_cohort

RECIPE = {
    "optim.average": 0.9,
    "optim.warmup_steps": 3,
    "optim.weight_decay": 0.01,
    "optim.schedule": "cosine",
    "optim.clip_norm": 1.0,
}


def trained(run_dir, shards, *more, **options):
    return train(tiny_config(shards, *more), run_dir, **options)


def interrupt_after(steps, monkeypatch):
    """Stop the next run like a signal does, once it has taken so many steps."""
    update, taken = Learner.update, count(1)

    def interrupted(self, step):
        done = update(self, step)
        if next(taken) == steps:
            raise Interrupted(15)
        return done

    monkeypatch.setattr(Learner, "update", interrupted)


def test_a_run_with_averaged_weights_goes_on_to_the_bit(shard_folder, tmp_path, monkeypatch):
    more = RECIPE, {"train.checkpoint_every": 1, "train.epochs": 2}
    trained(tmp_path / "whole", shard_folder, *more)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(4, patch)
        trained(tmp_path / "run", shard_folder, *more)
    assert load_checkpoint(tmp_path / "run" / LAST).position.step == 3
    trained(tmp_path / "run", shard_folder, *more, resume=True)
    for file in (LAST, BEST):
        assert same(tensors(tmp_path / "run", file), tensors(tmp_path / "whole", file))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_averaged_weights_predict_and_are_exported(shard_folder, tmp_path):
    trained(tmp_path / "run", shard_folder, RECIPE)
    checkpoint = load_checkpoint(tmp_path / "run" / LAST)
    state = checkpoint.learners["generator"]
    assert not same(state["average"], state["network"])
    assert same(load_predictor(tmp_path / "run" / LAST).generator.state_dict(), state["average"])
    write_files(tmp_path, export_files(checkpoint))
    assert same(read_export(tmp_path).weights(), state["average"])


def test_a_budget_in_time_ends_a_run_within_an_epoch(shard_folder, tmp_path):
    """Each step takes two seconds of the clock: a budget of 0.2 minutes is over after six."""
    clock = count(0.0, 2.0).__next__
    more = {"train.minutes": 0.2, "train.epochs": 9, "train.log_every": 1}
    trained(tmp_path, shard_folder, more, {"optim.schedule": "linear"}, clock=clock)
    rows = losses(tmp_path)
    rates = [row["lr/generator"] for row in rows if "lr/generator" in row]
    assert rates == pytest.approx([0.01 * max(0, 1 - step / 6) for step in range(6)])
    end = load_checkpoint(tmp_path / LAST)
    assert (end.position.epoch, end.position.step, end.record["seconds"]) == (2, 6, 12.0)
    assert [row["step"] for row in rows if "val/psnr" in row] == [5, 6]
    trained(tmp_path, shard_folder, more, {"optim.schedule": "linear"}, resume=True)
    assert losses(tmp_path) == rows


def test_training_time_goes_on_where_it_was(shard_folder, tmp_path):
    more = {"train.minutes": 1000.0, "train.epochs": 1}
    trained(tmp_path, shard_folder, more)
    before = load_checkpoint(tmp_path / LAST).record["seconds"]
    assert before > 0
    config = tiny_config(shard_folder, more, {"train.epochs": 2})
    with open_run(tmp_path) as folder:
        run = TrainingRun(config, folder, read_resumed(folder))
        with run.prepared():
            assert run.state.pace.seconds == before


def report(score):
    metrics = {} if score is None else {"val/psnr": score}
    found = math.nan if score is None else score
    return EpochReport(1, 1, metrics, found, found, LAST)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], 0),
        ([1.0], 0),
        ([1.0, 2.0, None], 0),
        ([2.0, None, 1.0, 1.5], 2),
        ([2.0, 2.0], 1),
        ([math.nan, math.nan], 2),
    ],
)
def test_validations_since_the_best(scores, expected):
    assert fruitless([report(score) for score in scores]) == expected


def test_a_run_that_learns_no_more_ends_early(shard_folder, tmp_path):
    more = {"train.patience": 2, "train.epochs": 9, "optim.lr_generator": 1e-30}
    trained(tmp_path, shard_folder, more)
    assert load_checkpoint(tmp_path / LAST).position.epoch == 3
    rows = losses(tmp_path)
    trained(tmp_path, shard_folder, more, resume=True)
    assert losses(tmp_path) == rows


def test_a_run_starts_from_another(shard_folder, tmp_path, caplog):
    trained(tmp_path / "first", shard_folder, RECIPE)
    donor = load_checkpoint(tmp_path / "first" / BEST).weights()
    more = {"train.start_from": str(tmp_path / "first"), "optim.lr_generator": 1e-30}
    critic = {
        "discriminator.family": "conv",
        "discriminator.channels": (4,),
        "discriminator.kernels": (3,),
    }
    trained(tmp_path / "second", shard_folder, more, critic, {"loss.lambda_bce": 0.1})
    end = load_checkpoint(tmp_path / "second" / LAST)
    assert end.position.step == 10
    torch.testing.assert_close(end.weights(), donor, rtol=0, atol=1e-20)
    assert "holds no discriminator: it starts with random weights" in caplog.text


def test_weights_that_do_not_fit_are_named(shard_folder, tmp_path):
    trained(tmp_path / "first", shard_folder)
    more = {"train.start_from": str(tmp_path / "first"), "generator.channels": (6, 5)}
    with pytest.raises(
        DataError, match=r"of its generator must fit this run's: network.*has the s"
    ):
        trained(tmp_path / "second", shard_folder, more)
    with pytest.raises(DataError, match="does not exist"):
        trained(tmp_path / "third", shard_folder, {"train.start_from": str(tmp_path / "none")})


def test_a_curve_is_fitted_on_the_training_patches_and_kept(shard_folder, tmp_path):
    more = RECIPE | {"generator.intensity_map": True, "generator.residual": True}
    trained(tmp_path / "run", shard_folder, more, {"optim.lr_generator": 1e-30})
    checkpoint = load_checkpoint(tmp_path / "run" / LAST)
    state = checkpoint.learners["generator"]
    curve = IntensityCurve()
    start = curve.values.clone()
    curve.values.copy_(state["network"]["curve.values"])
    assert torch.equal(state["average"]["curve.values"], curve.values)
    shards = ShardSet(shard_folder)
    dataset = PatchDataset(shards, "train")
    source, target = Standardiser(shards.manifest, torch.device("cpu"))(
        dataset[np.arange(len(dataset))]
    )
    mapped = curve(source)
    assert (mapped - target).square().mean() < 0.9 * (source - target).square().mean()
    for low in (-0.5, 0.5, 1.0):
        near = (source - low).abs() < 0.05
        assert float(mapped[near].mean()) == pytest.approx(float(target[near].mean()), abs=0.05)
    beyond = torch.tensor([-9.0, 0.123, 40.0])
    curve.values.copy_(start)
    torch.testing.assert_close(curve(beyond), beyond, rtol=1e-5, atol=1e-5)
    predictor = load_predictor(tmp_path / "run" / LAST)
    assert torch.equal(predictor.generator.curve.values, state["average"]["curve.values"])


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A cohort of odd sides, and aligned blocks cut from it."""
    folder = tmp_path_factory.mktemp("blocks")
    cohort = write_phantom_cohort(folder / "cohort", specimens=3, shape=(21, 19, 17), seed=4)
    config = ShardConfig(
        patch_size=(12, 12, 12), patches_per_specimen=12, stride=6, alignment=2, seed=1
    )
    write_shards(read_cohort(cohort), folder / "shards", config, workers=1)
    return folder


def test_aligned_blocks_of_odd_volumes_train_validate_and_predict(blocks, tmp_path):
    more = {
        "data.patch_size": (12, 12, 12),
        "data.alignment": 2,
        "generator.family": "half-resolution",
        "generator.features": 8,
        "generator.blocks": 1,
        "stitch.stride": 6,
        "train.batch_size": 4,
        "train.epochs": 4,
    }
    trained(tmp_path, blocks / "shards", more, RECIPE)
    scores = [row["val/psnr"] for row in losses(tmp_path) if "val/psnr" in row]
    assert scores[-1] > scores[0]
    predictor = load_predictor(tmp_path / LAST)
    source = np.random.default_rng(0).normal(size=(21, 19, 17)).astype(np.float32)
    found = predictor(source, quiet=True)
    assert found.shape == source.shape and np.isfinite(found).all()
    with pytest.raises(
        ConfigError, match=r"stitch\.stride must be divisible by data\.alignment, 2"
    ):
        predictor.stitched(stride=5)
    assert to_dict(predictor.checkpoint.config)["data"]["alignment"] == 2


SHARE = {"train.validate_share": 0.3, "train.epochs": 3}


def test_a_share_chooses_the_best_epoch_and_everything_is_validated_at_the_end(
    shard_folder, tmp_path
):
    train(tiny_config(shard_folder, SHARE), tmp_path / "share")
    train(tiny_config(shard_folder, {"train.epochs": 3}), tmp_path / "whole")
    share, whole = (
        [json.loads(line) for line in (tmp_path / name / METRICS_FILE).read_text().splitlines()]
        for name in ("share", "whole")
    )
    scores = [row["val/psnr"] for row in share if "val/psnr" in row]
    assert len(scores) == 3
    assert load_checkpoint(tmp_path / "share" / LAST).record["best_score"] == max(scores)
    (everything,) = (row for row in share if "val_whole/psnr" in row)
    ends = [row for row in whole if "val/psnr" in row]
    assert everything["val_whole/psnr"] == ends[-1]["val/psnr"] != scores[-1]
    assert same(tensors(tmp_path / "share", LAST), tensors(tmp_path / "whole", LAST))


def test_a_run_with_a_share_goes_on_to_the_bit(shard_folder, tmp_path):
    config = tiny_config(shard_folder, SHARE)
    train(config, tmp_path / "unbroken")
    some_epochs(config, tmp_path / "broken", 2)
    train(config, tmp_path / "broken", resume=True)
    rows = [
        (tmp_path / name / METRICS_FILE).read_text().splitlines() for name in ("unbroken", "broken")
    ]
    kept = [[line for line in part if "val" in line] for part in rows]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4
    with pytest.raises(ConfigError, match=r"validate_share must be 0\.3 as in the run"):
        train(
            tiny_config(shard_folder, SHARE, {"train.validate_share": 1.0}),
            tmp_path / "broken",
            resume=True,
        )
