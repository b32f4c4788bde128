"""The precision of a run: chosen by a probe, recorded, kept when it is resumed, float32 losses."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import (
    ADVERSARIAL,
    broken_off,
    launch,
    losses,
    run_choosing,
    same,
    tensors,
    tiny_config,
)

import distsynth.training.precision
from distsynth.config import from_json, with_overrides
from distsynth.data.resolve import resolved
from distsynth.errors import ConfigError
from distsynth.inference.precision import multiplies_bf16, predicts_in_bf16
from distsynth.inference.predictor import load_predictor
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.presets import preset
from distsynth.runs.checkpoint import fork, load_checkpoint, save_checkpoint
from distsynth.runs.folder import BEST, CONFIG_FILE, LAST
from distsynth.training.loop import train
from distsynth.training.precision import GAIN, bf16_gain, choose_precision, resolve_precision
from sharding.shards.shard_set import ShardSet

CPU = torch.device("cpu")
PASS = "a pass through the networks"
AUTO = {"train.precision": "auto"}
BF16 = {"train.precision": "bf16"}
EVERY_TERM = {
    "loss.lambda_structure": 0.1,
    "loss.lambda_frequency": 0.1,
    "loss.lambda_matching": 0.1,
    "loss.lambda_overlap": 0.1,
    "loss.lambda_perceptual": 0.1,
    "loss.perceptual_network": "cohort",
    "loss.encoder_steps": 2,
    "loss.penalty": "gradient",
}


def config_of(shards, *more):
    """A configuration whose patches are known."""
    return resolved(tiny_config(shards, AUTO, *more), ShardSet(shards).manifest)


def native(monkeypatch, there, gain=2.0):
    """A processor that has instructions for bf16 or not, and networks that gain by them."""
    for module in (distsynth.training.precision, distsynth.inference.precision):
        monkeypatch.setattr(module, "multiplies_bf16", lambda _: there)
    monkeypatch.setattr(distsynth.training.precision, "bf16_gain", lambda *_: gain)


def test_bf16_needs_instructions_and_a_gain(shard_folder, monkeypatch):
    config = config_of(shard_folder)
    native(monkeypatch, False)
    assert (
        str(choose_precision(config, CPU)) == "float32: the processor has no instructions for bf16"
    )
    native(monkeypatch, True, GAIN * 1.01)
    assert choose_precision(config, CPU).precision == "bf16"
    native(monkeypatch, True, GAIN * 0.99)
    slow = choose_precision(config, CPU)
    assert (
        str(slow)
        == "float32: in bf16 a pass through the networks takes 0.88 of its time in float32"
    )


@pytest.mark.parametrize("more", [{}, ADVERSARIAL], ids=["supervised", "adversarial"])
def test_a_probe_leaves_the_random_state_and_small_batches_do(shard_folder, more):
    before = torch.get_rng_state()
    gain = bf16_gain(config_of(shard_folder, more, {"train.batch_size": 1}), CPU)
    assert gain > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_probe_of_large_blocks_begins_with_small_ones(monkeypatch):
    """A pass that is long decides by itself, and the sides are those that the network takes."""
    config = with_overrides(
        preset("quick"),
        {"data.patch_size": (48, 48, 48), "data.neighbours": 0, "data.alignment": 2},
    )
    passes = []

    def timed(_, count, sides, half):
        passes.append((count, sides, half))
        return 0.3 if half else 0.6

    monkeypatch.setattr(distsynth.training.precision._Probe, "seconds", timed)
    assert bf16_gain(config, CPU) == pytest.approx(2)
    assert passes == [(2, (24, 24, 24), False), (2, (24, 24, 24), True)]


def test_a_run_says_and_records_what_it_found(shard_folder, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "distsynth")
    native(monkeypatch, True)
    train(tiny_config(shard_folder, AUTO), tmp_path)
    said = [line for line in caplog.messages if line.startswith("training in")]
    assert said == [
        "training in bf16: a pass through the networks takes 0.50 of its time in float32"
    ]
    assert from_json((tmp_path / CONFIG_FILE).read_text()).train.precision == "bf16"
    assert load_checkpoint(tmp_path / BEST).config.train.precision == "bf16"


def test_this_processor_decides_by_itself(shard_folder):
    config = resolve_precision(config_of(shard_folder))
    assert config.train.precision in (("no", "bf16") if multiplies_bf16(CPU) else ("no",))


def test_a_resumed_run_keeps_its_precision_anywhere(shard_folder, tmp_path, monkeypatch, caplog):
    """To the bit, although the processor that continues it would have chosen another."""
    train(tiny_config(shard_folder, BF16), tmp_path / "whole")
    native(monkeypatch, True)
    broken_off(tiny_config(shard_folder, AUTO), tmp_path / "parts", 7)
    native(monkeypatch, False)
    train(tiny_config(shard_folder, AUTO), tmp_path / "parts", resume=True)
    assert "this device has no instructions for it" in caplog.text
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_a_run_without_a_checkpoint_begins_again_in_its_precision(
    shard_folder, tmp_path, monkeypatch
):
    native(monkeypatch, True)
    broken_off(tiny_config(shard_folder, AUTO), tmp_path, 2)
    assert not (tmp_path / LAST).exists()
    native(monkeypatch, False)
    train(tiny_config(shard_folder, AUTO), tmp_path, resume=True)
    assert load_checkpoint(tmp_path / LAST).config.train.precision == "bf16"


def test_another_precision_is_refused_when_resuming(shard_folder, tmp_path):
    train(tiny_config(shard_folder, BF16), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.precision must be bf16 as in the run"):
        train(tiny_config(shard_folder), tmp_path, resume=True)


def test_fp16_cannot_be_resumed_without_a_gpu(shard_folder, tmp_path):
    train(tiny_config(shard_folder), tmp_path)
    found = load_checkpoint(tmp_path / LAST)
    fp16 = with_overrides(found.config, {"train.precision": "fp16", "train.device": "auto"})
    save_checkpoint(tmp_path / LAST, replace(found, config=fp16))
    with pytest.raises(ConfigError, match="fp16 as in the run being resumed, which needs a GPU"):
        train(tiny_config(shard_folder, AUTO), tmp_path, resume=True)


def test_a_member_of_a_population_takes_over_the_precision(shard_folder, tmp_path):
    train(tiny_config(shard_folder, BF16), tmp_path)
    donor = load_checkpoint(tmp_path / LAST)
    own = with_overrides(donor.config, AUTO)
    assert fork(donor, own, None).config.train.precision == "bf16"
    with pytest.raises(ConfigError, match=r"train\.precision must be bf16 as in the run copied"):
        fork(donor, with_overrides(donor.config, {"train.precision": "no"}), None)


def test_all_losses_are_computed_in_float32(shard_folder, tmp_path, monkeypatch):
    seen = []
    forward = GeneratorLoss.forward

    def spied(self, synthetic, target, *args, **kwargs):
        total, terms = forward(self, synthetic, target, *args, **kwargs)
        given = {synthetic.dtype, target.dtype, total.dtype, *(v.dtype for v in terms.values())}
        seen.append((given, torch.is_autocast_enabled("cpu"), set(terms)))
        return total, terms

    monkeypatch.setattr(GeneratorLoss, "forward", spied)
    train(tiny_config(shard_folder, ADVERSARIAL, EVERY_TERM, BF16), tmp_path)
    assert {(frozenset(given), half) for given, half, _ in seen} == {
        (frozenset({torch.float32}), False)
    }
    names = set().union(*(terms for *_, terms in seen))
    assert names >= {"bce", "recon", "gradient", "structure", "frequency", "matching", "overlap"}
    assert "perceptual" in names


@pytest.mark.parametrize(
    ("asked", "trained", "there", "expected"),
    [
        ("auto", "bf16", True, True),
        ("auto", "bf16", False, False),
        ("auto", "no", True, False),
        ("auto", "fp16", True, False),
        ("no", "bf16", True, False),
        ("bf16", "no", False, True),
    ],
)
def test_a_model_predicts_as_it_was_trained(monkeypatch, asked, trained, there, expected):
    native(monkeypatch, there)
    assert predicts_in_bf16(asked, trained, CPU) is expected


def test_predictions_differ_by_rounding_alone(shard_folder, tmp_path):
    train(tiny_config(shard_folder, BF16), tmp_path)
    source = np.random.default_rng(0).normal(size=(24, 20, 18)).astype(np.float32)
    exact, rounded, other = (
        load_predictor(tmp_path, "cpu", precision)(source, quiet=True)
        for precision in ("no", "bf16", "auto")
    )
    assert exact.dtype == rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()
    np.testing.assert_array_equal(other, rounded if multiplies_bf16(CPU) else exact)


@pytest.mark.slow
def test_the_first_rank_decides_for_all(shard_folder, tmp_path):
    config = tiny_config(shard_folder, AUTO)
    assert launch(run_choosing, config, tmp_path / "run", ranks=2, log=tmp_path / "log") == [0, 0]
    kept = [(tmp_path / "run" / f"precision-{rank}").read_text() for rank in range(2)]
    assert kept == ["bf16", "bf16"]
    assert load_checkpoint(tmp_path / "run" / LAST).config.train.precision == "bf16"
