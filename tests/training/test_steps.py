from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distsynth.config import OptimConfig
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.registry import LossConfig
from distsynth.models import (
    ConvDiscriminatorConfig,
    ConvStackConfig,
    build_discriminator,
    build_generator,
)
from distsynth.training.pace import Pace, rate_factor, schedule
from distsynth.training.steps import (
    Learner,
    MicroBatch,
    _discriminate,
    adversarial_step,
    make_accelerator,
    supervised_step,
)

PATCH = (8, 8)
LOSS = LossConfig(lambda_bce=0.3, lambda_recon=1.5, recon="l2", lambda_gradient=0.7)
SUPERVISED = LossConfig(lambda_recon=1.5, recon="l2", lambda_gradient=0.7)


def learner(network, optim=None, precision="no", plain=False, average=0.0):
    """A learner; `plain` descends the gradient itself, which Adam would scale to one size."""
    made = Learner(
        network,
        0.05,
        optim or OptimConfig(),
        Pace(10),
        make_accelerator(precision, cpu=True),
        average,
    )
    if plain:
        made.optimizer = torch.optim.SGD(made.raw.parameters(), lr=0.05)
    return made


def generator(norm="none", **options):
    torch.manual_seed(1)
    return learner(build_generator(ConvStackConfig((4,), (3,), norm), PATCH), **options)


def discriminator(conditional=False, norm="none", **options):
    torch.manual_seed(2)
    config = ConvDiscriminatorConfig((4, 4), (3,), norm=norm, conditional=conditional)
    return learner(build_discriminator(config, PATCH), **options)


def pairs(count=8, parts=1):
    draw = torch.Generator().manual_seed(3)
    source, target = torch.randn(2, count, 1, *PATCH, generator=draw)
    return list(map(MicroBatch, source.chunk(parts), target.chunk(parts)))


def weights(made):
    return {name: value.clone() for name, value in made.raw.state_dict().items()}


def assert_close(left, right):
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-7)


def moved(made, before):
    return any(not torch.equal(value, before[name]) for name, value in weights(made).items())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_supervised_step_equals_the_whole_batch(parts):
    ends, terms = [], []
    for cut in (1, parts):
        made = generator(plain=True)
        before = weights(made)
        for step in range(3):
            terms.append(supervised_step(made, GeneratorLoss(SUPERVISED), pairs(parts=cut), step))
        assert moved(made, before)
        ends.append(weights(made))
    assert_close(*ends)
    assert_close(terms[0], terms[3])


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("conditional", [False, True])
def test_accumulated_adversarial_step_equals_the_whole_batch(parts, conditional):
    ends, terms = [], []
    for cut in (1, parts):
        made, critic = generator(plain=True), discriminator(conditional, plain=True)
        for step in range(3):
            batch = pairs(parts=cut)
            terms.append(adversarial_step(made, critic, GeneratorLoss(LOSS), batch, step))
        ends.append((weights(made), weights(critic)))
    for one, other in zip(*ends, strict=True):
        assert_close(one, other)
    assert_close(terms[0], terms[3])


@pytest.mark.parametrize("parts", [1, 2])
def test_each_network_learns_from_its_own_loss_only(parts):
    made, critic = generator(norm="none"), discriminator()
    start = {"generator": weights(made), "discriminator": weights(critic)}
    seen = []

    def watched(own, other, name):
        update = own.update

        def spy(step):
            seen.append(name)
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.raw.parameters())
            assert all(p.grad is None for p in other.raw.parameters())
            if name == "discriminator":
                assert not moved(made, start["generator"])
                result = update(step)
                start["updated"] = weights(critic)
                return result
            assert not moved(critic, start["updated"])
            return update(step)

        own.update = spy

    watched(critic, made, "discriminator")
    watched(made, critic, "generator")
    adversarial_step(made, critic, GeneratorLoss(LOSS), pairs(parts=parts), 0)
    assert seen == ["discriminator", "generator"]
    assert moved(critic, start["discriminator"])
    assert not moved(critic, start["updated"])
    assert moved(made, start["generator"])
    for each in (made, critic):
        assert all(p.requires_grad and p.grad is None for p in each.raw.parameters())


