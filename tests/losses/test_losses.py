import math
from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from distsynth.errors import ConfigError
from distsynth.losses.adversarial import ADVERSARIAL_LOSSES, CrossEntropy
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.gradient import gradient_difference_loss
from distsynth.losses.reconstruction import reconstruction_loss
from distsynth.losses.registry import TERMS, LossConfig

SPATIAL = [(6, 5), (4, 5, 3)]


@pytest.fixture(params=SPATIAL, ids=["2d", "3d"])
def pair(request):
    """Synthetic and target, float32 numpy."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 1, *request.param)).astype(np.float32)


def cross_entropy(logits, label):
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -np.log(probability if label else 1 - probability).mean()


def gradient_by_hand(synthetic, target):
    """Eq. 4 with the gradients written out voxel by voxel along each axis."""
    total = 0.0
    for axis in range(2, synthetic.ndim):
        first = np.arange(synthetic.shape[axis] - 1)
        edges = [
            image.astype(np.float64).take(first + 1, axis)
            - image.astype(np.float64).take(first, axis)
            for image in (synthetic, target)
        ]
        total += ((edges[0] - edges[1]) ** 2).mean()
    return total


class AbsoluteMax(nn.Module):
    """A stand-in for the perceptual loss."""

    def forward(self, outputs):
        return (outputs.synthetic - outputs.target).abs().max()


@pytest.mark.parametrize("shape", [(4, 1), (4, 1, 3, 2), (4, 1, 2, 2, 2)])
def test_adversarial_losses_by_hand(shape):
    real, fake = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32) * 3
    both = (cross_entropy(real, 1) + cross_entropy(fake, 0)) / 2
    loss = CrossEntropy()
    discriminator = loss.discriminator(torch.from_numpy(real), torch.from_numpy(fake))
    assert discriminator.item() == pytest.approx(both, rel=1e-5)
    generator = loss.generator(torch.from_numpy(fake))
    assert generator.item() == pytest.approx(cross_entropy(fake, 1), rel=1e-5)


def test_a_discriminator_that_cannot_tell_loses_log_2():
    logits = torch.zeros(4, 1)
    assert CrossEntropy().discriminator(logits, logits).item() == pytest.approx(math.log(2))
    assert CrossEntropy().generator(logits).item() == pytest.approx(math.log(2))


def test_certain_logits_stay_finite():
    logits = torch.tensor([[1e4], [-1e4]])
    assert CrossEntropy().discriminator(logits, -logits).isfinite()


def test_reconstruction_by_hand(pair):
    synthetic, target = map(torch.from_numpy, pair)
    difference = pair[0].astype(np.float64) - pair[1]
    l1, l2 = (reconstruction_loss(synthetic, target, norm).item() for norm in ("l1", "l2"))
    assert l1 == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert l2 == pytest.approx((difference**2).mean(), rel=1e-5)


def test_gradient_difference_by_hand(pair):
    loss = gradient_difference_loss(*map(torch.from_numpy, pair))
    assert loss.item() == pytest.approx(gradient_by_hand(*pair), rel=1e-5)


def test_gradient_difference_sees_edges_not_levels(pair):
    _, target = map(torch.from_numpy, pair)
    assert gradient_difference_loss(target + 5, target).item() == pytest.approx(0, abs=1e-10)
    # The sign of an edge counts: a mirrored image has the same magnitudes.
    assert gradient_difference_loss(-target, target) > 0


def test_a_unit_edge():
    synthetic = torch.zeros(1, 1, 2, 2)
    target = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert gradient_difference_loss(synthetic, target) == 1


def test_losses_are_zero_at_equality(pair):
    image = torch.from_numpy(pair[0])
    assert reconstruction_loss(image, image, "l1") == 0
    assert reconstruction_loss(image, image, "l2") == 0
    assert gradient_difference_loss(image, image) == 0


@pytest.mark.parametrize(
    "loss", [gradient_difference_loss, lambda a, b: reconstruction_loss(a, b, "l1")]
)
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"same shape, got \(2, 1, 4, 4\) and \(1, 1, 4, 4\)"):
        loss(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


def test_gradient_difference_needs_two_voxels():
    with pytest.raises(ValueError, match="at least 2 voxels"):
        gradient_difference_loss(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1))


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"loss\.recon must be l1 or l2, got l3"):
        reconstruction_loss(torch.zeros(1), torch.zeros(1), "l3")


@pytest.mark.parametrize("recon", ["l1", "l2"])
def test_equation_5_weighs_the_terms(pair, recon):
    synthetic, target = map(torch.from_numpy, pair)
    logits = np.array([[0.3], [-2.0], [1.5]], dtype=np.float32)
    criterion = GeneratorLoss(LossConfig(0.5, 1.5, recon, 2.0))
    criterion.config = replace(criterion.config, lambda_perceptual=0.25)
    criterion.terms["perceptual"] = AbsoluteMax()
    total, terms = criterion(synthetic, target, torch.from_numpy(logits))
    difference = np.abs(pair[0].astype(np.float64) - pair[1])
    expected = {
        "bce": cross_entropy(logits, 1),
        "recon": difference.mean() if recon == "l1" else (difference**2).mean(),
        "gradient": gradient_by_hand(*pair),
        "perceptual": difference.max(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)
    by_hand = (
        0.5 * expected["bce"]
        + 1.5 * expected["recon"]
        + 2.0 * expected["gradient"]
        + 0.25 * expected["perceptual"]
    )
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


def test_terms_without_weight_or_logits_are_left_out(pair):
    synthetic, target = map(torch.from_numpy, pair)
    logits = torch.zeros(3, 1)
    _, terms = GeneratorLoss(LossConfig())(synthetic, target, logits)
    assert list(terms) == ["recon"]
    adversarial = GeneratorLoss(LossConfig(1.0, 0.0, "l1", 1.0))
    assert list(adversarial(synthetic, target, logits)[1]) == ["bce", "gradient"]
    assert list(adversarial(synthetic, target)[1]) == ["gradient"]


def test_gradient_flows_to_synthetic_and_logits_but_not_through_the_log():
    synthetic = torch.randn(2, 1, 6, 6, requires_grad=True)
    logits = torch.randn(2, 1, requires_grad=True)
    criterion = GeneratorLoss(LossConfig(1.0, 1.0, "l2", 1.0))
    total, terms = criterion(synthetic, torch.randn(2, 1, 6, 6), logits)
    total.backward()
    assert synthetic.grad is not None and synthetic.grad.abs().sum() > 0
    assert logits.grad is not None and (logits.grad < 0).all()
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    # 300 squared leaves float16's range; the mean must not.
    synthetic = torch.full((1, 1, 8, 8), 300.0, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = GeneratorLoss(LossConfig(1.0, 1.0, "l2", 1.0))(
            synthetic, torch.zeros_like(synthetic), torch.zeros(1, 1, dtype=dtype)
        )
    assert terms["recon"] == 300.0**2
    assert {total.dtype, *(term.dtype for term in terms.values())} == {torch.float32}


def test_a_perceptual_weight_needs_the_weights_of_its_network(tmp_path):
    missing = str(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match=r"loss\.vgg_weights must be a file .*none\.pth"):
        GeneratorLoss(LossConfig(lambda_perceptual=1.0, vgg_weights=missing))


def test_each_term_has_a_weight_and_a_place_in_lists():
    config = LossConfig(0.5, 1.5, "l2", 2.0, 0.25)
    weights = {term.name: config.weight(term.name) for term in TERMS}
    assert weights == {"bce": 0.5, "recon": 1.5, "gradient": 2.0, "perceptual": 0.25}
    assert config.label == "0.5 bce + 1.5 l2 + 2 gradient + 0.25 perceptual"
    assert config.description == (
        "0.5 x adversarial (binary cross-entropy) + 1.5 x reconstruction (mean squared difference)"
        " + 2 x gradient difference + 0.25 x perceptual (VGG16)"
    )


def test_each_adversarial_loss_can_be_configured_by_its_name():
    assert get_args(get_type_hints(LossConfig)["adversarial"]) == tuple(ADVERSARIAL_LOSSES)
    for name, loss in ADVERSARIAL_LOSSES.items():
        assert GeneratorLoss(LossConfig(adversarial=name)).adversarial is loss
