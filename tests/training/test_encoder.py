"""The perceptual loss of an encoder that a run trains on its own targets."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import (
    ADVERSARIAL,
    broken_off,
    launch,
    losses,
    run_and_keep,
    same,
    tensors,
    tiny_config,
)

from distsynth.data.standardiser import Standardiser
from distsynth.errors import ConfigError
from distsynth.losses.encoder import EncoderLoss
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.registry import LossConfig
from distsynth.models.encoder import Encoder
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST
from distsynth.training.encoder import fingerprint, kept_name, new_encoder, train_encoder
from distsynth.training.loop import epochs, train
from distsynth.training.steps import make_accelerator
from sharding.io.storage import Folder
from sharding.shards.shard_set import ShardSet

pytestmark = pytest.mark.slow

COHORT = {
    "loss.lambda_perceptual": 0.2,
    "loss.perceptual_network": "cohort",
    "loss.encoder_steps": 20,
}


def test_the_distance_by_hand():
    torch.manual_seed(0)
    encoder = Encoder(2)
    encoder.scale.copy_(torch.tensor([1.0, 2.0, 4.0]))
    loss = EncoderLoss()
    loss.use(encoder)
    synthetic, target = torch.randn(2, 3, 1, 9, 12)
    pairs = zip(encoder.features(synthetic), encoder.features(target), strict=True)
    expected = sum(
        (one - other).abs().mean() / scale
        for (one, other), scale in zip(pairs, (1, 2, 4), strict=True)
    )
    torch.testing.assert_close(loss(synthetic, target), expected)
    assert loss(target, target) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(synthetic, target), expected)


def test_gradient_flows_to_synthetic_only_and_gain_and_offset_are_seen():
    loss = EncoderLoss()
    loss.use(new_encoder(3))
    synthetic, target = (torch.randn(1, 1, 4, 6, 8, requires_grad=True) for _ in range(2))
    loss(synthetic, target).backward()
    assert synthetic.grad is not None and synthetic.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(weight.requires_grad for weight in loss.parameters())
    for other in (3 * target, target + 1):
        assert loss(other, target) > 0.01


def test_without_an_encoder_it_says_so():
    config = LossConfig(lambda_perceptual=1.0, perceptual_network="cohort")
    with pytest.raises(ValueError, match="must be trained first"):
        GeneratorLoss(config)(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
    assert "the cohort's encoder" in config.description
    config.check_patch((4, 4))
    with pytest.raises(ConfigError, match="at least 16 voxels"):
        LossConfig(lambda_perceptual=1.0).check_patch((8, 8))


def test_it_learns_from_the_targets_and_is_the_same_for_every_run(shard_folder, caplog):
    shards, accelerator = ShardSet(shard_folder), make_accelerator("no", cpu=True)
    standardise = Standardiser(shards.manifest, accelerator.device)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        encoder = new_encoder(2)
        start = fingerprint(encoder)
        with caplog.at_level("INFO"):
            train_encoder(encoder, shards, standardise, 60, accelerator)
        assert torch.equal(torch.get_rng_state(), before)
        assert fingerprint(encoder) != start
        made.append(fingerprint(encoder))
    assert made[0] == made[1]
    words = caplog.messages[-1].split()
    assert float(words[6]) < 0.6 * float(words[10]), caplog.messages[-1]


def ran(config, run_dir, encoders):
    """A whole run that keeps its encoder."""
    for _ in epochs(config, run_dir, encoders=encoders):
        pass


def test_a_kept_encoder_serves_the_next_run_to_the_bit(shard_folder, tmp_path, monkeypatch):
    config, kept = tiny_config(shard_folder, COHORT), Folder(tmp_path / "encoders")
    train(config, tmp_path / "alone")
    ran(config, tmp_path / "first", kept)
    (name,) = kept.names()
    with monkeypatch.context() as patch:
        # Nothing is left to train by.
        patch.setattr("distsynth.training.encoder._fit", None)
        ran(config, tmp_path / "second", kept)
    for run in ("first", "second"):
        assert same(tensors(tmp_path / run), tensors(tmp_path / "alone"))
        assert losses(tmp_path / run) == losses(tmp_path / "alone")
    # Other steps make another encoder.
    other = tiny_config(shard_folder, COHORT, {"loss.encoder_steps": 3, "train.epochs": 1})
    ran(other, tmp_path / "third", kept)
    assert len(kept.names()) == 2 and name in kept.names()


def test_a_damaged_encoder_is_named(shard_folder, tmp_path, refused):
    config, kept = tiny_config(shard_folder, COHORT), Folder(tmp_path / "encoders")
    shards = ShardSet(shard_folder)
    name = kept_name(shards.manifest.sha256, COHORT["loss.encoder_steps"])
    kept.write(name, b"no encoder")
    with refused(tmp_path / "encoders" / name, "not an encoder that can be read", "Remove it"):
        ran(config, tmp_path / "run", kept)


def test_levels_count_alike_on_targets(shard_folder):
    shards, accelerator = ShardSet(shard_folder), make_accelerator("no", cpu=True)
    standardise = Standardiser(shards.manifest, accelerator.device)
    encoder = new_encoder(2)
    train_encoder(encoder, shards, standardise, 20, accelerator)
    assert (encoder.scale > 0).all() and encoder.scale.unique().numel() == 3


@pytest.mark.parametrize("kind", ["supervised", "adversarial"])
def test_interrupted_and_resumed_it_measures_the_same(kind, shard_folder, tmp_path, monkeypatch):
    more = ADVERSARIAL | {"loss.lambda_matching": 0.3} if kind == "adversarial" else {}
    config = tiny_config(
        shard_folder, more, COHORT, {"loss.lambda_overlap": 0.2, "train.checkpoint_every": 1}
    )
    train(config, tmp_path / "whole")
    broken_off(config, tmp_path / "run", at=6)
    with monkeypatch.context() as patch:
        # The checkpoint brings it.
        patch.setattr("distsynth.training.run.train_encoder", None)
        train(config, tmp_path / "run", resume=True)
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    rows = losses(tmp_path / "run")
    assert rows[-1]["val/perceptual"] < 0.9 * next(
        row["train/perceptual"] for row in rows if "train/perceptual" in row
    )
    assert rows[-1]["val/overlap"] > 0
    if kind == "adversarial":
        assert "train/matching" in rows[0] and "val/matching" not in rows[-1]


def test_a_checkpoint_without_an_encoder_gets_one(shard_folder, tmp_path):
    """As where population based training raises the weight from 0."""
    config = tiny_config(shard_folder, COHORT, {"train.epochs": 1})
    plain = tiny_config(shard_folder, {"train.epochs": 1})
    train(config, tmp_path / "with")
    train(plain, tmp_path / "without")
    found = load_checkpoint(tmp_path / "with" / LAST).learners
    assert found.keys() == {"generator", "encoder"}
    assert load_checkpoint(tmp_path / "without" / LAST).learners.keys() == {"generator"}


@pytest.mark.slow
def test_all_ranks_have_the_encoder_of_the_first(shard_folder, tmp_path):
    more = {"loss.lambda_matching": 0.3, "loss.lambda_overlap": 0.2, "loss.recon": "l2"}
    config = tiny_config(shard_folder, ADVERSARIAL, COHORT, more)
    train(config, tmp_path / "one")
    assert launch(run_and_keep, config, tmp_path / "two", ranks=2, log=tmp_path / "log") == [0, 0]
    one, two = (
        load_checkpoint(tmp_path / name / LAST).learners["encoder"]["network"]
        for name in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(value, two[name])
    for one, other in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5, nan_ok=True)
    ranks = [torch.load(tmp_path / "two" / f"rank-{rank}.pt") for rank in (0, 1)]
    for name in ("generator", "discriminator"):
        assert same(ranks[0][name]["network"], ranks[1][name]["network"])