def test_frozen_networks_thaw_after_an_error():
    critic = discriminator()
    with pytest.raises(RuntimeError, match="boom"), critic.frozen():
        assert not any(p.requires_grad for p in critic.raw.parameters())
        raise RuntimeError("boom")
    assert all(p.requires_grad for p in critic.raw.parameters())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_terms_are_equations_1_to_5(conditional, parts):
    made, critic = generator(), discriminator(conditional)
    before, critic_before = copy.deepcopy(made.raw), copy.deepcopy(critic.raw)
    ((source, target, _),) = pairs()
    terms = adversarial_step(made, critic, GeneratorLoss(LOSS), pairs(parts=parts), 0)
    with torch.no_grad():
        synthetic = before(source)
        real, fake = (torch.sigmoid(critic_before(x, source)) for x in (target, synthetic))
        eq_1 = -(real.log().mean() + (1 - fake).log().mean()) / 2
        # The generator meets the discriminator as it is after its own update.
        eq_2 = -torch.sigmoid(critic.raw(synthetic, source)).log().mean()
        eq_3 = ((synthetic - target) ** 2).mean()
        difference = synthetic - target
        eq_4 = sum((difference.diff(dim=axis) ** 2).mean() for axis in (2, 3))
        eq_5 = 0.3 * eq_2 + 1.5 * eq_3 + 0.7 * eq_4
    expected = {
        "discriminator": eq_1,
        "bce": eq_2,
        "recon": eq_3,
        "gradient": eq_4,
        "generator": eq_5,
    }
    assert set(terms) == {*expected, "grad_norm/discriminator", "grad_norm/generator"}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-6)
    assert not any(value.requires_grad for value in terms.values())


def test_the_discriminator_shapes_the_generator():
    with_discriminate, without = generator(plain=True), generator(plain=True)
    adversarial_step(with_discriminate, discriminator(), GeneratorLoss(LOSS), pairs(), 0)
    supervised_step(without, GeneratorLoss(SUPERVISED), pairs(), 0)
    assert moved(with_discriminate, weights(without))


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0]),
    ],
)
def test_schedules(name, factors):
    pace = Pace(100)
    found = [schedule(name, pace(step)) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx(factors, abs=1e-12)
    assert schedule(name, pace(130)) == pytest.approx(factors[-1], abs=1e-12)


def test_a_warm_up_multiplies_the_schedule():
    config, pace = OptimConfig(schedule="linear", warmup_steps=4), Pace(10)
    found = [rate_factor(config, pace, step) for step in range(10)]
    expected = [min(1, (step + 1) / 4) * (1 - step / 10) for step in range(10)]
    assert found == pytest.approx(expected)


def test_a_budget_in_time_decides_where_it_is_nearer_to_the_end():
    time = iter([0.0, 100.0, 106.0, 200.0, 224.0, 230.0]).__next__
    pace = Pace(100, minutes=0.5, now=time)
    pace.start()
    assert (pace(0), pace(20), pace.over) == (0, 0.2, False)
    pace.tick()
    assert (pace.seconds, pace(3), pace(50)) == (6, pytest.approx(0.2), 0.5)
    pace.start()  # what lies between is no training time
    pace.tick()
    assert (pace.seconds, pace(3), pace.over) == (30, 1, True)
    assert not Pace(100, now=time).over


def test_an_average_follows_the_weights():
    made = generator(average=0.5)
    first = weights(made)
    expected = first
    for step in range(12):
        supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), step)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = {
            name: kept * expected[name] + (1 - kept) * value
            for name, value in weights(made).items()
        }
    average = made.evaluated.state_dict()
    assert_close(average, expected)
    assert any(not torch.equal(value, weights(made)[name]) for name, value in average.items())
    assert generator().evaluated is not made.evaluated


def test_an_average_has_the_statistics_of_batch_norm_of_the_network():
    made = generator(norm="batch", average=0.9)
    supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), 0)
    for own, kept in zip(made.raw.buffers(), made.evaluated.buffers(), strict=True):
        assert torch.equal(own, kept)
    other = generator(norm="batch", average=0.9)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    assert_close(other.evaluated.state_dict(), made.evaluated.state_dict())


def test_weights_shrink_by_their_decay():
    plain, decayed = (generator(optim=OptimConfig(weight_decay=decay)) for decay in (0, 0.2))
    first = weights(plain)
    for made in (plain, decayed):
        supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), 0)
    for name, value in weights(decayed).items():
        torch.testing.assert_close(value, weights(plain)[name] - 0.05 * 0.2 * first[name])


def test_the_schedule_sets_the_rate_of_each_step():
    made = generator(optim=OptimConfig(schedule="linear"))
    for step, rate in ((0, 0.05), (5, 0.025), (9, 0.005)):
        supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), step)
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert made.learning_rate(step) == pytest.approx(rate)


