from dataclasses import replace

import numpy as np
import pytest
import torch
from losses_by_hand import cross_entropy, gradient_by_hand
from torch import nn

from distsynth.errors import ConfigError
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.losses.gradient import gradient_difference_loss
from distsynth.losses.reconstruction import reconstruction_loss
from distsynth.losses.registry import TERMS, LossConfig


class AbsoluteMax(nn.Module):
    """A stand-in for the perceptual loss."""

    def forward(self, outputs):
        return (outputs.synthetic - outputs.target).abs().max()


def test_reconstruction_by_hand(pair):
    synthetic, target = map(torch.from_numpy, pair)
    difference = pair[0].astype(np.float64) - pair[1]
    l1, l2 = (reconstruction_loss(synthetic, target, norm).item() for norm in ("l1", "l2"))
    assert l1 == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert l2 == pytest.approx((difference**2).mean(), rel=1e-5)


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


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"loss\.recon must be l1, l2 or charbonnier, got l3"):
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
    later = dict.fromkeys(("matching", "overlap", "structure", "frequency"), 0.0)
    assert weights == {"bce": 0.5, "recon": 1.5, "gradient": 2.0, "perceptual": 0.25, **later}
    assert config.label == "0.5 bce + 1.5 l2 + 2 gradient + 0.25 perceptual"
    assert config.description == (
        "0.5 x adversarial (binary cross-entropy) + 1.5 x reconstruction (mean squared difference)"
        " + 2 x gradient difference + 0.25 x perceptual (VGG16)"
    )
