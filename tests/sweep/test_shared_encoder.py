"""The trials of a sweep share the encoder of their perceptual loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_sweeps import tiny_plan

from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST
from distsynth.sweep.folder import SweepFolder
from distsynth.sweep.trial import SweepTrial

PERCEPTUAL = {
    "loss.lambda_perceptual": 0.2,
    "loss.perceptual_network": "cohort",
    "loss.encoder_steps": 5,
    "train.epochs": 1,
}
WEIGHTS = {"loss.lambda_bce": 0.1, "loss.lambda_gradient": 0.1}


class First(SweepTrial):
    trial_name = "00000"


class Second(SweepTrial):
    trial_name = "00001"


@pytest.mark.slow
def test_one_trial_trains_it_and_the_next_one_takes_it(shard_folder, tmp_path, monkeypatch):
    folder = SweepFolder(tmp_path / "sweep")
    folder.write_plan(tiny_plan(shard_folder, run=PERCEPTUAL))
    for kind, rate in ((First, 1e-2), (Second, 3e-3)):
        given = {"hyperparameters": WEIGHTS | {"optim.lr_generator": rate}}
        trial = kind({"sweep": folder.url, "trial": given})
        assert "failed" not in trial.step()
        trial.cleanup()
        # From now on there is nothing to train by.
        monkeypatch.setattr("distsynth.training.encoder._fit", None)
    (kept,) = folder.encoders.names()
    assert kept.endswith(".safetensors")
    one, two = (
        load_checkpoint(Path(folder.run_dir(name)) / LAST).learners for name in ("00000", "00001")
    )
    for name, value in one["encoder"]["network"].items():
        assert torch.equal(value, two["encoder"]["network"][name])
    assert any(
        not torch.equal(value, two["generator"]["network"][name])
        for name, value in one["generator"]["network"].items()
    )