def test_adam_has_the_configured_betas():
    made = generator(optim=OptimConfig(beta1=0.5, beta2=0.9))
    assert made.optimizer.param_groups[0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize("limit", [0.0, 0.01, 1e6])
def test_clipping_bounds_the_step_and_reports_the_norm_before(limit):
    made = generator(optim=OptimConfig(clip_norm=limit), plain=True)
    before = weights(made)
    loss, _ = GeneratorLoss(SUPERVISED)(made.raw(pairs()[0][0]), pairs()[0][1])
    gradients = torch.autograd.grad(loss, list(made.raw.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    terms = supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), 0)
    torch.testing.assert_close(terms["grad_norm/generator"], norm)
    change = torch.cat([(value - before[name]).flatten() for name, value in weights(made).items()])
    expected = 0.05 * (min(limit, float(norm)) if limit else float(norm))
    assert float(change.norm()) == pytest.approx(expected, rel=1e-4)
    assert float(norm) > 0.01


@pytest.mark.parametrize("broken", ["generator", "discriminator"])
def test_an_overflow_in_one_network_leaves_the_other_alone(broken):
    learners = {"generator": generator(), "discriminator": discriminator()}
    for made in learners.values():
        made.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    before = {name: weights(made) for name, made in learners.items()}
    first = next(learners[broken].raw.parameters())
    hook = first.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    adversarial_step(*learners.values(), GeneratorLoss(LOSS), pairs(), 0)
    hook.remove()
    for name, made in learners.items():
        assert made.scaler.get_scale() == (4.0 if name == broken else 8.0)
        assert moved(made, before[name]) == (name != broken)
    adversarial_step(*learners.values(), GeneratorLoss(LOSS), pairs(), 1)
    for name, made in learners.items():
        # One update a step: the healthy one has grown after two, the other one not yet.
        assert made.scaler.get_scale() == (4.0 if name == broken else 16.0)


def test_scaled_gradients_give_the_unscaled_step():
    scaled, plain = generator(plain=True), generator(plain=True)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    terms = [
        supervised_step(made, GeneratorLoss(SUPERVISED), pairs(parts=2), 0)
        for made in (scaled, plain)
    ]
    assert_close(weights(scaled), weights(plain))
    assert_close(*terms)


def test_learner_state_round_trip():
    made = generator(norm="batch")
    for step in range(2):
        supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), step)
    state = copy.deepcopy(made.state_dict())
    after = supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), 2)
    other = generator(norm="batch")
    other.load_state_dict(state)
    again = supervised_step(other, GeneratorLoss(SUPERVISED), pairs(), 2)
    assert not moved(other, weights(made))
    assert all(torch.equal(value, again[name]) for name, value in after.items())


def test_a_process_may_change_precision_and_both_forms_of_a_network_follow():
    """Accelerate refuses a second precision in one process unless its state is reset."""
    source = pairs()[0][0]
    kinds = {}
    for precision in ("no", "bf16", "no"):
        made = generator(precision=precision)
        layer = next(part for part in made.raw.modules() if isinstance(part, nn.Conv2d))
        seen = []
        layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.dtype))
        made.network(source)
        made.raw(source)
        kinds[precision] = seen
        assert not made.scaler.is_enabled()
    assert kinds == {"no": [torch.float32] * 2, "bf16": [torch.bfloat16] * 2}


def test_losses_are_float32_under_bf16():
    made = generator(precision="bf16")
    terms = supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), 0)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    exact = supervised_step(generator(), GeneratorLoss(SUPERVISED), pairs(), 0)
    torch.testing.assert_close(terms["recon"], exact["recon"], rtol=0.05, atol=0)
    assert F.l1_loss(terms["recon"], exact["recon"]) > 0


def two_passes(critic, source, target, synthetic):
    return critic.network(target, source), critic.network(synthetic, source)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_one_pass_of_the_discriminator_gives_what_two_give(norm, conditional):
    source, target, synthetic = torch.randn(3, 6, 1, *PATCH)
    results = []
    for passes in (_discriminate, two_passes):
        critic = discriminator(conditional, norm)
        logits = passes(critic, source, target, synthetic)
        torch.autograd.backward([part.square().sum() for part in logits])
        gradients = {name: value.grad for name, value in critic.raw.named_parameters()}
        results.append(({"real": logits[0], "fake": logits[1]}, gradients, weights(critic)))
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize(("norm", "passes"), [("none", 1), ("instance", 1), ("batch", 2)])
def test_batch_norm_never_sees_target_and_synthetic_together(norm, passes):
    critic, seen = discriminator(norm=norm), []
    critic.raw.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    adversarial_step(generator(), critic, GeneratorLoss(LOSS), pairs(), 0)
    # The last one is the generator's.
    assert seen == [16 // passes] * passes + [8]


def test_fused_adam_descends_as_the_plain_one():
    fused, plain = generator(), generator()
    assert fused.optimizer.defaults["fused"]
    plain.optimizer = torch.optim.Adam(plain.raw.parameters(), lr=0.05, fused=False, foreach=False)
    for step in range(5):
        for made in (fused, plain):
            supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), step)
    assert_close(weights(fused), weights(plain))


def test_a_state_of_plain_adam_is_taken_over():
    """Checkpoints of before go on as they began."""
    before, after = generator(), generator()
    before.optimizer = torch.optim.Adam(before.raw.parameters(), lr=0.05)
    supervised_step(before, GeneratorLoss(SUPERVISED), pairs(), 0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for made in (before, after):
        supervised_step(made, GeneratorLoss(SUPERVISED), pairs(), 1)
    assert not moved(after, weights(before))
