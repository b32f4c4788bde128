"""Every adversarial loss: accumulated, interrupted, on two ranks and in bfloat16."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import (
    ADVERSARIAL,
    broken_off,
    launch,
    losses,
    run,
    run_and_keep,
    same,
    tensors,
    tiny_config,
)

from distsynth.config import OptimConfig
from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.models import build_discriminator, build_generator
from distsynth.training.loop import train
from distsynth.training.pace import Pace
from distsynth.training.steps import (
    Learner,
    MicroBatch,
    adversarial_step,
    interpolation_shares,
    make_accelerator,
)

pytestmark = pytest.mark.slow


KINDS = {
    "wasserstein": {
        "loss.adversarial": "wasserstein",
        "loss.penalty": "gradient",
        "optim.discriminator_steps": 3,
    },
    "kl": {
        "loss.adversarial": "kl",
        "loss.penalty": "r1",
        "loss.penalty_weight": 0.1,
        "loss.penalty_every": 2,
    },
    "spectral": {"loss.adversarial": "hinge", "discriminator.spectral_norm": True},
    "both": {
        "loss.adversarial": "least-squares",
        "loss.penalty": "gradient",
        "discriminator.family": "patchgan",
        "discriminator.norm": "instance",
        "discriminator.conditional": True,
        "discriminator.spectral_norm": True,
    },
}


def config_of(kind, shards, *more):
    return tiny_config(shards, ADVERSARIAL, KINDS[kind], *more)


def learners_of(config, precision="no"):
    """Learners that descend the gradient itself, which Adam would scale to one size."""
    torch.manual_seed(1)
    made = []
    for network in (
        build_generator(config.generator, (16, 16)),
        build_discriminator(config.discriminator, (16, 16)),
    ):
        learner = Learner(
            network, 0.01, OptimConfig(), Pace(10), make_accelerator(precision, cpu=True)
        )
        learner.optimizer = torch.optim.SGD(learner.raw.parameters(), lr=0.01)
        made.append(learner)
    return made


def weights(learner):
    return {name: value.clone() for name, value in learner.raw.state_dict().items()}


def some_steps(config, parts, count=4, precision="no"):
    """The learners and the terms after some steps on a batch of eight."""
    generator, discriminator = learners_of(config, precision)
    draw = torch.Generator().manual_seed(3)
    source, target = torch.randn(2, 8, 1, 16, 16, generator=draw)
    pairs = zip(source.chunk(parts), target.chunk(parts), strict=True)
    batch = [MicroBatch(*pair) for pair in pairs]
    loss, found = GeneratorLoss(config.loss), []
    for step in range(count):
        found.append(
            adversarial_step(
                generator,
                discriminator,
                loss,
                batch,
                step,
                interpolation_shares(0, step, 8),
                with_generator=(step + 1) % config.optim.discriminator_steps == 0,
            )
        )
    return generator, discriminator, found


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_steps_equal_the_whole_batch(kind, parts):
    config = config_of(kind, "none")
    one, other = some_steps(config, 1), some_steps(config, parts)
    for left, right in zip(one[:2], other[:2], strict=True):
        for name, value in weights(left).items():
            torch.testing.assert_close(value, weights(right)[name], rtol=1e-4, atol=1e-6)
    for left, right in zip(one[2], other[2], strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-5)


def test_the_generator_learns_in_every_third_step_and_a_lazy_penalty_in_every_second():
    _, _, found = some_steps(config_of("wasserstein", "none"), 1, count=7)
    assert [index for index, terms in enumerate(found) if "generator" in terms] == [2, 5]
    assert all({"discriminator", "penalty"} <= terms.keys() for terms in found)
    _, _, found = some_steps(config_of("kl", "none"), 1, count=5)
    assert [index for index, terms in enumerate(found) if "penalty" in terms] == [0, 2, 4]
    assert all("generator" in terms for terms in found)


def test_a_step_without_the_generator_leaves_it_alone():
    config = config_of("wasserstein", "none")
    generator, _, _ = some_steps(config, 1, count=2)
    start, _ = learners_of(config)
    assert same(weights(generator), weights(start))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_leaves_the_penalty_in_float32(kind):
    config = config_of(kind, "none")
    exact, rounded = (some_steps(config, 1, 1, precision)[2][0] for precision in ("no", "bf16"))
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    for name, value in exact.items():
        torch.testing.assert_close(rounded[name], value, rtol=0.1, atol=0.02)
    if "penalty" in exact and KINDS[kind]["loss.penalty"] == "r1":
        # At the target itself nothing of the generator's rounding is seen.
        assert torch.equal(exact["penalty"], rounded["penalty"])


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_gradients_give_the_unscaled_step(kind):
    """As under fp16, where each network has a scaler of its own."""
    config, ends = config_of(kind, "none"), []
    for scale in (None, 64.0):
        learners = learners_of(config)
        if scale:
            for learner in learners:
                learner.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        source, target = torch.randn(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(3))
        shares = interpolation_shares(0, 0, 8)
        adversarial_step(
            *learners, GeneratorLoss(config.loss), [MicroBatch(source, target)], 0, shares
        )
        ends.append([weights(learner) for learner in learners])
    for left, right in zip(*ends, strict=True):
        for name, value in left.items():
            torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-7)


def test_shares_depend_on_seed_and_step_alone():
    shares = interpolation_shares(3, 7, 24)
    assert torch.equal(shares, interpolation_shares(3, 7, 24))
    assert shares.min() >= 0 and shares.max() < 1 and shares.dtype == torch.float32
    for other in ((4, 7), (3, 8)):
        assert not torch.equal(shares, interpolation_shares(*other, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_ends_as_if_never_stopped(kind, shard_folder, tmp_path):
    config = config_of(kind, shard_folder, {"train.checkpoint_every": 1, "train.log_every": 4})
    train(config, tmp_path / "whole")
    broken_off(config, tmp_path / "run", at=4)
    train(config, tmp_path / "run", resume=True)
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_rows_are_means_over_the_steps_that_have_the_term(shard_folder, tmp_path):
    train(config_of("wasserstein", shard_folder, {"train.log_every": 1}), tmp_path / "each")
    train(config_of("wasserstein", shard_folder, {"train.log_every": 5}), tmp_path / "five")
    each = {row["step"]: row for row in losses(tmp_path / "each") if "lr/generator" in row}
    five = {row["step"]: row for row in losses(tmp_path / "five") if "lr/generator" in row}
    with_generator = [step for step, row in each.items() if "train/generator" in row]
    assert with_generator == [3, 6, 9]
    assert five[5]["train/recon"] == pytest.approx(each[3]["train/recon"], rel=1e-5)
    for step in (5, 10):
        rows = [each[number] for number in range(step - 4, step + 1)]
        mean = sum(row["train/penalty"] for row in rows) / 5
        assert five[step]["train/penalty"] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind, shard_folder, tmp_path):
    train(config_of(kind, shard_folder, {"train.epochs": 12}), tmp_path)
    rows = losses(tmp_path)
    recon = [row["train/recon"] for row in rows if "train/recon" in row]
    scores = [row["val/psnr"] for row in rows if "val/psnr" in row]
    assert recon[-1] < 0.8 * recon[0]
    assert scores[-1] > scores[0] + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 3])
def test_two_ranks_do_what_one_does(kind, parts, shard_folder, tmp_path):
    config = config_of(kind, shard_folder, {"train.accumulation": parts, "loss.recon": "l2"})
    for ranks in (1, 2):
        target = run_and_keep if ranks == 2 else run
        assert launch(target, config, tmp_path / str(ranks), ranks=ranks, log=tmp_path / "log") == (
            [0] * ranks
        )
    # Of Wasserstein and hinge only differences of logits count: the gradient of the last bias is
    # rounding, and Adam makes whole steps of it.
    rows = zip(losses(tmp_path / "1"), losses(tmp_path / "2"), strict=True)
    for one, other in rows:
        assert one.pop("train/bce", 0) == pytest.approx(other.pop("train/bce", 0), abs=0.02)
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5, nan_ok=True)
    one, other = tensors(tmp_path / "1"), tensors(tmp_path / "2")
    for name, value in one.items():
        if torch.is_tensor(value) and not name.endswith("logit.bias"):
            torch.testing.assert_close(value, other[name], rtol=1e-2, atol=1e-4)
    first, second = (torch.load(tmp_path / "2" / f"rank-{rank}.pt") for rank in (0, 1))
    for name in ("generator", "discriminator"):
        assert same(first[name]["network"], second[name]["network"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.adversarial": "wasserstein"}, r"loss\.penalty must be gradient or r1"),
        (
            {"loss.adversarial": "wasserstein", "discriminator.spectral_norm": True}
            | {"discriminator.norm": "batch"},
            r"discriminator\.norm must be instance or none .*, got batch",
        ),
        ({"loss.penalty": "r1", "discriminator.norm": "batch"}, r"discriminator\.norm must be"),
        ({"optim.discriminator_steps": 0}, r"optim\.discriminator_steps must be from 1 to 1000"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config("none", ADVERSARIAL, changes)


def test_without_a_discriminator_its_loss_says_nothing():
    more = {"loss.adversarial": "wasserstein", "discriminator.family": "none"}
    assert not tiny_config("none", ADVERSARIAL, more, {"loss.lambda_bce": 0.0}).adversarial
