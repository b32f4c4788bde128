"""The mask of each patch reaches the loss, moved as the patch is."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import ADVERSARIAL, same, tensors, tiny_config

from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.runs.folder import LAST
from distsynth.training.loop import train

MOVED = {
    "augment.flips": (0, 1),
    "augment.turns": True,
    "augment.shift": 2,
    "loss.mask_weight": 0.25,
    "loss.lambda_structure": 0.5,
    "train.epochs": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("networks", [{}, ADVERSARIAL], ids=["supervised", "adversarial"])
def test_the_mask_follows_the_patch(shard_folder, tmp_path, monkeypatch, networks):
    agreeing: dict[bool, list[float]] = {True: [], False: []}
    forward = GeneratorLoss.forward

    def spied(self, synthetic, target, *args, inside=None, **kwargs):
        assert inside is not None and inside.shape == target.shape
        # The phantom's background is constant, and the darkest of all.
        bright = target > target.min() + 0.5
        training = torch.is_grad_enabled()
        agreeing[training].append(float((bright == inside).float().mean()))
        return forward(self, synthetic, target, *args, inside=inside, **kwargs)

    monkeypatch.setattr(GeneratorLoss, "forward", spied)
    config = tiny_config(shard_folder, networks, MOVED)
    train(config, tmp_path)
    for shares in agreeing.values():
        assert sum(shares) / len(shares) > 0.95


@pytest.mark.slow
def test_micro_batches_weigh_as_the_whole_batch_does(shard_folder, tmp_path):
    weights = {}
    for parts in (1, 3):
        config = tiny_config(shard_folder, MOVED, {"train.accumulation": parts})
        train(config, tmp_path / str(parts))
        weights[parts] = tensors(tmp_path / str(parts), LAST)
    for name, value in weights[1].items():
        if name.startswith("/generator/network"):
            torch.testing.assert_close(value, weights[3][name], rtol=1e-4, atol=1e-6)
    train(tiny_config(shard_folder, MOVED | {"loss.mask_weight": 1.0}), tmp_path / "plain")
    assert not same(weights[1], tensors(tmp_path / "plain"))
